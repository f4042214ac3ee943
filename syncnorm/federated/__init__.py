"""The clients world: which parts of batch norm a federated server averages, pools, or leaves with the clients."""

from syncnorm.federated.aggregate import aggregate, check_update
from syncnorm.federated.policies import POLICIES, Policy, rules, shared_bytes

__all__ = ["POLICIES", "Policy", "aggregate", "check_update", "rules", "shared_bytes"]
