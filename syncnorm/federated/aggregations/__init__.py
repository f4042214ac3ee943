"""Aggregations, how a server combines what clients sent, and the table of their names."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from syncnorm.errors import UserError, unknown
from syncnorm.federated.aggregations.base import WEIGHTED, Aggregation, Mean
from syncnorm.federated.aggregations.clipped import Clipped
from syncnorm.federated.aggregations.krum import Krum
from syncnorm.federated.aggregations.trimmed import Median, Trimmed
from syncnorm.federated.options import Option, checked_options
from syncnorm.registry import Registry, check_named

AGGREGATIONS: Registry[type[Aggregation]] = Registry(
    "aggregation", {"mean": Mean, "median": Median, "trimmed": Trimmed, "clipped": Clipped, "krum": Krum}
)
"""The aggregations by name."""

Kind = TypeVar("Kind", bound=type[Aggregation])


def register_aggregation(name: str) -> Callable[[Kind], Kind]:
    """Register a subclass of `syncnorm.federated.Aggregation` as `name`, a decorator.

    Raises:
        UserError: a name that is taken or invalid, a class that is no `Aggregation`, an option that is no `Option`,
            or a public method that is not a hook: a misspelt hook would never be called.
    """
    check_named(name, "syncnorm.register_aggregation")

    def register(kind: Kind) -> Kind:
        if not (isinstance(kind, type) and issubclass(kind, Aggregation)):
            raise UserError(
                f"aggregation '{name}' is {kind!r}: make it a subclass of syncnorm.federated.Aggregation."
            )
        hooks = [hook for hook in dir(Aggregation) if not hook.startswith("_")]
        for own in dir(kind):
            if not own.startswith("_") and own not in hooks:
                what = f"hook of aggregation '{name}', whose helpers must begin with an underscore:"
                raise unknown(what, own, hooks)
        for option, value in kind.OPTIONS.items():
            if not isinstance(value, Option):
                raise UserError(f"option {option} of aggregation '{name}' is {value!r}: write Option({value!r}).")
        AGGREGATIONS.add(name, kind)
        return kind

    return register


def aggregation_of(given: str | Aggregation, options: Mapping[str, Any] | None = None) -> Aggregation:
    """Return an aggregation by its name and options, or the given one.

    Raises:
        UserError: an unknown name; options that it does not have, or that an object has already.
    """
    if isinstance(given, Aggregation):
        if options:
            raise UserError(f"options {dict(options)} came with an aggregation that has its own: give them to that.")
        return given
    if not isinstance(given, str):
        raise unknown(AGGREGATIONS.what, str(given), AGGREGATIONS)
    kind = AGGREGATIONS[given]
    own = checked_options(f"the aggregation {given}", kind.OPTIONS, options or {})
    return WEIGHTED if kind is Mean else kind(own)
