"""Run a study: skip finished runs, train the rest, write a row as each run ends, then write the report.

The study may be killed at any moment: when started again, it resumes and has lost at most the runs in progress.
"""

import logging
import time
import warnings
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from math import inf
from pathlib import Path

from syncnorm.config import MODELS, ClientEngine, Engine, Execution, Result, Run, why_alone
from syncnorm.environment import environment, rank, world_size
from syncnorm.errors import UserError
from syncnorm.progress import counted
from syncnorm.registry import refuse_while_importing
from syncnorm.study.plan.spec import Study, expand, with_engine
from syncnorm.study.plan.trials import Plan, plan_of
from syncnorm.study.report.plots.check import check_plots, check_tuning
from syncnorm.study.rows import Results, read_rows
from syncnorm.study.run.baselines import add_baselines, check_baselines
from syncnorm.study.run.changes import changed_rows, stale_ids
from syncnorm.study.run.executors.executor import Executor, Wish
from syncnorm.study.run.executors.registry import check_on, open_executor
from syncnorm.study.run.label import Label, labeller
from syncnorm.study.run.processes.attempt import TRAINER, Failure, load_trainer, refuse_mistakes
from syncnorm.study.run.processes.events import Advanced, Ended, Event, Moved, Placement, Started
from syncnorm.study.run.processes.launch import meet
from syncnorm.study.run.processes.ranks import Job, die_with_parent, ending_others, take_part
from syncnorm.study.run.processes.workers import work
from syncnorm.study.run.record import INTERRUPTED_SECONDS, Record, recording, start_trackers
from syncnorm.study.run.schedule import Schedule
from syncnorm.study.run.store import Store
from syncnorm.study.run.tracking.trackers import Kind, Mode

LOCAL, OFF = "local", "off"
AUTO = 20
"""Largest number of runs that train in one computation where "auto" chooses."""
DATA_LINES = 5
"""Maximum number of lines about loaded data."""


def run_study(
    study: Study,
    out: str | Path,
    *,
    jobs: int | None = None,
    on: str = LOCAL,
    gpus_per_run: float | None = None,
    engine: Engine | ClientEngine | None = None,
    wandb: Mode = "auto",
    keep: bool = False,
    track: Sequence[Kind] = (),
    trainer: str = TRAINER,
    command: str = "",
    save_models: bool = False,
    checkpoint_every: float = Execution.checkpoint_every,
    stack: str = OFF,
) -> Results | None:
    """Train a study's runs that the results folder `out` lacks, write the report there, and return its content.

    Virtual runs and runs of clients share `jobs` worker processes (by default one per core, four per CUDA device);
    torchrun runs of one size share a launch. `on` names the executor that starts them, with its address: "local",
    "ray:HOST:PORT", "slurm:partition=gpu". A run of one process gets `gpus_per_run` of a GPU. `engine` sets every
    run's engine. `trainer` names the module that trains; `command` is stored for the report. Runs write a checkpoint
    every `checkpoint_every` seconds, and resume from it after the study was killed. `wandb` is the mode of Weights &
    Biases, `track` names further trackers. `save_models` saves the trained weights of every run that is trained under
    `out`/models, for `syncnorm.load_run`. `stack` says how many train in one computation (`stacking`).
    In a process that torchrun started, all ranks together train the runs with exactly that number of ranks, and only
    rank 0 writes and returns something. A failed run gives a row with an error, and is tried again the next time. A
    finished run is trained again if the source code of a model or plugin, or the data, has changed, unless `keep` is
    set.

    Raises:
        UserError: an unusable study, folder, executor or world size, or a full disk.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after the report of the finished runs.
    """
    refuse_while_importing("run_study")
    study = with_engine(study, engine) if engine else study
    plan = check_study(study, jobs, checkpoint_every, trainer)
    check_on(on, gpus_per_run)
    size, stacked = world_size(), stacking(stack)
    if size is not None and not _leads(plan, size, on, trainer):
        return None
    label = labeller(plan)
    with ExitStack() as exits:
        exits.enter_context(ending_others())
        opened = open_executor(on, Wish("", jobs, gpus_per_run, Path(out))) if size is None else None
        executor = exits.enter_context(closing(opened)) if opened else None
        stale, notes = _examine(plan, Path(out), trainer, keep, label, size)
        store = exits.enter_context(Store.open(out, study, command, plan))
        store.finished -= stale
        schedule = Schedule(plan, store.rows, stale)
        record = Record(schedule, store, start_trackers(store.directory, wandb, track), label, command)
        models = store.directory / MODELS if save_models else None
        how = Placement(store.checkpoints, checkpoint_every, models, *stacked)
        with recording(record, notes + _not_stacked(schedule, how)):
            _train(record, trainer, executor, how, size)
            if trainer == TRAINER:
                add_baselines(study, [one.run for one in schedule.known.values()], store.directory, record.meter.say)
    return record.results


def stacking(text: str) -> tuple[int, bool]:
    """Return how many runs may train in one computation, and whether only where that is faster.

    Those can that differ in seed and numbers of the optimiser alone. "auto" means up to `AUTO`, and only where a few
    steps show that it is faster.

    A text that is neither "off", "auto" nor a number from 1 on raises `UserError`.
    """
    if text == "auto":
        return AUTO, True
    if text != OFF and not (text.isdecimal() and int(text)):
        raise UserError(f"stack is {text!r}: write off, auto, or the largest number of runs of a stack, such as 10.")
    return 1 if text == OFF else int(text), False


def _not_stacked(schedule: Schedule, how: Placement) -> list[str]:
    """Return lines on runs that are to be stacked, and whose settings forbid it."""
    if how.stack < 2 or how.if_faster:
        return []
    reasons = Counter(why for run in schedule.todo() if (why := why_alone(run)))
    return [
        f"note: {counted(number, 'run')} of {len(schedule.todo())} cannot be stacked: {why}."
        for why, number in reasons.items()
    ]


def _leads(plan: Plan, size: int, on: str, trainer: str) -> bool:
    """Meet the other ranks of the torchrun that started this process; all but rank 0 train until it has no more."""
    die_with_parent()  # before anything waits: a launcher that is killed takes the ranks' store along
    _check_size(plan, size, on)
    meet(plan.study.name)
    _silence()
    if rank() != 0:
        take_part((), load_trainer(trainer), lambda run, outcome: None)
    return rank() == 0


def _examine(
    plan: Plan, out: Path, trainer: str, keep: bool, label: Label, size: int | None
) -> tuple[set[str], list[str]]:
    """Check the runs to be trained, before any training, and the finished ones.

    Returns:
        Ids of finished runs made with other source code or data (none if they are kept), and lines to print: loaded
        data, and changes.

    Raises:
        UserError: the first mistake in a run to be trained, or in one that a line's ranges may lead to.
    """
    rows = read_rows(out)
    known = [one.run for one in Schedule(plan, rows).known.values()]
    changes = changed_rows(known, rows) if trainer == TRAINER else []  # another trainer's source is its own matter
    stale = stale_ids(changes, keep)
    schedule = Schedule(plan, rows, stale)
    unfinished = [run for run in schedule.todo() if size is None or run.world.processes() == size]
    probes = [
        probe
        for members, now in plan.standings(schedule.rows)
        for probe in members.probes
        if now.choice is None and size is None
    ]
    data = refuse_mistakes([*unfinished, *probes], load_trainer(trainer), label) if unfinished else []
    more = [f"data: {len(data) - DATA_LINES} more, of other runs"] if len(data) > DATA_LINES else []
    notes = [f"note: {change.sentence(keep)}." for change in changes]
    return stale, [*(f"data: {line}" for line in data[:DATA_LINES]), *more, *notes]


def check_study(study: Study, jobs: int | None, checkpoint_every: float, trainer: str = TRAINER) -> Plan:
    """Return a study's plan; a mistake that shows without data raises `UserError`."""
    if jobs is not None and jobs < 1:
        raise UserError(f"jobs is {jobs}: it must be at least 1.")
    if not 0 <= checkpoint_every < inf:
        raise UserError(f"checkpoint_every is {checkpoint_every}: it must be a number of seconds, at least 0.")
    plan, runs = plan_of(study), expand(study)
    check_plots(study, runs, names=trainer == TRAINER)
    check_tuning(plan, names=trainer == TRAINER)
    check_baselines(study, runs)
    return plan


def _train(record: Record, trainer: str, executor: Executor | None, how: Placement, size: int | None) -> None:
    """Train in processes that an executor starts, or with the `size` ranks of the torchrun that started this one."""
    if executor:
        _hand_out(record, trainer, executor, how)
    elif size:
        _train_together(record, trainer, how, size)


def _hand_out(record: Record, trainer: str, executor: Executor, how: Placement) -> None:
    """Train runs in worker processes and torchrun launches that the executor starts."""
    if words := executor.words():
        record.meter.say(f"note: {words}")
    for ranks in {run.world.processes() or 1 for run in record.schedule.todo()}:
        executor.slots(ranks)  # says at once what there is no room for
    with closing(_events(record.schedule, trainer, executor, how)) as events:
        for event in events:
            if isinstance(event, Started):
                record.started(event.run)
            elif isinstance(event, Advanced):
                record.advanced(event.run, event.progress)
            elif isinstance(event, Moved):
                record.moved(event.run, event.why)
            else:
                record.ended(event)


def _events(schedule: Schedule, trainer: str, executor: Executor, how: Placement) -> Generator[Event, None, None]:
    """Yield the events of all runs: first those of one process, then launch by launch, as long as there are more."""
    while todo := schedule.todo():
        ranks = min((run.world.processes() or 0 for run in todo), key=lambda ranks: ranks > 0) or None
        yield from work(
            schedule.hand_out(ranks),
            trainer,
            executor,
            ranks=ranks,
            how=how,
            later=partial(schedule.news, ranks),
            place=schedule.place,
        )


def _check_size(plan: Plan, size: int, on: str) -> None:
    """Raise `UserError` if no run of the study needs exactly `size` ranks, or something else is to start them."""
    if on != LOCAL:
        raise UserError(f"torchrun has started the ranks already, so --on {on} has nothing to do: leave it out.")
    runs = expand(plan.study)
    sizes = {ranks for run in runs if (ranks := run.world.processes()) is not None}
    if not sizes:
        raise UserError("the study has no torchrun runs: add --engine torchrun, or start it without torchrun.")
    if size not in sizes:
        known = ", ".join(map(str, sorted(sizes)))
        raise UserError(f"no run of the study needs {counted(size, 'rank')}: start torchrun with one of {known}.")


def _train_together(record: Record, trainer: str, how: Placement, size: int) -> None:
    """Train runs as rank 0 of the torchrun that started this process; a failure ends the process."""
    begin = time.monotonic()

    def source() -> Iterator[Job]:
        nonlocal begin
        while runs := record.schedule.hand_out(size):
            for run in runs:
                begin = time.monotonic()
                record.started(run)
                yield run, how.of(run)
        if waiting := record.schedule.waiting:
            record.meter.say(f"note: {waiting}; start the study without torchrun for their trials.")

    def emit(run: Run, outcome: Result | Failure) -> None:
        record.ended(Ended(run, outcome, time.monotonic() - begin, environment()))
        if isinstance(outcome, Failure):
            record.meter.say("a rank failed, so all ranks end: run the same command again for the other runs.")
            record.close(INTERRUPTED_SECONDS)

    take_part(source(), load_trainer(trainer), emit, record.advanced)


def _silence() -> None:
    """Keep libraries from writing between progress lines."""
    warnings.simplefilter("ignore")
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "torch", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
