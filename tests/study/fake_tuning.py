"""A stand-in for training whose results depend on the learning rate: each norm is good at one of its own alone.

The environment variable FAKE_TEST "permuted" gives the test accuracy that shuffled test labels would. Every training
leaves a line in the file FAKE_JOURNAL; after FAKE_KILL of them, the process that started the study is killed.
"""

import os
import signal
import time
from contextlib import suppress
from math import exp, log, nan
from pathlib import Path

from syncnorm.config import Execution, Result, Run, describe, run_id
from syncnorm.seeds import derive

BEST = {"bn": 0.3, "gn": 0.02, "ln": 0.06}
"""The learning rate at which each norm is best; ten times as much where labels are sorted."""


def fit(run: Run, execution: Execution) -> Result:
    """Return a validation accuracy that falls with the distance to the norm's best learning rate, and noise."""
    _note(run)
    lr, norm = run.optim.lr, run.norm.name
    best = BEST[norm] * (10 if run.world.skew else 1)  # type: ignore[union-attr, operator]
    quality = exp(-((log(lr / best) / 0.8) ** 2))
    noise = 0.01 * derive("noise", run.seed, norm, str(lr)) / 2**63
    validation = 0.1 + 0.8 * quality + noise
    if norm == "bn" and lr > 0.7:
        validation = nan
    accuracy = 0.1 if os.environ.get("FAKE_TEST") == "permuted" else validation
    metrics = {"accuracy": accuracy, "validation_accuracy": validation}
    details = {"diverged": True} if validation != validation else {}
    return Result(run_id(run), describe(run), metrics, "own", 0.1, {}, {"train_loss": [1.0]}, details)


def check(run: Run) -> None:
    """Find no mistake in any run."""


def summary(run: Run) -> str:
    """Have no data to speak of."""
    return ""


def forget() -> None:
    """Have nothing to forget."""


def _note(run: Run) -> None:
    if journal := os.environ.get("FAKE_JOURNAL"):
        with Path(journal).open("a") as file:
            file.write(f"{run_id(run)}\n")
        after = int(os.environ.get("FAKE_KILL", "0"))
        if after and len(Path(journal).read_text().splitlines()) >= after:
            with suppress(FileExistsError):  # one of the workers kills the study: later its number may be another's
                Path(f"{journal}.killed").touch(exist_ok=False)
                os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)  # this process ends when its study has died
