"""`syncnorm run EXPERIMENT.py`: train a study's missing runs, and write its report."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from syncnorm.commands.options import Given, given_options, option_names, read_options, show_help
from syncnorm.commands.show import show
from syncnorm.config import ClientEngine, Engine, Execution, Run, run_id
from syncnorm.environment import rank
from syncnorm.errors import UserError
from syncnorm.study.plan.load import load_study
from syncnorm.study.plan.override import quicker, refuse_varied, with_vary
from syncnorm.study.plan.spec import Study, field_path, has_field, with_engine
from syncnorm.study.run.executors.registry import check_on
from syncnorm.study.run.forecast import forecast
from syncnorm.study.run.runner import check_study, run_study, stacking
from syncnorm.study.run.tracking.trackers import Mode
from syncnorm.worlds import check_names

PROG = "syncnorm run EXPERIMENT.py"


@dataclass(frozen=True)
class RunOptions:
    """Train a study's missing runs, and write its tables, figures and page.

    The same command resumes an interrupted study. Options of the base run (data, model, norm, world, optim) apply to
    all runs of the study. They are refused for fields that the study varies: use --vary to replace those values.
    """

    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Run the study's small version, in a separate folder."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Train nothing. Print the groups of runs, how many are finished, how many would be trained, and the expected
    time."""
    out: Path | None = None
    """Results folder; default: out/NAME OF THE STUDY."""
    seeds: int | None = None
    """Number of seeds."""
    first_seed: int | None = None
    """The first seed; default: 0."""
    vary: tuple[str, ...] = ()
    """Fields and their values, e.g. norm=bn,gn per-device-batch=2,32 skew=0. In the study's additional grids, these
    fields keep only the values listed here."""
    trials: int | None = None
    """Number of trials of every line of a study that tunes; more trials extend fewer."""
    no_tune: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Tune nothing: train every run with the values of the base run."""
    jobs: int | None = None
    """Number of worker processes; default: one per core, at most four per CUDA device; on ray, as many as there is
    room for; on slurm, 16."""
    stack: str = "off"
    """Runs that differ in seed and numbers of the optimiser alone train in one computation: off, the largest number
    of runs at once, such as 10, or auto, which does it where a few steps show that it is faster."""
    on: str = "local"
    """Where the worker processes run: local, ray[:ADDRESS], slurm[:KEY=VALUE,...], or an executor of your own."""
    gpus_per_run: float | None = None
    """Share of a GPU for each run of one process, from 0 to 1; default: a quarter where there are GPUs; on slurm,
    none."""
    engine: Engine | ClientEngine | None = None
    """Engine of every run: virtual or torchrun for devices; auto, cohort, loop, flower or torchrun for
    clients."""
    keep: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Keep finished runs although the source code of a model or plugin, or the data, has changed; by default they run
    again."""
    checkpoint_every: float = Execution.checkpoint_every
    """Seconds between two checkpoints of a run; an interrupted run resumes from its last checkpoint
    bit-identically."""
    save_models: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Save the trained weights of every run that is trained under OUT/models; load them with syncnorm.load_run(OUT,
    RUN_ID)."""
    wandb: Mode = "auto"
    """Mode of Weights & Biases tracking; auto is online if WANDB_API_KEY is set, otherwise offline."""
    track: tuple[Literal["tensorboard"], ...] = ()
    """Further trackers: tensorboard."""
    base: Annotated[Run, tyro.conf.arg(name="")] = field(default_factory=Run)


def run(arguments: list[str]) -> int:
    """Run the command; return its exit code."""
    if not arguments or arguments[0].startswith("-"):
        if set(arguments) & {"-h", "--help"}:
            show_help(RunOptions(), PROG)
        raise UserError("write the experiment file first: syncnorm run EXPERIMENT.py [options].")
    file, *rest = arguments
    study = load_study(file)
    study = quicker(study) if "--quick" in rest else study
    defaults = RunOptions(base=study.base)
    if set(rest) & {"-h", "--help"}:
        show_help(defaults, PROG)
    given = given_options(rest, PROG)
    _refuse(study, given)
    options = read_options(defaults, given, PROG)
    before, study = study, changed(study, options, given)
    for note in tuning_notes(before, study, given):
        print(f"note: {note}", file=sys.stderr)
    out = options.out or Path("out") / study.name
    if options.dry_run:
        plan = check_study(study, options.jobs, options.checkpoint_every)
        points = {run_id(replace(planned.run, seed=0)): planned.run for planned in plan.known({}).values()}
        for point in points.values():
            check_names(point)
        check_on(options.on, options.gpus_per_run)
        stacking(options.stack)
        print(forecast(study, out, jobs=options.jobs, keep=options.keep, on=options.on))
        return 0
    command = shlex.join(["syncnorm", "run", *arguments])
    results = run_study(
        study,
        out,
        jobs=options.jobs,
        on=options.on,
        gpus_per_run=options.gpus_per_run,
        wandb=options.wandb,
        track=options.track,
        keep=options.keep,
        save_models=options.save_models,
        checkpoint_every=options.checkpoint_every,
        stack=options.stack,
        command=command,
    )
    return show(out, results) if rank() == 0 else 0


def changed(study: Study, options: RunOptions, given: Sequence[Given]) -> Study:
    """Return the study with the command line's options applied."""
    names = [one.name.replace("world.no_", "world.") for one in given]
    refuse_varied(study, [name for name in names if name in set(option_names(study.base))])
    study = replace(study, base=options.base)
    if options.seeds is not None:
        also = tuple(replace(grid, seeds=grid.seeds and min(grid.seeds, options.seeds)) for grid in study.also)
        study = replace(study, seeds=options.seeds, also=also)
    if options.first_seed is not None:
        study = replace(study, first_seed=options.first_seed)
    if options.trials is not None and (study.tune is None or options.no_tune):
        raise UserError("the study tunes nothing, so there are no trials to count: leave --trials out.")
    if study.tune and options.trials is not None:
        study = replace(study, tune=replace(study.tune, trials=options.trials, total=None))
    study = with_vary(replace(study, tune=None) if options.no_tune else study, options.vary)
    return with_engine(study, options.engine) if options.engine else study


def tuning_notes(before: Study, study: Study, given: Sequence[Given]) -> list[str]:
    """Return sentences on options that change what a study tunes."""
    if before.tune is None or any(one.name == "no_tune" for one in given):
        return []
    still = study.tune.fields() if study.tune else []
    notes = [f"{name} is varied, so it is not tuned." for name in before.tune.fields() if name not in still]
    paths = {".".join(field_path(study.base, name)): name for name in still if has_field(study.base, name)}
    for one in given:
        if one.name in paths:
            name = paths[one.name]
            notes.append(f"{name} is tuned: {one.flag} sets the shared value alone; --vary {name}=VALUE fixes it.")
    return notes


def _refuse(study: Study, given: Sequence[Given]) -> None:
    """Raise `UserError` for options of a single run that a study cannot have."""
    names = [one.name for one in given]
    if "seed" in names:
        raise UserError("a study runs several seeds: write --first-seed K for the first, --seeds N for their number.")
    if "optim.epochs" in names and study.base.world.step == "round":
        raise UserError("clients train in rounds: write --world.rounds N in place of --optim.epochs.")
    for one in given:
        if one.name == "vary" and not one.texts:
            raise UserError("--vary needs a field and its values, such as norm=bn,gn.")
