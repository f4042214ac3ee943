"""The `syncnorm` command.

syncnorm run EXPERIMENT.py [options]    train a study and report it; --help shows the study's own defaults
syncnorm report DIR                     write tables, figures and page again from the rows in DIR
"""

import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from traceback import extract_tb
from typing import Annotated, Any, TypeVar

import tyro

from syncnorm.config import ClientEngine, Engine, Run
from syncnorm.errors import UserError, unknown
from syncnorm.study.plan.override import refuse_varied, with_vary
from syncnorm.study.plan.spec import Study, quicker, with_engine
from syncnorm.study.rows import read
from syncnorm.study.run.ranks import rank
from syncnorm.study.run.runner import run_study
from syncnorm.study.run.tracking import Mode

Options = TypeVar("Options")


@dataclass(frozen=True)
class RunOptions:
    """Train what a study still lacks, and write its tables, figures and page.

    Started again it goes on where it was. Options of the study's base run (data, model, norm, world, optim)
    hold for all of its runs, and are refused for what the study varies: --vary replaces those values.
    """

    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """The study's own small version, into a folder of its own."""
    out: Path | None = None
    """Folder of the results; out/NAME OF THE STUDY if not given."""
    seeds: int | None = None
    """Number of seeds, 0 to N-1."""
    vary: tuple[str, ...] = ()
    """Fields and the values that they take, e.g. norm=bn,gn per-device-batch=2,32 skew=0."""
    jobs: int | None = None
    """Number of worker processes; one a core, at most four a CUDA device, if not given."""
    engine: Engine | ClientEngine | None = None
    """The engine of every run: virtual or torchrun for devices, cohort, loop, flower or auto for clients."""
    wandb: Mode = "auto"
    """Weights & Biases mirror of the rows; auto is online where WANDB_API_KEY is set, else offline."""
    base: Annotated[Run, tyro.conf.arg(name="")] = field(default_factory=Run)


@dataclass(frozen=True)
class ReportOptions:
    """Write tables, figures and page again from the rows of a results folder."""

    directory: Annotated[Path, tyro.conf.Positional]
    """The --out folder of a run."""


def main() -> int:
    """Run the command in `sys.argv`; return its exit code.

    0 done, 1 some runs failed, 2 the user's mistake (one sentence on stderr), 130 interrupted,
    141 nobody reads stdout.
    """
    commands: dict[str, Callable[[list[str]], int]] = {"run": run, "report": report}
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(__doc__.strip())
        return 0
    try:
        if name not in commands:
            raise unknown("command", name, commands)
        return commands[name](arguments)
    except UserError as error:
        if rank() != 0:
            time.sleep(5)  # rank 0 says the same, and torchrun then ends this rank
        print(f"syncnorm: {error}", file=sys.stderr, flush=True)
        return 2
    except BrokenPipeError:  # of the printing at the end, e.g. into `head`: all files are written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("interrupted: finished runs are kept, and the same command goes on from there.", file=sys.stderr)
        return 130


def run(arguments: list[str]) -> int:
    """`syncnorm run EXPERIMENT.py [options]`."""
    prog = "syncnorm run EXPERIMENT.py"
    if not arguments or arguments[0].startswith("-"):
        if set(arguments) & {"-h", "--help"}:
            _parse(RunOptions, ["--help"], prog, RunOptions())
        raise UserError("write the experiment file first: syncnorm run EXPERIMENT.py [options].")
    file, *rest = arguments
    study = load_study(file)
    study = quicker(study) if "--quick" in rest else study
    options = _parse(RunOptions, rest, prog, RunOptions(base=study.base))
    study = _changed(study, options, rest)
    out = options.out or Path("out") / study.name
    command = shlex.join(["syncnorm", "run", *arguments])
    run_study(study, out, jobs=options.jobs, wandb=options.wandb, command=command)
    return _show(out) if rank() == 0 else 0


def report(arguments: list[str]) -> int:
    """`syncnorm report DIR`."""
    from syncnorm.study.report.report import write_report

    directory = _parse(ReportOptions, arguments, "syncnorm report").directory
    write_report(directory)
    return _show(directory)


def load_study(file: str) -> Study:
    """Return the STUDY that a Python file defines; anything wrong with the file raises `UserError`, with
    its line.

    The file's folder and the working directory become importable, for models and layers of the user's own.
    """
    path = Path(file)
    if not path.is_file():
        raise UserError(f"there is no experiment file {path}.")
    sys.path.extend(str(folder) for folder in (path.parent.resolve(), Path.cwd()) if str(folder) not in sys.path)
    spec = spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file: its name must end in .py.")
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        where = path if error.filename == str(path.resolve()) else error.filename
        raise UserError(f"{where}, line {error.lineno}: {error.msg}.") from error
    except Exception as error:
        lines = [frame.lineno for frame in extract_tb(error.__traceback__) if frame.filename == str(path.resolve())]
        where = f"{path}, line {lines[-1]}" if lines else str(path)
        what = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise UserError(f"{where}: {what}{error}") from error
    study = getattr(module, "STUDY", None)
    if not isinstance(study, Study):
        raise UserError(f"{path} defines no STUDY: write STUDY = Study(...) with syncnorm.study.Study.")
    return study


def _parse(kind: type[Options], arguments: Sequence[str], prog: str, default: Options | None = None) -> Options:
    extra: dict[str, Any] = {} if default is None else {"default": default}
    config = (tyro.conf.AvoidSubcommands,)  # the world is the study's: none to choose
    parsed: tuple[Options, list[str]] = tyro.cli(
        kind, args=arguments, prog=prog, return_unknown_args=True, config=config, **extra
    )
    options, rest = parsed
    for text in rest:
        if text.startswith("-"):
            raise unknown("option", text, (f"--{name.replace('_', '-')}" for name in _names(default or kind)))
        raise UserError(f"'{text}' belongs to no option: see {prog} --help.")
    return options


def _names(node: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of the options that a dataclass and those within it have."""
    for item in fields(node):
        value = getattr(node, item.name, None)
        if is_dataclass(value):
            yield from _names(value, "" if isinstance(value, Run) else f"{prefix}{item.name}.")
        elif not isinstance(value, dict):  # options of models and layers: in the file only
            yield prefix + item.name


def _changed(study: Study, options: RunOptions, arguments: Sequence[str]) -> Study:
    """Return the study with the options of the command line put in."""
    given = [text[2:].partition("=")[0].replace("-", "_") for text in arguments if text.startswith("--")]
    given = [name.replace("world.no_", "world.") for name in given]
    if "seed" in given:
        raise UserError("a study runs seeds 0 to N-1: write --seeds N in place of --seed.")
    if "optim.epochs" in given and study.base.world.step == "round":
        raise UserError("clients train in rounds: write --world.rounds N in place of --optim.epochs.")
    if "vary" in given and not options.vary:
        raise UserError("--vary needs a field and its values, such as norm=bn,gn.")
    refuse_varied(study, [name for name in given if name in set(_names(study.base))])
    study = replace(study, base=options.base)
    if options.seeds is not None:
        also = tuple(replace(grid, seeds=grid.seeds and min(grid.seeds, options.seeds)) for grid in study.also)
        study = replace(study, seeds=options.seeds, also=also)
    study = with_vary(study, options.vary)
    return with_engine(study, options.engine) if options.engine else study


def _show(directory: Path) -> int:
    """Print what a results folder holds; return the exit code that its failed runs mean."""
    from syncnorm.study.report.console import layers_found, main_table  # scipy: not a cost of starting

    results = read(directory)
    if table := main_table(results):
        print(f"\n{table}\n")
    if layers := layers_found(results):
        print(layers)
    print(f"{directory / 'report.html'}\n{directory / 'runs.jsonl'}", flush=True)
    failed = results.failed
    if failed:
        of = f"{len(failed)} of {len(results.about.runs)} runs failed"
        print(f"{of}, the first with: {failed[0]['error']}", file=sys.stderr)
    return 1 if failed else 0
