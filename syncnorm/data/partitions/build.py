"""From a run's configuration to who holds what: domains loaded, partitioned, noised and cut to size."""

from math import floor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from syncnorm.config import RESAMPLED, Clients, Data
from syncnorm.data.domain_pool import Pool, load_pool
from syncnorm.data.partitions.client_noise import noisy_training
from syncnorm.data.partitions.client_partition import (
    DisjointPartition,
    DomainAssignment,
    Partition,
    SampledPartition,
)
from syncnorm.data.partitions.federated_dataset import FederatedDataset
from syncnorm.data.partitions.world_checks import check_world
from syncnorm.errors import UserError


def make_federated_dataset(
    data: Data,
    world: Clients,
    seed: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> FederatedDataset:
    """Load the domains and give every client what it holds.

    Client k holds domain k mod D of `world.domains` (or of `data.name` alone); `world.skew` partitions the training
    samples of a domain among all of its clients, held-out ones included. Several domains are loaded as `load_pool`
    says, and the limits of `data` hold for each. The skew "natural" makes each value of the natural column a client
    with a test set of its own; held-out clients are the last of the values. The skew "resampled" lets clients share
    samples and costs nothing per client.

    `world.equal_size` keeps the first samples of each client, in random order, and `world.validation` takes its
    samples off the end, both in units of the smallest training client (FedBN's protocol, arXiv 2102.07623).

    Raises `UserError` for whatever of this is unknown, out of range or does not go together.
    """
    check_world(world)
    trained = world.domains or (data.name,)
    names = tuple(dict.fromkeys((*trained, *world.unseen)))
    apart = bool(world.domains or world.unseen)
    unseen = tuple(name for name in world.unseen if name not in trained)
    pool = load_pool(data, names, apart, torch.device(device), dtype, unseen)
    assignment = DomainAssignment(
        world.count, world.held_out, len(trained), tuple(names.index(name) for name in world.unseen)
    )
    partition = _partition(world, assignment, pool, seed)
    train_size, validation_size = _sizes(world, partition.smallest())
    x = _with_noise(world, assignment, partition, pool, seed)
    made = FederatedDataset(world, seed, pool, assignment, partition, x, train_size, validation_size)
    if isinstance(partition, DisjointPartition):
        for client in partition.parts:  # a client without a test sample is better found now than after training
            made.test_weights(client)
    return made


def forget() -> None:
    """Drop the domains that this process keeps for its next run."""
    load_pool.cache_clear()


def _partition(world: Clients, assignment: DomainAssignment, pool: Pool, seed: int) -> Partition:
    labels = {name: pool.labels(number) for number, name in enumerate(pool.names)}
    options = world.skew_options if world.alpha is None else {**world.skew_options, "alpha": world.alpha}
    if world.skew == RESAMPLED:
        return SampledPartition(assignment, list(labels.values()), seed, options)
    return DisjointPartition(assignment, labels, world.skew, seed, options, _columns(pool))


def _columns(pool: Pool) -> list[dict[str, Any]]:
    """Return for each domain what a partition method may ask for beside the labels."""
    columns = []
    for number in range(len(pool.names)):
        natural, domain = pool.natural[number], pool.domain[number]
        size = pool.starts[number + 1] - pool.starts[number]
        columns.append(
            {
                "natural": natural and natural.train,
                "domains": domain.train if domain else np.full(size, number, np.int64),
            }
        )
    return columns


def _with_noise(world: Clients, assignment: DomainAssignment, partition: Partition, pool: Pool, seed: int) -> Tensor:
    """Return the pool's training samples, each with the noise of the client that holds it."""
    if not world.noise or not isinstance(partition, DisjointPartition):
        return pool.x
    parts = {
        client: torch.from_numpy(part + pool.starts[assignment.of(client)])
        for client, part in partition.parts.items()
    }
    return noisy_training(pool.x, parts, world, seed)


def _sizes(world: Clients, smallest: int) -> tuple[int | None, int]:
    """Return how many samples training is cut to (None: to none) and how many of the last are validation."""
    sizes = {}
    for name, fraction in (("equal_size", world.equal_size), ("validation", world.validation)):
        # Rounded down, but 0.29 of 100 is 29 and not 28.
        sizes[name] = floor(fraction * smallest + 1e-9)
        if fraction > 0 and sizes[name] == 0:
            raise UserError(
                f"world.{name} is {fraction:g} of the smallest client's data, which has {smallest} samples: that is "
                "none, so raise it or use fewer clients."
            )
    return sizes["equal_size"] or None, sizes["validation"]
