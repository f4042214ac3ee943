"""The samples of its domain that each client has: partitioned in advance, or drawn on demand.

Sample indices here are relative to the client's domain, so that they do not change when domains are added.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from syncnorm.config import RESAMPLED
from syncnorm.data.partitions.client_skew import check_positive
from syncnorm.data.partitions.methods import draw_partition
from syncnorm.errors import UserError, unknown
from syncnorm.seeds import derive

Indices = NDArray[np.int64]

SAMPLES = 32
"""Default number of samples that a resampled client draws; the option `samples` overrides it."""


@dataclass(frozen=True)
class DomainAssignment:
    """Each client's domain, without a list of clients.

    Clients 0 .. count-1 train, the next `held_out` ones never do. Client k has domain k mod `domains`; if there are
    `unseen` domains, the held-out clients cycle through those instead (as numbers, like those of training domains).
    """

    count: int
    held_out: int
    domains: int
    unseen: tuple[int, ...]

    @property
    def total(self) -> int:
        """All clients."""
        return self.count + self.held_out

    def of(self, client: int) -> int:
        """Return the number of the client's domain."""
        if not 0 <= client < self.total:
            raise IndexError(f"client {client} of {self.total}")
        if client >= self.count and self.unseen:
            return self.unseen[(client - self.count) % len(self.unseen)]
        return client % self.domains

    def clients(self, domain: int) -> list[int]:
        """Return all clients of a domain, in order."""
        return [client for client in range(self.total) if self.of(client) == domain]


class Partition(Protocol):
    """The samples of clients. `draws`: number of draws for each domain; `options`: the method's options, with
    defaults."""

    options: dict[str, Any]
    draws: dict[str, int]

    def samples(self, client: int) -> Indices:
        """Return the client's samples in random order, as indices in its domain."""
        ...

    def smallest(self) -> int:
        """Return the number of samples of the smallest training client."""
        ...


class DisjointPartition:
    """Every sample of a domain belongs to at most one of its clients, including held-out ones.

    A domain's partition depends on the seed, its name, its columns and its number of clients, but not on other
    domains.
    """

    def __init__(
        self,
        assignment: DomainAssignment,
        labels: Mapping[str, Tensor],
        method: str,
        seed: int,
        options: dict[str, Any],
        columns: Sequence[Mapping[str, Any]],
    ) -> None:
        """Partition each domain's samples, in the order in which `assignment` numbers the domains.

        `columns` has, for each domain, the columns that a method may use, see `methods.COLUMNS`.
        """
        self.count = assignment.count
        self.draws: dict[str, int] = {}
        self.parts: dict[int, Indices] = {}
        for number, (name, y) in enumerate(labels.items()):
            clients = assignment.clients(number)
            where = f"domain '{name}': " if len(labels) > 1 else ""
            if len(clients) > len(y):
                raise UserError(
                    f"{where}{len(y)} training samples cannot be dealt to {len(clients)} clients: use fewer clients, "
                    f"or the skew {RESAMPLED}, which lets clients share samples."
                )
            own_seed = derive("clients", seed, name)
            try:
                drawn = draw_partition(y, method, len(clients), own_seed, options, columns[number], clients)
            except UserError as error:
                raise UserError(f"{where}{error}") from error
            self.options, self.draws[name] = drawn.options, drawn.draws
            # Some methods go class by class: without a shuffle, the first half of a client's samples would be half of
            # its classes.
            rng = np.random.default_rng(derive("clients' order", seed, name))
            for client, part in zip(clients, drawn.parts, strict=True):
                self.parts[client] = rng.permutation(part.numpy())

    def samples(self, client: int) -> Indices:
        """Return the client's samples in random order, as indices in its domain."""
        return self.parts[client]

    def smallest(self) -> int:
        """Return the number of samples of the smallest training client."""
        return min(len(self.parts[client]) for client in range(self.count))


class SampledPartition:
    """Each client draws its own samples from its domain; clients may share samples, and nothing is stored per client.

    For populations far larger than the data. Client k draws `samples` indices with its own seed, without replacement
    while samples last: uniformly, or, with `alpha`, by a class mix q ~ Dirichlet(alpha * prior), where `prior` is the
    share of each class in the domain (as in Hsu, Qi & Brown, arXiv 1909.06335).
    """

    def __init__(
        self, assignment: DomainAssignment, labels: Sequence[Tensor], seed: int, options: dict[str, Any]
    ) -> None:
        """Take the labels of each domain, in the order in which `assignment` numbers the domains."""
        self.options = {"samples": SAMPLES, "alpha": None, **options}
        for option in options:
            if option not in ("samples", "alpha"):
                raise unknown(f"option of the {RESAMPLED} skew", option, ["samples"])
        self.count, self.alpha = self.options["samples"], self.options["alpha"]
        if not isinstance(self.count, int) or self.count < 1:
            raise UserError(f"samples of the {RESAMPLED} skew is {self.count!r}: it must be a whole number from 1.")
        if self.alpha is not None:
            check_positive("alpha", self.alpha)
        self.assignment, self.seed, self.draws = assignment, seed, dict[str, int]()
        self.sizes = [len(y) for y in labels]
        self.classes = [_by_class(y.numpy()) for y in labels]

    def samples(self, client: int) -> Indices:
        """Return the client's samples in random order, as indices in its domain."""
        domain = self.assignment.of(client)
        rng = np.random.default_rng(derive("client's samples", self.seed, client))
        if self.alpha is None:
            return _draw(rng, self.sizes[domain], self.count)
        members = self.classes[domain]
        prior = np.array([len(one) for one in members]) / self.sizes[domain]
        wanted = rng.multinomial(self.count, rng.dirichlet(self.alpha * prior))
        drawn = [members[c][_draw(rng, len(members[c]), wanted[c])] for c in np.flatnonzero(wanted)]
        return rng.permutation(np.concatenate(drawn))

    def smallest(self) -> int:
        """Return the number of samples of every client."""
        return int(self.count)


def _by_class(labels: Indices) -> list[Indices]:
    return [np.flatnonzero(labels == value) for value in np.unique(labels)]


def _draw(rng: np.random.Generator, size: int, wanted: int) -> Indices:
    """Draw `wanted` of 0 .. size-1: all of them as often as possible, the rest without replacement."""
    rounds, rest = divmod(wanted, size)
    drawn = [rng.permutation(size) for _ in range(rounds)]
    return np.concatenate([*drawn, rng.choice(size, rest, replace=False)]).astype(np.int64, copy=False)
