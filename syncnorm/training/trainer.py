"""Lightning's Trainer, as every world that trains by it starts it."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl

from syncnorm.config import Run
from syncnorm.training.classifier import Classifier


def run_trainer(run: Run, classifier: Classifier, batches: pl.LightningDataModule, **placement: Any) -> None:
    """Train a run's classifier for its epochs; `placement` are the Trainer's arguments for where."""
    with quiet():
        trainer = pl.Trainer(
            max_epochs=run.optim.epochs,
            precision="64-true" if run.precision == "float64" else "32-true",
            barebones=True,
            use_distributed_sampler=False,
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
