"""Lightning's Trainer, as every world that trains by it starts it."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl

from syncnorm.config import Execution, Run, run_id, silent
from syncnorm.training.batches import Batches
from syncnorm.training.classifier import Classifier
from syncnorm.training.progress import Report
from syncnorm.training.resume import Resume


def run_trainer(run: Run, classifier: Classifier, batches: Batches, execution: Execution, **placement: Any) -> None:
    """Train a run's classifier for its epochs; `placement` are the Trainer's arguments for where.

    A run that was killed goes on from its checkpoint, to the same bits.
    """
    callbacks: list[pl.Callback] = []
    if execution.checkpoint:
        callbacks.append(Resume(execution.checkpoint, run_id(run), execution.checkpoint_every))
    if execution.report is not silent and int(os.environ.get("RANK", "0")) == 0:
        callbacks.append(Report(execution))
    with quiet():
        trainer = pl.Trainer(
            max_epochs=run.optim.epochs,
            precision="64-true" if run.precision == "float64" else "32-true",
            barebones=True,
            use_distributed_sampler=False,
            callbacks=callbacks,
            **placement,
        )
        trainer.fit(classifier, datamodule=batches)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's banners and hints out of a user's terminal."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        try:
            yield
        finally:
            logger.setLevel(level)
