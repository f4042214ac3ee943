"""From a run's configuration to a federated data set: load, partition, add noise, and cut to size."""

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
    task: str = "classification",
) -> FederatedDataset:
    """Load the domains and distribute their samples among the clients.

    Client k has domain k mod D of `world.domains` (or `data.name` alone); `world.skew` partitions the training
    samples of a domain among all of its clients, including held-out ones. `load_pool` loads several domains, and the
    limits of `data` apply to each. With the skew "natural", each value of the natural column is a client with its own
    test set; held-out clients are the last values. With the skew "resampled", clients may share samples, and nothing
    is stored per client.

    With another `task` than classification, skews go by the strata of its targets.

    `world.equal_size` keeps the first samples of each client, which are in random order, and `world.validation` takes
    samples from the end, both as fractions of the smallest training client (FedBN's protocol, arXiv 2102.07623).

    Raises `UserError` for settings that are unknown, out of range or inconsistent.
    """
    check_world(world)
    trained = world.domains or (data.name,)
    names = tuple(dict.fromkeys((*trained, *world.unseen)))
    apart = bool(world.domains or world.unseen)
    unseen = tuple(name for name in world.unseen if name not in trained)
    pool = load_pool(data, names, apart, torch.device(device), dtype, unseen, task)
    assignment = DomainAssignment(
        world.count, world.held_out, len(trained), tuple(names.index(name) for name in world.unseen)
    )
    partition = _partition(world, assignment, pool, seed)
    train_size, validation_size = _sizes(world, partition.smallest())
    x = _with_noise(world, assignment, partition, pool, seed)
    made = FederatedDataset(world, seed, pool, assignment, partition, x, train_size, validation_size)
    if isinstance(partition, DisjointPartition):
        for client in partition.parts:  # find a client without a test sample now, not after training
            made.test_weights(client)
    return made


def forget() -> None:
    """Drop the domains that this process has cached for its next run."""
    load_pool.cache_clear()


def _partition(world: Clients, assignment: DomainAssignment, pool: Pool, seed: int) -> Partition:
    labels = {name: pool.labels(number) for number, name in enumerate(pool.names)}
    options = world.skew_options if world.alpha is None else {**world.skew_options, "alpha": world.alpha}
    if world.skew == RESAMPLED:
        return SampledPartition(assignment, list(labels.values()), seed, options)
    return DisjointPartition(assignment, labels, world.skew, seed, options, _columns(pool))


def _columns(pool: Pool) -> list[dict[str, Any]]:
    """Return, for each domain, the columns besides the labels that a partition method may use."""
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
    """Return the number of training samples (None: no limit) and the number of validation samples, taken from the
    end."""
    sizes = {}
    for name, fraction in (("equal_size", world.equal_size), ("validation", world.validation)):
        # Rounded down, but 0.29 of 100 must be 29, not 28.
        sizes[name] = floor(fraction * smallest + 1e-9)
        if fraction > 0 and sizes[name] == 0:
            raise UserError(
                f"world.{name} is {fraction:g} of the smallest client's data, which has {smallest} samples: that is "
                "none, so raise it or use fewer clients."
            )
    return sizes["equal_size"] or None, sizes["validation"]
