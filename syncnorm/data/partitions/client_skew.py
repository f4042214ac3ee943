"""The ways in which federated studies partition one training set among clients; each definition has its own name.

Two definitions that share a name in the literature have two names here: Dirichlet by class (each class is split by
its own draw, so sizes vary too) and Dirichlet by client (each client draws its mix of classes, and sizes are equal)
differ at the same alpha. Every function takes labels (N,), the number of clients and a random generator, and returns
one index array per client, with every index exactly once. If a draw leaves a client with too few samples, the
function raises `TooSmall`, and `methods.draw_partition` calls it again.
"""

from numbers import Real

import numpy as np
from numpy.typing import NDArray

from syncnorm.errors import UserError

Indices = NDArray[np.int64]


class TooSmall(Exception):
    """A draw left a client with fewer than `min_size` samples; `sizes` are those of all clients, ascending."""

    def __init__(self, parts: list[Indices], min_size: int) -> None:
        """Store the sizes of `parts`."""
        self.sizes = sorted(map(len, parts))
        self.min_size = min_size
        super().__init__(f"a client has {self.sizes[0]} samples, fewer than {min_size}")


def dirichlet_by_class(
    labels: Indices,
    clients: int,
    rng: np.random.Generator,
    *,
    alpha: float = 0.5,
    balance: bool = False,
    min_size: int = 1,
) -> list[Indices]:
    """Split every class by its own draw q ~ Dirichlet(alpha, ..., alpha) over clients.

    With `balance`, a client that already has N / K samples gets none of the following classes, as NIID-Bench and
    PFLlib do (Li et al., arXiv 2102.02079). A draw that leaves a client with fewer than `min_size` samples is
    repeated, which conditions the distribution.
    """
    check_positive("alpha", alpha)
    parts: list[list[Indices]] = [[] for _ in range(clients)]
    for value in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == value))
        share = rng.dirichlet(np.full(clients, alpha))
        if balance:
            full = np.array([sum(map(len, part)) >= len(labels) / clients for part in parts])
            share = np.where(full, 0.0, share)
            share = share / share.sum() if share.sum() > 0 else ~full / (~full).sum()
        cuts = (np.cumsum(share)[:-1] * len(members)).round().astype(np.int64)
        for part, piece in zip(parts, np.split(members, cuts), strict=True):
            part.append(piece)
    return _large_enough([np.concatenate(part) for part in parts], min_size)


def dirichlet_by_client(
    labels: Indices, clients: int, rng: np.random.Generator, *, alpha: float = 0.5
) -> list[Indices]:
    """Let each client draw its mix of classes, q ~ Dirichlet(alpha * prior), at equal sizes (Hsu, Qi & Brown 2019).

    `prior` is the share of each class in the data. Samples are drawn without replacement; an exhausted class drops
    out of the mixes still to be filled (arXiv 1909.06335).
    """
    check_positive("alpha", alpha)
    values, counts = np.unique(labels, return_counts=True)
    pools = [rng.permutation(np.flatnonzero(labels == value)).tolist() for value in values]
    parts: list[list[int]] = []
    for size in (len(piece) for piece in np.array_split(labels, clients)):
        mix = rng.dirichlet(alpha * counts / counts.sum())
        part: list[int] = []
        while len(part) < size:
            left = np.array([len(pool) for pool in pools])
            open_ = np.where(left > 0, mix, 0.0)
            # A mix whose classes are all exhausted takes any remaining samples.
            chances = open_ / open_.sum() if open_.sum() > 0 else left / left.sum()
            wanted = np.minimum(rng.multinomial(size - len(part), chances), left)
            for pool, count in zip(pools, wanted, strict=True):
                part += [pool.pop() for _ in range(count)]
        parts.append(part)
    return [np.array(part, dtype=np.int64) for part in parts]


def pathological(
    labels: Indices, clients: int, rng: np.random.Generator, *, classes_per_client: int = 2
) -> list[Indices]:
    """Give each client exactly `classes_per_client` classes (McMahan et al., arXiv 1602.05629, by class).

    Classes are assigned in turn in random order, and a class is split equally among its owners. Raises `UserError` if
    the clients together cannot hold every class.
    """
    values = rng.permutation(np.unique(labels))
    if not 1 <= classes_per_client <= len(values):
        raise UserError(
            f"classes_per_client is {classes_per_client}: it must lie between 1 and the {len(values)} classes there "
            "are."
        )
    if clients * classes_per_client < len(values):
        raise UserError(
            f"{clients} clients with {classes_per_client} classes each cannot hold {len(values)} classes: use more "
            "clients, or more classes_per_client."
        )
    hands = [
        [(client * classes_per_client + slot) % len(values) for slot in range(classes_per_client)]
        for client in range(clients)
    ]
    parts: list[list[Indices]] = [[] for _ in range(clients)]
    for position, value in enumerate(values):
        owners = [client for client, hand in enumerate(hands) if position in hand]
        members = rng.permutation(np.flatnonzero(labels == value))
        for owner, piece in zip(owners, np.array_split(members, len(owners)), strict=True):
            parts[owner].append(piece)
    return [np.concatenate(part) for part in parts]


def shards(labels: Indices, clients: int, rng: np.random.Generator, *, shards_per_client: int = 2) -> list[Indices]:
    """Sort by label, cut into `shards_per_client` * K equal shards, and assign them at random (arXiv 1602.05629).

    A shard may have two classes, so a client may have up to twice as many classes as shards.
    """
    count = clients * shards_per_client
    if shards_per_client < 1 or count > len(labels):
        raise UserError(
            f"shards_per_client is {shards_per_client}: it must be at least 1 and leave a sample for each shard "
            f"({len(labels)} samples, {clients} clients)."
        )
    mixed = rng.permutation(len(labels))
    pieces = np.array_split(mixed[np.argsort(labels[mixed], kind="stable")], count)
    dealt = rng.permutation(count).reshape(clients, shards_per_client)
    return [np.concatenate([pieces[shard] for shard in hand]) for hand in dealt]


def quantity(
    labels: Indices, clients: int, rng: np.random.Generator, *, beta: float = 0.5, min_size: int = 1
) -> list[Indices]:
    """Draw the clients' shares of the data from Dirichlet(beta, ..., beta); labels are IID (arXiv 2102.02079).

    The draw is repeated, as in `dirichlet_by_class`, if a client gets fewer than `min_size` samples.
    """
    check_positive("beta", beta)
    share = rng.dirichlet(np.full(clients, beta))
    cuts = (np.cumsum(share)[:-1] * len(labels)).round().astype(np.int64)
    return _large_enough(np.split(rng.permutation(len(labels)), cuts), min_size)


def check_positive(name: str, value: float) -> None:
    """Raise `UserError` unless an option is a number above 0."""
    if not (isinstance(value, Real) and 0 < float(value) < float("inf")):
        raise UserError(f"{name} is {value!r}: it must be a number above 0.")


def _large_enough(parts: list[Indices], min_size: int) -> list[Indices]:
    if min(map(len, parts)) < min_size:
        raise TooSmall(parts, min_size)
    return parts
