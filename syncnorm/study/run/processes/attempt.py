"""One attempt at a run: its result, or the reason for its failure."""

import json
import re
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from typing import Protocol

from syncnorm.config import Execution, Result, Run, run_id
from syncnorm.environment import environment
from syncnorm.errors import UserError, where_raised


class Trainer(Protocol):
    """The functions that a study needs from the module that trains its runs, usually `syncnorm.worlds`."""

    def fit(self, run: Run, execution: Execution) -> Result:
        """Train and evaluate a run."""

    def check(self, run: Run) -> None:
        """Raise the `UserError` that `run` would raise."""

    def summary(self, run: Run) -> str:
        """Return a one-line summary of the data of `run`."""

    def forget(self) -> None:
        """Drop what `check` has cached."""


TRAINER = "syncnorm.worlds"
"""The module that trains the runs of a study."""


@dataclass(frozen=True)
class Failure:
    """The reason for a failed run."""

    error: str
    """One sentence."""
    detail: str = ""
    """Details for developers: a traceback, or the last lines that a dead process wrote."""
    users: bool = False
    """Whether it is the user's mistake; then trying again cannot help."""
    lost: bool = False
    """Whether the process, or another rank, died during the run; the checkpoint is then still valid."""


def attempt(trainer: Trainer, run: Run, execution: Execution) -> Result | Failure:
    """Return `trainer.fit(run, execution)`, checked to be storable; any exception becomes a `Failure`."""
    try:
        result = trainer.fit(run, execution)
        json.dumps(asdict(result))
    except UserError as error:
        return Failure(str(error), users=True)
    except (Exception, SystemExit) as error:
        why = f"{type(error).__name__}: {error}"
        return Failure(why, traceback.format_exc(), lost=isinstance(error, RuntimeError) and bool(_GONE.search(why)))
    return result if result.environment else replace(result, environment=environment())


_GONE = re.compile(r"Connection (closed|reset) by (remote )?peer|DistNetworkError|ncclRemoteError|no sign of life")
"""What the collectives of gloo and NCCL, and torch's store, say where another rank is gone."""


def refuse_mistakes(runs: Sequence[Run], trainer: Trainer, label: Callable[[Run], str]) -> list[str]:
    """Check `runs` for mistakes, and return one line per data set that they use.

    The trainer is called once for all seeds of a run.

    Raises:
        UserError: the first error that one of `runs` would raise, before any of them is trained.
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
            except Exception as error:  # usually from the user's own model
                what = f"{where_raised(error)}: {type(error).__name__}: {error}"
                raise UserError(f"{what} (In the run with {label(run)}.)") from error
    trainer.forget()
    return [line for line in data if line]


def load_trainer(name: str) -> Trainer:
    """Return the module that trains runs."""
    trainer: Trainer = import_module(name)
    return trainer
