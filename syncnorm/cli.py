"""The `syncnorm` command.

syncnorm run EXPERIMENT.py [options]    train a study and report it; --help shows the study's defaults
syncnorm report DIR                     rewrite tables, figures and page from the rows in DIR
syncnorm compare DIR DIR                compare two results folders of one study: other machine, seeds, version
syncnorm merge DIR DIR ... --out DIR    merge results folders of one study, from several machines, into one
syncnorm doctor MODEL [options]         say what is wrong with the norms of a model, or of a checkpoint
syncnorm list [KIND]                    norms, policies, algorithms, partitions, data, models, metrics, plugins, ...
syncnorm --version                      the version of this package
"""

import io
import os
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from syncnorm import __version__
from syncnorm.environment import note_exit, rank, world_size
from syncnorm.errors import UserError, unknown

_AS_PYTHON_DOES = warnings.formatwarning
COMMANDS = {
    "run": "syncnorm.commands.run:run",
    "report": "syncnorm.commands.report:report",
    "compare": "syncnorm.commands.compare:compare",
    "merge": "syncnorm.commands.merge:merged",
    "doctor": "syncnorm.commands.doctor:doctor",
    "list": "syncnorm.commands.catalog:catalog",
}


def main() -> int:
    """Run the command in `sys.argv`; return its exit code.

    0 done, 1 some runs failed, or the doctor found something wrong, 2 the user's mistake (one sentence on stderr),
    130 interrupted, 141 nobody reads stdout.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a sign that the terminal lacks is no reason to end
    warnings.formatwarning = _as_a_line
    code = _run()
    if code in (1, 2):
        note_exit(code)
    if code == 2 and rank() != 0:  # a thread that still waits for the first rank would abort a usual end
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _run() -> int:
    """Run the command in `sys.argv`; return its exit code."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print((__doc__ or "").strip())
        return 0
    if name == "--version":
        print(f"syncnorm {__version__}")
        return 0
    try:
        if name not in COMMANDS:
            raise unknown("command", name, COMMANDS)
        return _command(name)(arguments)
    except UserError as error:
        if world_size() is None:
            print(f"syncnorm: {error}", file=sys.stderr, flush=True)
        else:
            from syncnorm.study.run.processes.launch import say

            say(error)
        return 2
    except BrokenPipeError:  # from printing at the end, e.g. into `head`: all files are written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("interrupted: finished runs are kept; run the same command again to resume.", file=sys.stderr)
        return 130


def _as_a_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Write a warning of this package as a sentence, without the place in its source; others as Python does."""
    if Path(filename).is_relative_to(Path(__file__).parent):
        return f"syncnorm: {message}\n"
    return _AS_PYTHON_DOES(message, category, filename, lineno, line)


def _command(name: str) -> Callable[[list[str]], int]:
    """Import a command; the extra "study" installs the packages that it needs."""
    module, _, function = COMMANDS[name].partition(":")
    try:
        command: Callable[[list[str]], int] = getattr(import_module(module), function)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "syncnorm":
            raise
        raise UserError(
            f"the command needs the package '{error.name}', which is not installed (the layers do not): pip install "
            "'syncnorm[study]'."
        ) from error
    return command
