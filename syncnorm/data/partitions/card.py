"""The partition card: who holds what in a federated run, and how that was drawn."""

from hashlib import sha256
from typing import Any

import numpy as np

from syncnorm.data.partitions.client_noise import noise_level
from syncnorm.data.partitions.federated_dataset import FederatedDataset

LISTED = 1000
"""Clients up to which a card says what each one holds; of more, it sums up the first that many."""


def partition_card(dataset: FederatedDataset) -> dict[str, Any]:
    """Return, as plain data, what another group needs to make the same partition and to see how skewed it is.

    `draws` says by domain how often the partition was drawn until no client was too small (which conditions its
    distribution), `options` all options of the method. `clients` has for each client, held-out ones last, its domain,
    numbers of training and validation samples, training samples of each class and standard deviation of its noise.
    With more than a thousand clients `summary` stands in its place. `sha256` is of those clients' training and
    validation indices: per client, as they count in its domain, in order, as little-endian int64.
    """
    world, partition, pool = dataset.world, dataset.partition, dataset.pool
    listed = range(min(dataset.assignment.total, LISTED))
    everyone = dataset.assignment.total <= LISTED
    return {
        "method": world.skew,
        "alpha": partition.options.get("alpha"),
        "options": {name: value for name, value in partition.options.items() if name != "alpha"},
        "seed": dataset.seed,
        "draws": partition.draws,
        "count": dataset.count,
        "held_out": dataset.held_out,
        "equal_size": world.equal_size,
        "validation": world.validation,
        "noise": world.noise,
        "classes": list(pool.class_names),
        "scale": pool.scale,
        "domains": [
            {
                "name": name,
                "train": pool.starts[number + 1] - pool.starts[number],
                "test": pool.test_starts[number + 1] - pool.test_starts[number],
            }
            for number, name in enumerate(pool.names)
        ],
        "sha256": _digest(dataset, listed),
        **(
            {"clients": [_client(dataset, client) for client in listed]}
            if everyone
            else {"summary": _summary(dataset, listed)}
        ),
    }


def _client(dataset: FederatedDataset, client: int) -> dict[str, Any]:
    histogram, natural = dataset.histogram(client).tolist(), dataset.natural(client)
    return {
        "client": client,
        "domain": dataset.domain(client),
        **({"natural": natural} if natural else {}),
        "held_out": client >= dataset.count,
        "train": sum(histogram),
        "validation": len(dataset.validation(client)),
        "noise": noise_level(dataset.world, client),
        "histogram": histogram,
    }


def _summary(dataset: FederatedDataset, listed: range) -> dict[str, Any]:
    sizes = [len(dataset.train(client)) for client in listed]
    return {
        "first": len(listed),
        "train": sum(sizes),
        "smallest": min(sizes),
        "median": float(np.median(sizes)),
        "largest": max(sizes),
    }


def _digest(dataset: FederatedDataset, listed: range) -> str:
    digest = sha256()
    for client in listed:
        start = dataset.pool.starts[dataset.assignment.of(client)]
        for part in (dataset.train(client), dataset.validation(client)):
            digest.update((part - start).numpy().astype("<i8").tobytes())
    return digest.hexdigest()
