"""Batches by index from tensors on the device: no workers, no copies to wait for."""

from collections.abc import Iterator, Sequence

from torch import Tensor

from syncnorm.data import Dataset, augment, rank_batches
from syncnorm.data.augment import Kind
from syncnorm.training.batches import Batches


class RankBatches(Batches):
    """Training batches of ranks that each have a shard, for one real rank or for all ranks in one process.

    In step s of an epoch, all ranks together get the samples from `rank_batches`: a real rank takes its column,
    virtual ranks take all columns, and sample i belongs to rank i mod R. Both augment a sample in the same way.

    Args:
        data: the data set, on the training device.
        shards: one tensor of sample indices per rank.
        per_device_batch: samples per rank and step.
        seed: seed of order and augmentation.
        kind: kind of augmentation, see `config.Data`.
        rank: a real rank's number; None for all ranks in one process.
        workers: processes that make batches.
    """

    def __init__(
        self,
        data: Dataset,
        shards: Sequence[Tensor],
        per_device_batch: int,
        seed: int,
        kind: Kind = "none",
        rank: int | None = None,
        workers: int = 0,
    ) -> None:
        super().__init__()
        self.data, self.shards, self.per_device_batch = data, shards, per_device_batch
        self.seed, self.kind, self.rank, self.workers = seed, kind, rank, workers
        self.steps = len(rank_batches(shards, per_device_batch, seed, epoch=0))

    def deal(self, epoch: int, first: int, every: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of an epoch from step `first` on, or of those every `every`-th."""
        dealt = rank_batches(self.shards, self.per_device_batch, self.seed, epoch)
        mine = dealt.flatten(1) if self.rank is None else dealt[:, :, self.rank]
        rank, ranks = (0, 1) if self.rank is None else (self.rank, len(self.shards))
        mine = mine.to(self.data.train_x.device)
        for step in range(first, len(mine), every):
            index = mine[step]
            x = self.data.train_x[index]
            yield augment(x, self.kind, self.seed, epoch, step, rank, ranks), self.data.train_y[index]
