"""One run, tried once: its result, or why there is none."""

import json
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path

from syncnorm.config import Result, Run, run_id
from syncnorm.environment import environment
from syncnorm.errors import UserError

Fit = Callable[[Run, Path | None], Result]
"""Trains a run; the folder is where it may keep a checkpoint and finds one."""
FIT = "syncnorm.study.fit:fit"


@dataclass(frozen=True)
class Failure:
    """Why a run gave no result."""

    error: str
    """One sentence."""
    detail: str = ""
    """What a developer wants: a traceback, or the last lines that a dead process wrote."""
    users: bool = False
    """Whether it is the user's to mend; trying again cannot help then."""


def attempt(fit: Fit, run: Run, checkpoint: Path | None = None) -> Result | Failure:
    """Return what `fit(run, checkpoint)` gives, checked to be storable; any exception becomes a `Failure`."""
    try:
        result = fit(run, checkpoint)
        json.dumps(asdict(result))
    except UserError as error:
        return Failure(str(error), users=True)
    except (Exception, SystemExit) as error:
        return Failure(f"{type(error).__name__}: {error}", traceback.format_exc())
    return result if result.environment else replace(result, environment=environment())


def refuse_mistakes(runs: Sequence[Run], fit: str, label: Callable[[Run], str]) -> None:
    """Raise the first error that one of `runs` would end with as a `UserError`, before any of them is trained.

    Asks the function `check` beside the fit that "package.module:function" names, once for all seeds of a run; a
    module without one has nothing to ask.
    """
    if not runs:
        return
    module = import_module(fit.partition(":")[0])
    check: Callable[[Run], None] | None = getattr(module, "check", None)
    forget: Callable[[], None] | None = getattr(module, "forget", None)
    if check is None:
        return
    asked = set()
    for run in runs:
        if (name := run_id(replace(run, seed=0))) not in asked:
            asked.add(name)
            try:
                check(run)
            except UserError as error:
                raise UserError(f"{error} (In the run with {label(run)}.)") from error
            except Exception as error:  # of the user's own model, as a rule
                frame = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{frame.filename}, line {frame.lineno}"
                what = f"{where}: {type(error).__name__}: {error}"
                raise UserError(f"{what} (In the run with {label(run)}.)") from error
    if forget is not None:
        forget()


def load_fit(name: str) -> Fit:
    """Return the function that "package.module:function" names."""
    module, _, function = name.partition(":")
    fit: Fit = getattr(import_module(module), function)
    return fit
