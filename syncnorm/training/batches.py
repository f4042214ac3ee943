"""Training batches by epoch and step, which can start in the middle of an epoch."""

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info


class Batches(pl.LightningDataModule):
    """A data module whose order depends only on epoch and step; subclasses define `deal`."""

    steps: int
    """Number of batches in an epoch."""
    resume_at: tuple[int, int] = (0, 0)
    """Epoch and step at which training starts."""
    workers: int = 0
    """Processes that make batches; 0: this one makes them."""

    def deal(self, epoch: int, first: int, every: int = 1) -> Iterator[Any]:
        """Yield the batches of an epoch from step `first` on, or of those every `every`-th."""
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
        first = step if epoch == resumed else 0
        if not batches.workers:
            yield from batches.deal(epoch, first)
            return
        source = _Dealt(batches.deal, epoch, first)
        yield from DataLoader(
            source,
            batch_size=None,
            num_workers=batches.workers,
            pin_memory=torch.cuda.is_available(),
            multiprocessing_context="fork",  # the data are not copied
            generator=torch.Generator(),  # else it would draw from the stream of the model's random layers
        )


class _Dealt(IterableDataset[Any]):
    """An epoch's batches; of W workers, worker w makes the batches w, w + W, w + 2 W, ..., which come in order."""

    def __init__(self, deal: Any, epoch: int, first: int) -> None:
        self._deal, self._epoch, self._first = deal, epoch, first

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        assert worker is not None
        return iter(self._deal(self._epoch, self._first + worker.id, worker.num_workers))
