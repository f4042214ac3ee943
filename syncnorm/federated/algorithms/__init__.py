"""Federated algorithms, one file each with the hooks of `base.Algorithm`, and the table of their names."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from syncnorm.config import Clients
from syncnorm.errors import UserError, unknown
from syncnorm.federated.algorithms.base import Algorithm
from syncnorm.federated.algorithms.fedadam import FedAdam
from syncnorm.federated.algorithms.fedap import FedAP
from syncnorm.federated.algorithms.fedavg import FedAvg
from syncnorm.federated.algorithms.fedavgm import FedAvgM
from syncnorm.federated.algorithms.fedprox import FedProx
from syncnorm.federated.algorithms.fedtan import FedTAN
from syncnorm.federated.algorithms.scaffold import Scaffold
from syncnorm.federated.algorithms.together import Together
from syncnorm.federated.options import Option, checked_options
from syncnorm.federated.policies import Policy
from syncnorm.registry import Registry, check_named

ALGORITHMS: Registry[type[Algorithm]] = Registry(
    "algorithm",
    {"fedavg": FedAvg, "fedprox": FedProx, "scaffold": Scaffold, "fedadam": FedAdam, "fedavgm": FedAvgM},
)
"""The algorithms by name."""
OF_POLICIES: Mapping[str, type[Algorithm]] = {"wasserstein": FedAP, "synchronised": FedTAN}
"""The algorithm behind a policy with this value of `rest` or `training`."""

Kind = TypeVar("Kind", bound=type[Algorithm])


def register_algorithm(name: str) -> Callable[[Kind], Kind]:
    """Register a subclass of `syncnorm.federated.Algorithm` as `name`, a decorator.

    Raises:
        UserError: a name that is taken or invalid, a class that is not an `Algorithm`, an option that is not an
            `Option`, or a public method that is not a hook: a misspelt hook would never be called.
    """
    check_named(name, "syncnorm.register_algorithm")

    def register(kind: Kind) -> Kind:
        if not (isinstance(kind, type) and issubclass(kind, Algorithm)):
            raise UserError(f"algorithm '{name}' is {kind!r}: make it a subclass of syncnorm.federated.Algorithm.")
        hooks = [hook for hook in dir(Algorithm) if not hook.startswith("_")]
        for own in dir(kind):
            if not own.startswith("_") and own not in hooks:
                raise unknown(f"hook of algorithm '{name}', whose helpers must begin with an underscore:", own, hooks)
        for option, value in kind.OPTIONS.items():
            if not isinstance(value, Option):
                raise UserError(f"option {option} of algorithm '{name}' is {value!r}: write Option({value!r}).")
        ALGORITHMS.add(name, kind)
        return kind

    return register


def algorithm_of(world: Clients, policy: Policy, options: Mapping[str, float]) -> Algorithm:
    """Return the algorithm of a run, combined with that of its policy (with these options), if it has one.

    Raises:
        UserError: an unknown algorithm, options that it does not have, or a policy that it cannot correct.
    """
    chosen = _chosen(world.algorithm, world.algorithm_options)
    if chosen.needs_average and not policy.averages:
        raise UserError(
            f"algorithm {world.algorithm} corrects what clients average, and with method {world.method} they do not "
            f"average one model: choose algorithm {Clients.algorithm}."
        )
    kinds = [OF_POLICIES[value] for value in (policy.rest, policy.training) if value in OF_POLICIES]
    if not kinds:
        return chosen
    own = [kind({name: value for name, value in options.items() if name in kind.OPTIONS}) for kind in kinds]
    return Together([chosen, *own])


def _chosen(name: str, options: Mapping[str, Any]) -> Algorithm:
    if name not in ALGORITHMS:
        raise unknown("world.algorithm", name, ALGORITHMS)
    kind = ALGORITHMS[name]
    return kind(checked_options(f"the algorithm {name}", kind.OPTIONS, options))
