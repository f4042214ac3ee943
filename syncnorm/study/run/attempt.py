"""One run, tried once: its result, or why there is none."""

import json
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from typing import Protocol

from syncnorm.config import Execution, Result, Run, run_id
from syncnorm.environment import environment
from syncnorm.errors import UserError, where_raised


class Trainer(Protocol):
    """What a study asks of whatever trains its runs: the functions of a module, `syncnorm.worlds` as a rule."""

    def fit(self, run: Run, execution: Execution) -> Result:
        """Train and evaluate a run."""

    def check(self, run: Run) -> None:
        """Raise the `UserError` that `run` would end with."""

    def summary(self, run: Run) -> str:
        """Return one line that says what data `run` has."""

    def forget(self) -> None:
        """Drop what `check` has kept."""


TRAINER = "syncnorm.worlds"
"""The module that trains the runs of a study."""


@dataclass(frozen=True)
class Failure:
    """Why a run gave no result."""

    error: str
    """One sentence."""
    detail: str = ""
    """What a developer wants: a traceback, or the last lines that a dead process wrote."""
    users: bool = False
    """Whether it is the user's to mend; trying again cannot help then."""
    lost: bool = False
    """Whether the process died under the run, which says nothing against its checkpoint."""


def attempt(trainer: Trainer, run: Run, execution: Execution) -> Result | Failure:
    """Return what `trainer.fit(run, execution)` gives, checked to be storable; any exception becomes a `Failure`."""
    try:
        result = trainer.fit(run, execution)
        json.dumps(asdict(result))
    except UserError as error:
        return Failure(str(error), users=True)
    except (Exception, SystemExit) as error:
        return Failure(f"{type(error).__name__}: {error}", traceback.format_exc())
    return result if result.environment else replace(result, environment=environment())


def refuse_mistakes(runs: Sequence[Run], trainer: Trainer, label: Callable[[Run], str]) -> list[str]:
    """Return what data `runs` have, a line each, having found no mistake in any of them.

    The trainer is asked once for all seeds of a run.

    Raises:
        UserError: the first error that one of `runs` would end with, before any of them is trained.
    """
    asked: set[str] = set()
    data: dict[str, None] = {}
    for run in runs:
        if (name := run_id(replace(run, seed=0))) not in asked:
            asked.add(name)
            try:
                trainer.check(run)
                data[trainer.summary(run)] = None
            except UserError as error:
                raise UserError(f"{error} (In the run with {label(run)}.)") from error
            except Exception as error:  # of the user's own model, as a rule
                what = f"{where_raised(error)}: {type(error).__name__}: {error}"
                raise UserError(f"{what} (In the run with {label(run)}.)") from error
    trainer.forget()
    return [line for line in data if line]


def load_trainer(name: str) -> Trainer:
    """Return the module that trains."""
    trainer: Trainer = import_module(name)
    return trainer
