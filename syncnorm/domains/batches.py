"""Training batches of several domains, in which every sample's domain is known."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot

from syncnorm.config import Domains
from syncnorm.data import augment, partition
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
    order, or of "one_domain" each, in random order. Of R ranks, each takes the samples that it holds in that order;
    sample i of a batch is one of rank i mod R. Samples that do not fill a batch (of all together, or of each domain,
    on each rank) are not used in this epoch.
    """
    holders, parts = holders_of(pool, seen, world, seed), []
    for order in _orders(pool, seen, world, seed, epoch):
        of_ranks = [order[:, holders[order[0]] == rank] for rank in range(world.ranks)]
        each = world.batch // world.ranks
        steps = min(part.shape[1] for part in of_ranks) // each
        columns = [part[:, : steps * each].reshape(2, steps, each) for part in of_ranks]
        parts += list(np.stack(columns, axis=-1).reshape(2, steps, world.batch).swapaxes(0, 1))
    if world.batches == "one_domain":
        parts = [parts[i] for i in np.random.default_rng(derive("mix", seed, epoch)).permutation(len(parts))]
    return [(torch.from_numpy(part[0].copy()), torch.from_numpy(part[1].copy())) for part in parts]


def _orders(pool: Pool, seen: Sequence[int], world: Domains, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """Return the order of the samples in an epoch, of each domain or of all together: indices and domains (2, n)."""
    orders = []
    for position, index in enumerate(seen):
        first, end = pool.starts[index], pool.starts[index + 1]
        order = np.random.default_rng(derive("domain order", seed, epoch, pool.names[index])).permutation(end - first)
        orders.append(np.stack([first + order, np.full(len(order), position)]))
    if world.batches == "mixed":
        orders = [np.concatenate(orders, axis=1)]
        orders[0] = orders[0][:, np.random.default_rng(derive("mix", seed, epoch)).permutation(orders[0].shape[1])]
    return orders


def holders_of(pool: Pool, seen: Sequence[int], world: Domains, seed: int) -> NDArray[np.int64]:
    """Return the rank that holds each training sample of the pool, the same in all epochs: (N,).

    `world.domain_skew` percent of the samples are sorted by domain before they are split among ranks.
    """
    holders = np.zeros(pool.starts[-1], dtype=np.int64)
    if world.ranks == 1:
        return holders
    places = np.concatenate([np.arange(pool.starts[index], pool.starts[index + 1]) for index in seen])
    domains = np.repeat(np.arange(len(seen)), [pool.starts[index + 1] - pool.starts[index] for index in seen])
    shards = partition(torch.from_numpy(domains), "sorted", world.ranks, seed, percent=world.domain_skew)
    for rank, shard in enumerate(shards):
        holders[places[shard.numpy()]] = rank
    return holders


def held_by_rank(pool: Pool, seen: Sequence[int], world: Domains, seed: int) -> dict[str, list[int]]:
    """Return how many training samples of each seen domain every rank holds."""
    holders = holders_of(pool, seen, world, seed)
    return {
        pool.names[index]: np.bincount(
            holders[pool.starts[index] : pool.starts[index + 1]], minlength=world.ranks
        ).tolist()
        for index in seen
    }


def check_batch(pool: Pool, seen: Sequence[int], world: Domains, seed: int) -> None:
    """Raise `UserError` if the samples of the domains, or of one of them, do not fill a batch on every rank."""
    held = held_by_rank(pool, seen, world, seed)
    if world.batches == "mixed":
        held = {"all domains together": [sum(of_rank) for of_rank in zip(*held.values(), strict=True)]}
    each = world.batch // world.ranks
    for name, sizes in held.items():
        if min(sizes) < each:
            rank = f" on rank {sizes.index(min(sizes))} of {world.ranks}" if world.ranks > 1 else ""
            share = "a rank's share of a batch" if world.ranks > 1 else "a batch"
            mend = "lower world.batch or world.ranks" if world.ranks > 1 else "lower world.batch"
            raise UserError(f"{share} has {each} samples, and {name} {min(sizes)} training samples{rank}: {mend}.")


def thinnest(dealt: Sequence[tuple[Tensor, Tensor]], ranks: int) -> tuple[int, int]:
    """Return the step and the part of its batch that have the fewest samples of a domain, of those it has.

    A batch has so many parts, of which part r has samples r, r + R, ...: what each rank normalises by itself.
    """
    ids = torch.stack([ids for _, ids in dealt]).view(len(dealt), -1, ranks)
    counts = one_hot(ids).sum(1)
    fewest = torch.where(counts > 0, counts, ids.numel()).amin(2)
    return divmod(int(fewest.argmin()), ranks)


class DomainBatches(Batches):
    """The batches of `deal`, epoch by epoch, from tensors on the device.

    rank: a real rank's number, for its part of each batch; None for all ranks in one process.
    """

    def __init__(
        self,
        pool: Pool,
        seen: Sequence[int],
        world: Domains,
        seed: int,
        kind: Kind,
        workers: int = 0,
        rank: int | None = None,
    ) -> None:
        super().__init__()
        self.workers, self.rank = workers, rank
        self.pool, self.seen, self.world, self.seed, self.kind = pool, seen, world, seed, kind
        self.steps = len(deal(pool, seen, world, seed, epoch=0))

    def deal(self, epoch: int, first: int, every: int = 1) -> Iterator[Batch]:
        """Yield the batches of an epoch from step `first` on, or of those every `every`-th."""
        device = self.pool.x.device
        dealt = deal(self.pool, self.seen, self.world, self.seed, epoch)
        rank, ranks = (0, 1) if self.rank is None else (self.rank, self.world.ranks)
        for step in range(first, len(dealt), every):
            index, ids = (part[rank::ranks].to(device) for part in dealt[step])
            x = augment(self.pool.x[index], self.kind, self.seed, epoch, step, rank, ranks)
            yield x, self.pool.y[index], ids
