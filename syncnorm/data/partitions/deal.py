"""Who holds what: how a training set is dealt to ranks or clients.

A method is one function in `METHODS`: labels (N,), the number of clients, a random generator and keyword-only
options in; one index array a client out. `deal` checks names and options, seeds the generator and draws again where
a client got too few samples.
"""

from collections.abc import Callable, Sequence
from inspect import Parameter, signature
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from syncnorm.data.partitions.client_skew import (
    TooSmall,
    dirichlet_by_class,
    dirichlet_by_client,
    pathological,
    quantity,
    shards,
)
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


DRAWS = 100
"""How often a partition is drawn before a client with too few samples is an error. At Dirichlet 0.1 over 100 clients
one draw in four will do; ten draws would fail for one seed in thirteen."""


class Dealing(NamedTuple):
    """A partition and how it came about.

    `parts` is one tensor of sample indices a client, `draws` how many draws it took until every client had
    `min_size` samples, `options` all options of the method, those left out with their defaults.
    """

    parts: list[Tensor]
    draws: int
    options: dict[str, Any]


def partition(labels: Tensor, method: str, clients: int, seed: int, **options: Any) -> list[Tensor]:
    """Return one tensor of sample indices a client (or rank): every index of `labels` (N,) exactly once.

    `method` is a name in `METHODS`, `options` are the keyword options of that function. The same arguments give the
    same partition everywhere.

    Raises `UserError` for unknown names, bad options, fewer than one client, fewer samples than clients, and where
    `DRAWS` draws in a row left a client with too few samples.
    """
    return deal(labels, method, clients, seed, **options).parts


def deal(labels: Tensor, method: str, clients: int, seed: int, **options: Any) -> Dealing:
    """Return what `partition` returns, with the number of draws and all options: for a record of what was done."""
    defaults = default_options(method)
    for option in options:
        if not defaults:
            raise UserError(f"the {method} partition takes no options: leave out '{option}'.")
        if option not in defaults:
            raise unknown(f"option of the {method} partition", option, defaults)
        _check_kind(option, options[option], signature(METHODS[method]).parameters[option].annotation)
    if isinstance(clients, bool) or not isinstance(clients, Integral) or clients < 1:
        raise UserError(f"the number of clients is {clients!r}: it must be a whole number from 1.")
    labels = torch.as_tensor(labels)  # a list or an array does as well
    if clients > len(labels):
        raise UserError(
            f"{len(labels)} training samples cannot be dealt to {clients} clients or ranks: use at most "
            f"{len(labels)} of them, or more samples."
        )
    rng = np.random.default_rng(derive("partition", seed))
    for draws in range(1, DRAWS + 1):
        try:
            parts = METHODS[method](labels.cpu().numpy(), clients, rng, **options)
        except TooSmall as small:
            last = small
        else:
            return Dealing([torch.from_numpy(part) for part in parts], draws, {**defaults, **options})
    raise _too_small(method, {**defaults, **options}, last)


def default_options(method: str) -> dict[str, Any]:
    """Return the options of a partition method with their defaults; an unknown name raises `UserError`."""
    if method not in METHODS:
        raise unknown("partition method", method, METHODS)
    parameters = signature(METHODS[method]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is Parameter.KEYWORD_ONLY}


def _check_kind(option: str, value: Any, kind: type) -> None:
    """Raise `UserError` for an option's value that is of another kind than its annotation; True is no number."""
    fitting: Any = {int: Integral, float: Real}.get(kind, kind)
    if not isinstance(value, fitting) or isinstance(value, bool) != (kind is bool):
        written = {bool: "True or False", int: "a whole number", float: "a number"}[kind]
        raise UserError(f"{option} is {value!r}: it must be {written}.")


def _too_small(method: str, options: dict[str, Any], last: TooSmall) -> UserError:
    dial = next(name for name in ("alpha", "beta") if name in options)
    shown = ", ".join(map(str, last.sizes[:8]))
    short, lower = "without a sample", ""
    if last.min_size > 1:
        short, lower = f"with fewer than {last.min_size} samples", ", lower min_size"
    return UserError(
        f"the {method} partition with {dial} {options[dial]:g} left a client {short} in each of {DRAWS} "
        f"draws (smallest clients of the last: {shown}): raise {dial}{lower}, or use fewer of the {len(last.sizes)} "
        "clients."
    )


def label_histogram(labels: Tensor, parts: Sequence[Tensor], classes: int) -> Tensor:
    """Return how many samples of each class each client holds: int64 (clients, classes)."""
    return torch.stack([torch.bincount(labels[part], minlength=classes) for part in parts])
