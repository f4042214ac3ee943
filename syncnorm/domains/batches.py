"""Training batches of several domains, in which every sample's domain is known."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from syncnorm.config import Domains
from syncnorm.data import augment
from syncnorm.data.augment import Kind
from syncnorm.data.domain_pool import Pool
from syncnorm.errors import UserError
from syncnorm.seeds import derive
from syncnorm.training.batches import Batches

Batch = tuple[Tensor, Tensor, Tensor]
"""Samples (b, ...), labels (b,) and domains (b,), numbered among the training domains."""


def deal(pool: Pool, seen: Sequence[int], world: Domains, seed: int, epoch: int) -> list[tuple[Tensor, Tensor]]:
    """Return an epoch's batches: indices into the pool and domains (0 to S - 1), int64 (b,) each.

    Each domain reshuffles its samples every epoch. Batches are "mixed", taken from all domains' samples in one random
    order, or of "one_domain" each, in random order. Samples that do not fill a batch (of all together, or of each
    domain) are not used in this epoch.
    """
    orders = []
    for position, index in enumerate(seen):
        first, end = pool.starts[index], pool.starts[index + 1]
        order = np.random.default_rng(derive("domain order", seed, epoch, pool.names[index])).permutation(end - first)
        orders.append(np.stack([first + order, np.full(len(order), position)]))
    if world.batches == "mixed":
        orders = [np.concatenate(orders, axis=1)]
        orders[0] = orders[0][:, np.random.default_rng(derive("mix", seed, epoch)).permutation(orders[0].shape[1])]
    parts = [
        order[:, start : start + world.batch]
        for order in orders
        for start in range(0, order.shape[1] - world.batch + 1, world.batch)
    ]
    if world.batches == "one_domain":
        parts = [parts[i] for i in np.random.default_rng(derive("mix", seed, epoch)).permutation(len(parts))]
    return [(torch.from_numpy(part[0].copy()), torch.from_numpy(part[1].copy())) for part in parts]


def check_batch(pool: Pool, seen: Sequence[int], world: Domains) -> None:
    """Raise `UserError` if the samples of the domains, or of one of them, do not fill a batch."""
    sizes = {pool.names[index]: pool.starts[index + 1] - pool.starts[index] for index in seen}
    if world.batches == "mixed":
        sizes = {"all domains together": sum(sizes.values())}
    for name, size in sizes.items():
        if size < world.batch:
            raise UserError(
                f"a batch has {world.batch} samples, and {name} {size} training samples: lower world.batch."
            )


class DomainBatches(Batches):
    """The batches of `deal`, epoch by epoch, from tensors on the device."""

    def __init__(
        self, pool: Pool, seen: Sequence[int], world: Domains, seed: int, kind: Kind, workers: int = 0
    ) -> None:
        super().__init__()
        self.workers = workers
        self.pool, self.seen, self.world, self.seed, self.kind = pool, seen, world, seed, kind
        self.steps = len(deal(pool, seen, world, seed, epoch=0))

    def deal(self, epoch: int, first: int, every: int = 1) -> Iterator[Batch]:
        """Yield the batches of an epoch from step `first` on, or of those every `every`-th."""
        device = self.pool.x.device
        dealt = deal(self.pool, self.seen, self.world, self.seed, epoch)
        for step in range(first, len(dealt), every):
            index, ids = dealt[step][0].to(device), dealt[step][1]
            x = augment(self.pool.x[index], self.kind, self.seed, epoch, step)
            yield x, self.pool.y[index], ids.to(device)
