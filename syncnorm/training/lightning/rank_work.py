"""Records what this rank does while Lightning's Trainer fits."""

from typing import Any

import lightning.pytorch as pl
from torch.nn.parallel import DistributedDataParallel

from syncnorm._torch import seconds_for_gradients, time_gradients
from syncnorm.training.lightning.classifier import Classifier
from syncnorm.training.ranks.work import Work


class RankWork(pl.Callback):
    """Leaves the `training.ranks.work.Work` of this rank in the classifier's `work`."""

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Start the clock."""
        self._work = Work(trainer.strategy.root_device)
        ddp = trainer.strategy.model
        if isinstance(ddp, DistributedDataParallel) and trainer.strategy.root_device.type == "cpu":
            time_gradients(ddp)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the samples of a step."""
        self._work.samples += len(batch[0])

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Stop the clock."""
        assert isinstance(module, Classifier)
        ddp = trainer.strategy.model
        if isinstance(ddp, DistributedDataParallel):
            self._work.waits += seconds_for_gradients(ddp)
        module.work = self._work.record()
