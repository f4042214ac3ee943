"""A federated batch-norm method is a row in a table: who owns each part of a layer, and how shared parts combine.

A batch-norm layer on client k holds gamma and beta (affine), mu and sigma^2 (running statistics) and a counter of
batches. Every method below trains with the client's own batch statistics; they differ in what leaves the client.
"""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from syncnorm.errors import UserError, unknown
from syncnorm.surgery import batch_norms

AFFINE = ("weight", "bias")
STATISTICS = ("running_mean", "running_var")
COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Policy:
    """What the server does with the batch-norm layers of its clients.

    affine: "shared" is averaged with the other parameters; "local" never leaves the client.
    statistics: "average" takes the weighted mean of the running means and of the running variances, each by itself;
        "pooled" adds the spread of the clients' means to the variance (law of total variance); "local" never leaves
        the client.
    source: where the method comes from.

    The counter goes with the statistics; it is an integer, the largest of the clients', and never an average.
    """

    affine: Literal["shared", "local"]
    statistics: Literal["average", "pooled", "local"]
    source: str

    @property
    def personal(self) -> bool:
        """Whether some part stays on the client, so that there is no global model without a further rule."""
        return "local" in (self.affine, self.statistics)


POLICIES = {
    "fedavg": Policy("shared", "average", "McMahan et al., arXiv 1602.05629, applied to every entry of the model"),
    "fedavg_pooled": Policy("shared", "pooled", "the same with the variance of the union of the clients' samples"),
    "fedbn": Policy("local", "local", "Li et al., arXiv 2102.07623"),
    "silobn": Policy("shared", "local", "Andreux et al., arXiv 2008.07424"),
    "stats_shared": Policy("local", "average", "the fourth corner of the table: affine local, statistics shared"),
}
"""The policies by name."""

Rule = Literal["average", "pooled", "largest", "local"]


def policy_named(policy: str | Policy) -> Policy:
    """Return the policy of a name; an unknown one raises `UserError` with the nearest known."""
    if isinstance(policy, Policy):
        return policy
    if policy not in POLICIES:
        raise unknown("federated policy", policy, POLICIES)
    return POLICIES[policy]


def rules(model: nn.Module, policy: str | Policy) -> dict[str, Rule]:
    """Return what the server does with every entry of the model's state: by type of layer, never by name.

    Entries outside of batch norm are averaged if they are floating-point numbers; integers keep the largest.

    Raises:
        UserError: a policy that keeps part of batch norm at home, for a model without any: it would be FedAvg.
    """
    policy = policy_named(policy)
    if policy.personal and not batch_norms(model):
        raise UserError(
            "the model has no batch norm, so a policy that keeps batch norm on the client does the same as fedavg: "
            "choose fedavg, or a model with batch norm."
        )
    found: dict[str, Rule] = {
        name: "average" if value.is_floating_point() else "largest" for name, value in model.state_dict().items()
    }
    statistics: Rule = policy.statistics
    for name, part in batch_norm_entries(model).items():
        if part in AFFINE:
            found[name] = "average" if policy.affine == "shared" else "local"
        elif part in STATISTICS:
            found[name] = statistics
        elif policy.statistics == "local":
            found[name] = "local"
    return found


def shared_bytes(model: nn.Module, policy: str | Policy) -> int:
    """Return how many bytes of the model's state travel one way between the server and one client in a round."""
    state = model.state_dict()
    return sum(
        state[name].numel() * state[name].element_size()
        for name, rule in rules(model, policy).items()
        if rule != "local"
    )


def batch_norm_entries(model: nn.Module) -> dict[str, str]:
    """Return the entries of the model's state that are batch norm's: their name, and which part of a layer they are.

    A layer that the model uses in several places is there under each of its names, as in the state.
    """
    layers = set(batch_norms(model).values())
    return {
        f"{where}.{part}" if where else part: part
        for where, module in model.named_modules(remove_duplicate=False)
        if module in layers
        for part in (*AFFINE, *STATISTICS, COUNTER)
        if getattr(module, part, None) is not None
    }
