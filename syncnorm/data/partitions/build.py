"""From a run's configuration to a federated data set: load, partition, add noise, and cut to size."""

from collections.abc import Sequence
from dataclasses import replace
from math import ceil, floor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from syncnorm.config import RESAMPLED, Clients, Data
from syncnorm.data.domain_pool import Pool, load_pool
from syncnorm.data.mapped import by_rows
from syncnorm.data.normalise import signal_moments
from syncnorm.data.partitions.client_noise import noisy_training
from syncnorm.data.partitions.client_partition import (
    DisjointPartition,
    DomainAssignment,
    Partition,
    SampledPartition,
)
from syncnorm.data.partitions.federated_dataset import FederatedDataset
from syncnorm.data.partitions.sites import SITES, Site, make_sites
from syncnorm.data.partitions.world_checks import check_world
from syncnorm.data.sources.load import MEMORY
from syncnorm.data.sources.registered import is_registered
from syncnorm.errors import UserError


def make_federated_dataset(
    data: Data,
    world: Clients,
    seed: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    task: str = "classification",
    site: Site | None = None,
) -> FederatedDataset:
    """Load the domains and distribute their samples among the clients.

    Client k has domain k mod D of `world.domains` (or `data.name` alone); `world.skew` partitions the training
    samples of a domain among all of its clients, including held-out ones. `load_pool` loads several domains, and the
    limits of `data` apply to each. With the skew "natural", each value of the natural column is a client with its own
    test set; held-out clients are the last values. With the skew "resampled", clients may share samples, and nothing
    is stored per client.

    With another `task` than classification, skews go by the strata of its targets.

    `data.validation` holds out a fraction of each training client's own samples. Then `world.equal_size` keeps the
    first of the others, which are in random order: this fraction of all samples of the smallest training client, or
    all that are left if there are fewer (FedBN's protocol, arXiv 2102.07623). Samples that are normalised by measured
    moments (`Pool.measured`) are so by those of training samples without validation, unless clients share samples.

    Data called "sites" are those of `site`, the one that this process is (`syncnorm.data.partitions.sites`).

    Raises `UserError` for settings that are unknown, out of range or inconsistent.
    """
    check_world(world, data)
    folder = bool(data.path) and Path(data.path).is_dir()  # of domains, as at any other name
    if data.name == SITES and not folder and not is_registered(SITES):
        return make_sites(data, world, torch.device(device), dtype, seed, task, site)
    trained = world.domains or (data.name,)
    names = tuple(dict.fromkeys((*trained, *world.unseen)))
    apart = bool(world.domains or world.unseen)
    unseen = tuple(name for name in world.unseen if name not in trained)
    whole = replace(data, validation=0.0)  # each client holds out its own
    pool = load_pool(whole, names, apart, torch.device(device), dtype, unseen, seed, task)
    assignment = DomainAssignment(
        world.count, world.held_out, len(trained), tuple(names.index(name) for name in world.unseen)
    )
    partition = _partition(world, assignment, pool, seed)
    train_size = _train_size(world, partition.smallest())
    made = FederatedDataset(world, seed, pool, assignment, partition, pool.x, train_size, data)
    _check_validation(made)
    if data.validation and pool.measured and isinstance(partition, DisjointPartition):
        held = torch.cat([made.validation(client) for client in range(world.count)])
        made = replace(made, pool=_without(pool, held, unseen), loaded=pool)
    made = replace(made, x=_with_noise(world, assignment, partition, made.pool, seed))
    if isinstance(partition, DisjointPartition):
        for client in partition.parts:  # find a client without a test sample now, not after training
            made.test_weights(client)
    return made


def forget() -> None:
    """Drop the domains that this process has cached for its next run."""
    load_pool.cache_clear()
    MEMORY.clear()


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


def _without(pool: Pool, held: Tensor, unseen: Sequence[str]) -> Pool:
    """Return the pool normalised by its training samples without `held`, and without unseen domains."""
    kept = torch.ones(len(pool.x), dtype=torch.bool)
    kept[held] = False
    for number, name in enumerate(pool.names):
        kept[pool.starts[number] : pool.starts[number + 1]] &= name not in unseen
    mean, std = (part.to(pool.x.device) for part in signal_moments(pool.x.cpu(), kept, torch.float64))

    def scaled(part: Tensor) -> Tensor:
        return by_rows(lambda rows: ((rows.double() - mean) / std).to(rows.dtype), part)

    x, test_x = scaled(pool.x), scaled(pool.test_x)
    return replace(pool, x=x, test_x=test_x)


def _train_size(world: Clients, smallest: int) -> int | None:
    """Return the number of training samples of each client; None: no limit."""
    size = floor(world.equal_size * smallest + 1e-9)  # rounded down, but 0.29 of 100 must be 29, not 28
    if world.equal_size > 0 and size == 0:
        raise UserError(
            f"world.equal_size is {world.equal_size:g} of the smallest client's data, which has {smallest} samples: "
            "that is none, so raise it or use fewer clients."
        )
    return size or None


def _check_validation(made: FederatedDataset) -> None:
    """Raise `UserError` if no client has a validation sample."""
    fraction, counted = made.data.validation, len(made.counted)
    if fraction and len(made.without_validation) == counted:
        raise UserError(
            f"data.validation is {fraction:g}: a client needs {ceil(1 / fraction - 1e-9)} samples to hold out one: "
            f"none of {counted} clients has as many, so raise it or use fewer clients."
        )
