"""The partition card: which client has which samples in a federated run, and how they were drawn."""

from hashlib import sha256
from typing import Any

import numpy as np

from syncnorm.data.partitions.client_noise import noise_level
from syncnorm.data.partitions.federated_dataset import FederatedDataset

LISTED = 1000
"""Up to this many clients, a card lists each one; otherwise, it summarises this many of them, the first ones."""


def partition_card(dataset: FederatedDataset) -> dict[str, Any]:
    """Return, as plain data, what is needed to reproduce the partition and to see its skew.

    `draws` is the number of draws for each domain until no client was too small (which conditions the distribution),
    and `options` are all options of the method. `clients` has each client's domain, numbers of training and
    validation samples, training samples of each class, and standard deviation of the noise; held-out clients are
    last. With validation, `without_validation` is the number of training clients (of the first thousand) that are too
    small for a validation sample. With more than a thousand clients, `summary` replaces `clients`. `sha256` is the
    hash of those clients' training and validation indices: per client, in order, relative to its domain, as
    little-endian int64.
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
        "validation": dataset.data.validation,
        **({"without_validation": len(dataset.without_validation)} if dataset.data.validation else {}),
        "noise": world.noise,
        "classes": list(pool.strata_names),
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
