"""Who holds what: how a training set is dealt to ranks or clients.

A method is one function in `METHODS`: labels (N,), the number of clients, a random generator and keyword-only
options in; one index array a client out. `partition` checks names and options and seeds the generator.
"""

from collections.abc import Callable, Sequence
from inspect import Parameter, signature
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from syncnorm.data.client_skew import dirichlet_by_class, dirichlet_by_client, pathological, quantity, shards
from syncnorm.errors import UserError, unknown
from syncnorm.seeds import derive

Indices = NDArray[np.int64]
Method = Callable[..., list[Indices]]


def iid(labels: Indices, clients: int, rng: np.random.Generator) -> list[Indices]:
    """Deal all samples uniformly at random."""
    return sorted_by_label(labels, clients, rng, percent=0)


def sorted_by_label(
    labels: Indices, clients: int, rng: np.random.Generator, *, percent: float = 100
) -> list[Indices]:
    """Sort `percent` % of the samples by label before dealing: the skew of Hsieh et al. (arXiv 1910.00189).

    That part is chosen at random, sorted by label (in random order within a label) and cut into contiguous
    equal pieces, the first for client 0; the rest is dealt uniformly at random. 0 is IID, 100 fully sorted.
    """
    if not 0 <= percent <= 100:
        raise UserError(f"percent of the sorted partition is {percent}: it must lie between 0 and 100.")
    mixed = rng.permutation(len(labels))
    sorted_count = round(len(labels) * percent / 100)
    part, rest = mixed[:sorted_count], mixed[sorted_count:]
    pieces = np.array_split(part[np.argsort(labels[part], kind="stable")], clients)
    missing = [len(whole) - len(piece) for whole, piece in zip(np.array_split(mixed, clients), pieces, strict=True)]
    shares = np.split(rest, np.cumsum(missing)[:-1])
    return [np.concatenate(pair) for pair in zip(pieces, shares, strict=True)]


METHODS: dict[str, Method] = {
    "iid": iid,
    "sorted": sorted_by_label,
    "dirichlet_by_class": dirichlet_by_class,
    "dirichlet_by_client": dirichlet_by_client,
    "pathological": pathological,
    "shards": shards,
    "quantity": quantity,
}
"""The partition methods by name."""


def partition(labels: Tensor, method: str, clients: int, seed: int, **options: Any) -> list[Tensor]:
    """Return one tensor of sample indices a client (or rank): every index of `labels` (N,) exactly once.

    `method` is a name in `METHODS`, `options` are the keyword options of that function. The same arguments give the
    same partition everywhere.

    Raises `UserError` for unknown names, bad options, fewer than one client and fewer samples than clients.
    """
    if method not in METHODS:
        raise unknown("partition method", method, METHODS)
    function = METHODS[method]
    known = [p.name for p in signature(function).parameters.values() if p.kind is Parameter.KEYWORD_ONLY]
    for option in options:
        if not known:
            raise UserError(f"the {method} partition takes no options: leave out '{option}'.")
        if option not in known:
            raise unknown(f"option of the {method} partition", option, known)
    if clients < 1:
        raise UserError(f"the number of clients is {clients}: it must be at least 1.")
    if clients > len(labels):
        raise UserError(
            f"{len(labels)} training samples cannot be dealt to {clients} clients or ranks: use at most "
            f"{len(labels)} of them, or more samples."
        )
    rng = np.random.default_rng(derive("partition", seed))
    parts = function(labels.cpu().numpy(), clients, rng, **options)
    return [torch.from_numpy(part) for part in parts]


def label_histogram(labels: Tensor, parts: Sequence[Tensor], classes: int) -> Tensor:
    """Return how many samples of each class each client holds: int64 (clients, classes)."""
    return torch.stack([torch.bincount(labels[part], minlength=classes) for part in parts])
