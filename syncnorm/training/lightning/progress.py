"""Reports on a training that Lightning's Trainer runs."""

from typing import Any

import lightning.pytorch as pl

from syncnorm.config import Execution
from syncnorm.progress import Pace
from syncnorm.training.lightning.classifier import Classifier


class Report(pl.Callback):
    """Reports on a training that Lightning's Trainer runs."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._told = 0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Start the clock."""
        assert isinstance(module, Classifier)
        self._told = module.epochs_done
        begin = trainer.fit_loop.epoch_loop.batch_progress.current.ready  # of a partly finished epoch
        self._steps = int(trainer.num_training_batches)
        begin += self._told * self._steps
        self._pace = Pace(self._execution, "epoch", int(trainer.max_epochs or 1), self._steps, begin)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Report after a step if it is due: only then does the host wait for the device."""
        if self._pace.due():
            self._pace.tell(trainer.current_epoch * self._steps + batch_idx + 1, float(outputs["loss"]))

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Report the previous epoch."""
        self._epoch_ended(module)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Report the last epoch."""
        self._epoch_ended(module)

    def _epoch_ended(self, module: pl.LightningModule) -> None:
        assert isinstance(module, Classifier)
        if module.epochs_done > self._told:
            self._told = module.epochs_done
            metrics = module.latest()
            self._pace.tell(self._told * self._steps, metrics["train_loss"], metrics)
