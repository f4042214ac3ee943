"""The partition card: who holds what in a federated run, and how that was drawn."""

from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np

from syncnorm.data.partitions.client_noise import noise_level

if TYPE_CHECKING:
    from syncnorm.data.partitions.population import Population

LISTED = 1000
"""Clients up to which a card says what each one holds; of more, it sums up the first that many."""


def partition_card(population: "Population") -> dict[str, Any]:
    """Return what another group needs to deal the same data the same way, and to see how skewed it is: plain data.

    `draws` says by domain how often the partition was drawn until no client was too small (which conditions its
    distribution), `options` all options of the method. `clients` has for each client, held-out ones last, its domain,
    numbers of training and validation samples, training samples of each class and standard deviation of its noise.
    With more than a thousand clients `summary` stands in its place. `sha256` is of those clients' training and
    validation indices: per client, as they count in its domain, in order, as little-endian int64.
    """
    world, holdings, pool = population.world, population.holdings, population.pool
    listed = range(min(population.homes.total, LISTED))
    everyone = population.homes.total <= LISTED
    return {
        "method": world.skew,
        "alpha": holdings.options.get("alpha"),
        "options": {name: value for name, value in holdings.options.items() if name != "alpha"},
        "seed": population.seed,
        "draws": holdings.draws,
        "count": population.count,
        "held_out": population.held_out,
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
        "sha256": _digest(population, listed),
        **(
            {"clients": [_client(population, client) for client in listed]}
            if everyone
            else {"summary": _summary(population, listed)}
        ),
    }


def _client(population: "Population", client: int) -> dict[str, Any]:
    histogram = population.histogram(client).tolist()
    return {
        "client": client,
        "domain": population.domain(client),
        "held_out": client >= population.count,
        "train": sum(histogram),
        "validation": len(population.validation(client)),
        "noise": noise_level(population.world, client),
        "histogram": histogram,
    }


def _summary(population: "Population", listed: range) -> dict[str, Any]:
    sizes = [len(population.train(client)) for client in listed]
    return {
        "first": len(listed),
        "train": sum(sizes),
        "smallest": min(sizes),
        "median": float(np.median(sizes)),
        "largest": max(sizes),
    }


def _digest(population: "Population", listed: range) -> str:
    digest = sha256()
    for client in listed:
        start = population.pool.starts[population.homes.of(client)]
        for part in (population.train(client), population.validation(client)):
            digest.update((part - start).numpy().astype("<i8").tobytes())
    return digest.hexdigest()
