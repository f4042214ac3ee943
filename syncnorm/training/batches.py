"""Training batches by epoch and step, which can start in the middle of an epoch."""

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl


class Batches(pl.LightningDataModule):
    """A data module whose order depends only on epoch and step; subclasses define `deal`."""

    steps: int
    """Number of batches in an epoch."""
    resume_at: tuple[int, int] = (0, 0)
    """Epoch and step at which training starts."""

    def deal(self, epoch: int, first: int) -> Iterator[Any]:
        """Yield the batches of an epoch from step `first` on."""
        raise NotImplementedError

    def train_dataloader(self) -> "_Epochs":
        """Return an iterable that yields the batches of the Trainer's current epoch each time it is iterated."""
        return _Epochs(self)


class _Epochs:
    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return self._batches.steps

    def __iter__(self) -> Iterator[Any]:
        batches = self._batches
        epoch = batches.trainer.current_epoch if batches.trainer else 0
        resumed, step = batches.resume_at
        yield from batches.deal(epoch, step if epoch == resumed else 0)
