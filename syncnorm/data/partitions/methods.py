"""Partition methods: which samples of a training set each rank or client has.

A method is a function in `METHODS`: it takes labels (N,), the number of clients, a random generator and keyword-only
options, and returns one index array per client. `draw_partition` checks names and options, seeds the generator, draws
again if a client got too few samples, and checks the result.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter, signature
from numbers import Integral, Real
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from syncnorm.config import RESAMPLED
from syncnorm.data.partitions.client_skew import (
    TooSmall,
    dirichlet_by_class,
    dirichlet_by_client,
    pathological,
    quantity,
    shards,
)
from syncnorm.errors import UserError, unknown
from syncnorm.registry import Registry, check_named
from syncnorm.seeds import derive

Indices = NDArray[np.int64]
Function = TypeVar("Function", bound=Callable[..., Any])


def iid(labels: Indices, clients: int, rng: np.random.Generator) -> list[Indices]:
    """Distribute all samples uniformly at random."""
    return sorted_by_label(labels, clients, rng, percent=0)


def sorted_by_label(
    labels: Indices, clients: int, rng: np.random.Generator, *, percent: float = 100
) -> list[Indices]:
    """Sort `percent` % of the samples by label before splitting: the skew of Hsieh et al. (arXiv 1910.00189).

    That part is chosen at random, sorted by label (in random order within a label) and cut into contiguous equal
    pieces, the first for client 0; the rest is distributed uniformly at random. 0 is IID, 100 fully sorted.
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


def natural_clients(
    labels: Indices, clients: int, rng: np.random.Generator, *, natural: NDArray[Any]
) -> list[Indices]:
    """Give each client the samples of one value of the natural column, in the order of the values.

    If there are fewer clients than values, the seed draws the values to use, and the other samples are left out.
    """
    values = np.unique(natural)
    if clients > len(values):
        raise UserError(
            f"the natural column has {len(values)} values in the training samples, and each of {clients} clients "
            f"needs its own: use at most {len(values)} clients, held-out ones included."
        )
    chosen = values if clients == len(values) else np.sort(rng.choice(values, clients, replace=False))
    return [np.flatnonzero(natural == value) for value in chosen]


@dataclass(frozen=True)
class Method:
    """A partition method; `registered` ones take the seed instead of a random generator."""

    partition: Callable[..., Any]
    registered: bool = False


METHODS: Registry[Method] = Registry(
    "partition method",
    {
        "iid": Method(iid),
        "sorted": Method(sorted_by_label),
        "dirichlet_by_class": Method(dirichlet_by_class),
        "dirichlet_by_client": Method(dirichlet_by_client),
        "pathological": Method(pathological),
        "shards": Method(shards),
        "quantity": Method(quantity),
        "natural": Method(natural_clients),
    },
)
"""The partition methods by name."""


def register_partition(name: str) -> Callable[[Function], Function]:
    """Register the decorated function as the partition method `name`, for `world.skew` and `syncnorm.data.partition`.

        @syncnorm.register_partition("parity")
        def parity(labels, clients, seed, *, flip=False):
            order = np.argsort((labels + flip) % 2, kind="stable")
            return np.array_split(order, clients)

    The function gets the labels, an int64 array (N,), the number of clients and a seed below 2**32. It returns one
    collection of sample indices per client: none is empty, and no sample occurs twice. Samples may be left out. Its
    other parameters are the method's options. If it has parameters `natural` or `domains`, it gets arrays (N,) with
    each sample's natural client or domain. In the clients world each domain is partitioned separately.

    Raises:
        UserError: a name that is taken or invalid.
    """
    check_named(name, "syncnorm.register_partition")
    if name == RESAMPLED:
        raise UserError(f"the {name} skew is syncnorm's own: choose another name.")

    def register(function: Function) -> Function:
        positional = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
        parameters = signature(function).parameters.values() if callable(function) else ()
        if sum(one.kind in positional for one in parameters) < 3:
            raise UserError(f"the {name} partition must take labels, clients and seed, in this order.")
        METHODS.add(name, Method(function, registered=True))
        return function

    return register


DRAWS = 100
"""Maximum number of draws before a client with too few samples is an error. At Dirichlet 0.1 over 100 clients, one
draw in four succeeds; ten draws would fail for one seed in thirteen."""
COLUMNS = ("natural", "domains")
"""Parameters of a method that are not options: they get one value per sample."""
SEEDS = 2**32
"""Upper bound of seeds for registered methods: other packages' generators accept no larger ones."""


class Drawn(NamedTuple):
    """A partition and how it was drawn.

    `parts` is one tensor of sample indices per client, `draws` the number of draws until every client had `min_size`
    samples, and `options` all options of the method, including defaults.
    """

    parts: list[Tensor]
    draws: int
    options: dict[str, Any]


def partition(
    labels: Any,
    method: str,
    clients: int,
    seed: int,
    *,
    natural: Any = None,
    domains: Any = None,
    **options: Any,
) -> list[Tensor]:
    """Return one tensor of sample indices per client (or rank): every index of `labels` (N,) at most once.

    `labels` are a tensor, an array or a list with one class a sample, as a number or a text.
    `method` is a name in `METHODS`, and `options` are the keyword options of that function. Of syncnorm's own
    methods, only "natural" may leave samples out. `natural` and `domains` give each sample's natural client and
    domain, for methods that use them. The same arguments give the same partition on every machine.

    Raises:
        UserError: labels of another shape, such as one-hot labels; unknown names, bad options, fewer than one client,
            fewer samples than clients; a client without a sample; `DRAWS` draws in a row with too few samples for a
            client; an invalid return value of a method.
    """
    return draw_partition(labels, method, clients, seed, options, {"natural": natural, "domains": domains}).parts


def draw_partition(
    labels: Any,
    method: str,
    clients: int,
    seed: int,
    options: Mapping[str, Any],
    columns: Mapping[str, Any],
    numbers: Sequence[int] | None = None,
) -> Drawn:
    """Return the result of `partition`, with the number of draws and all options, for a record.

    `numbers` are the clients' numbers in messages, if they are not 0, 1, ...
    """
    defaults = default_options(method)
    _check_options(method, options, defaults)
    if isinstance(clients, bool) or not isinstance(clients, Integral) or clients < 1:
        raise UserError(f"the number of clients is {clients!r}: it must be a whole number from 1.")
    labels = _classes(labels)
    if clients > len(labels):
        raise UserError(
            f"{len(labels)} training samples cannot be dealt to {clients} clients or ranks: use at most "
            f"{len(labels)} of them, or more samples."
        )
    given = {**_columns(method, columns, len(labels)), **options}
    rng = np.random.default_rng(derive("partition", seed))
    way = METHODS[method]
    for draws in range(1, DRAWS + 1):
        try:
            found = way.partition(
                labels.cpu().numpy().copy(), clients, seed % SEEDS if way.registered else rng, **given
            )
        except TooSmall as small:
            last = small
        else:
            parts = checked_parts(found, method, numbers or range(clients), len(labels))
            return Drawn([torch.from_numpy(part) for part in parts], draws, {**defaults, **options})
    raise _too_small(method, {**defaults, **options}, last)


def _classes(labels: Any) -> Tensor:
    """Return the labels (N,) as a tensor; texts become the numbers of their classes in alphabetical order."""
    if not isinstance(labels, Tensor):
        array = np.asarray(labels)
        if array.dtype.kind in "OUS":
            array = np.unique(array.astype(str), return_inverse=True)[1].reshape(array.shape)
    found = labels if isinstance(labels, Tensor) else torch.as_tensor(array)
    if found.dim() != 1:
        raise UserError(
            f"the labels have shape {tuple(found.shape)}: a partition needs one class for each sample, (N,); of "
            "one-hot labels that is labels.argmax(1)."
        )
    if missing := int(found.isnan().sum()):
        raise UserError(f"{missing} of {len(found)} labels are NaN, so no client can be dealt them: leave them out.")
    return found


def default_options(method: str) -> dict[str, Any]:
    """Return the options of a partition method with their defaults; an unknown name raises `UserError`.

    An option without a default has the value `Parameter.empty`.
    """
    return {name: parameter.default for name, parameter in _parameters(method).items() if _is_option(parameter)}


def _parameters(method: str) -> dict[str, Parameter]:
    """Return the parameters of a method after labels, clients and the generator or seed."""
    return dict(list(signature(METHODS[method].partition).parameters.items())[3:])


def _is_option(parameter: Parameter) -> bool:
    return parameter.name not in COLUMNS and parameter.kind in (
        Parameter.KEYWORD_ONLY,
        Parameter.POSITIONAL_OR_KEYWORD,
    )


def _check_options(method: str, options: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    parameters = _parameters(method)
    takes_any = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values())
    for option, value in options.items():
        if option not in defaults:
            if takes_any:
                continue
            if not defaults:
                raise UserError(f"the {method} partition takes no options: leave out '{option}'.")
            raise unknown(f"option of the {method} partition", option, defaults)
        _check_kind(option, value, parameters[option].annotation)
    for option, default in defaults.items():
        if default is Parameter.empty and option not in options:
            raise UserError(f"the {method} partition needs the option '{option}': give it a value.")


def _columns(method: str, columns: Mapping[str, Any], count: int) -> dict[str, NDArray[Any]]:
    """Return the columns that a method uses; a missing required column raises `UserError`."""
    asked = {}
    for name, parameter in _parameters(method).items():
        if name not in COLUMNS:
            continue
        if columns.get(name) is None:
            if parameter.default is Parameter.empty and parameter.kind is not Parameter.VAR_KEYWORD:
                how = "set data.natural to a column of the table, or " if name == "natural" else ""
                raise UserError(
                    f"the {method} partition needs to know the {name} of each sample, and this data set does not "
                    f"say: {how}choose another method."
                )
            continue
        asked[name] = np.asarray(columns[name])
        if asked[name].shape != (count,):
            raise UserError(
                f"{name} has shape {asked[name].shape} and there are {count} labels: give one value for each."
            )
    return asked


def checked_parts(found: Any, method: str, numbers: Sequence[int], count: int) -> list[Indices]:
    """Return a method's result as one int64 array for each of the clients `numbers`.

    Raises `UserError`, which names the method and the client, unless there is one collection of indices per client,
    each index is one of `count` samples, no client is empty, and no sample occurs twice.
    """
    if not isinstance(found, list | tuple) or len(found) != len(numbers):
        got = f"{len(found)} parts" if isinstance(found, list | tuple) else f"{type(found).__name__}"
        raise UserError(
            f"the {method} partition returned {got} for {len(numbers)} clients: return a list of one each."
        )
    parts = []
    owner = np.full(count, -1)
    for client, part in zip(numbers, found, strict=True):
        indices = _indices(part, f"the {method} partition returned for client {client}")
        if len(indices) == 0:
            raise UserError(
                f"client {client} got no sample from the {method} partition: use fewer clients, or more samples."
            )
        outside = indices[(indices < 0) | (indices >= count)]
        if len(outside):
            raise UserError(
                f"the {method} partition gave client {client} the sample {outside[0]}: samples are numbered from 0 "
                f"to {count - 1}."
            )
        if len(np.unique(indices)) < len(indices):
            raise UserError(f"the {method} partition gave client {client} a sample twice: give each sample once.")
        if (taken := owner[indices] >= 0).any():
            sample = indices[taken][0]
            raise UserError(
                f"the {method} partition gave sample {sample} to client {owner[sample]} and to client {client}: give "
                "each sample to one client."
            )
        owner[indices] = client
        parts.append(indices)
    return parts


def _indices(part: Any, what: str) -> Indices:
    try:
        array = part.detach().cpu().numpy() if isinstance(part, Tensor) else np.asarray(part)
    except (TypeError, ValueError) as error:
        raise UserError(f"{what} {type(part).__name__}: give a list or an array of sample indices.") from error
    if array.ndim != 1 or (len(array) and array.dtype.kind not in "iu"):
        raise UserError(
            f"{what} an array of shape {array.shape} and type {array.dtype}: give sample indices, whole numbers (N,)."
        )
    return array.astype(np.int64, copy=False)


def _check_kind(option: str, value: Any, kind: Any) -> None:
    """Raise `UserError` if an option's value does not match its annotation; True is not a number."""
    if kind not in (bool, int, float):  # a registered method may have any annotation, or none
        return
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
    """Return each client's number of samples of each class: int64 (clients, classes)."""
    return torch.stack([torch.bincount(labels[part], minlength=classes) for part in parts])
