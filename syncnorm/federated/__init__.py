"""The clients world: which parts of batch norm a federated server averages, pools, or leaves with the clients.

Names are imported at first use: the table and the server's arithmetic need only torch, a simulation also needs the
data packages and Lightning, and everything for Flower needs flwr.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from syncnorm.federated.aggregation import aggregate, check_update
    from syncnorm.federated.aggregations import AGGREGATIONS, register_aggregation
    from syncnorm.federated.aggregations.base import Aggregation
    from syncnorm.federated.algorithms import ALGORITHMS, register_algorithm
    from syncnorm.federated.algorithms.base import Algorithm, ServerRound, Trained
    from syncnorm.federated.attacks import ATTACKS, register_attack
    from syncnorm.federated.flower.apps import client_app, server_app
    from syncnorm.federated.flower.clients import load_global, reply_with
    from syncnorm.federated.flower.grid.cohort_grid import CohortGrid
    from syncnorm.federated.flower.strategy.masked import MaskedNorm, masked_mod
    from syncnorm.federated.flower.strategy.norm_fed_avg import NormFedAvg
    from syncnorm.federated.flower.strategy.private import PrivateNorm
    from syncnorm.federated.options import ABOVE_0, AT_LEAST_0, BELOW_1, FROM_0_TO_1, Option, Range
    from syncnorm.federated.policies import POLICIES, Policy, register_policy, rules, shared_bytes
    from syncnorm.federated.world import simulate

_HOMES = {
    "syncnorm.federated.aggregation": ["aggregate", "check_update"],
    "syncnorm.federated.aggregations": ["AGGREGATIONS", "register_aggregation"],
    "syncnorm.federated.aggregations.base": ["Aggregation"],
    "syncnorm.federated.algorithms": ["ALGORITHMS", "register_algorithm"],
    "syncnorm.federated.algorithms.base": ["Algorithm", "ServerRound", "Trained"],
    "syncnorm.federated.attacks": ["ATTACKS", "register_attack"],
    "syncnorm.federated.options": ["ABOVE_0", "AT_LEAST_0", "BELOW_1", "FROM_0_TO_1", "Option", "Range"],
    "syncnorm.federated.policies": ["POLICIES", "Policy", "register_policy", "rules", "shared_bytes"],
    "syncnorm.federated.world": ["simulate"],
    "syncnorm.federated.flower.apps": ["client_app", "server_app"],
    "syncnorm.federated.flower.clients": ["load_global", "reply_with"],
    "syncnorm.federated.flower.grid.cohort_grid": ["CohortGrid"],
    "syncnorm.federated.flower.strategy.masked": ["MaskedNorm", "masked_mod"],
    "syncnorm.federated.flower.strategy.private": ["PrivateNorm"],
    "syncnorm.federated.flower.strategy.norm_fed_avg": ["NormFedAvg"],
}

__all__ = [
    "ABOVE_0",
    "AGGREGATIONS",
    "ALGORITHMS",
    "ATTACKS",
    "AT_LEAST_0",
    "BELOW_1",
    "FROM_0_TO_1",
    "POLICIES",
    "Aggregation",
    "Algorithm",
    "CohortGrid",
    "MaskedNorm",
    "NormFedAvg",
    "Option",
    "Policy",
    "PrivateNorm",
    "Range",
    "ServerRound",
    "Trained",
    "aggregate",
    "check_update",
    "client_app",
    "load_global",
    "masked_mod",
    "register_aggregation",
    "register_algorithm",
    "register_attack",
    "register_policy",
    "reply_with",
    "rules",
    "server_app",
    "shared_bytes",
    "simulate",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'syncnorm.federated' has no attribute '{name}'")
