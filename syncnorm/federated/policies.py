"""The table of federated batch-norm methods: who owns each part of a layer, and how shared parts combine.

A batch-norm layer on client k has gamma and beta (affine), mu and sigma^2 (running statistics) and a counter of
batches. A row says which of them leave the client, what normalises in training, and where statistics come from.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from syncnorm.errors import UserError, unknown
from syncnorm.registry import Registry
from syncnorm.surgery import batch_norms

AFFINE = ("weight", "bias")
STATISTICS = ("running_mean", "running_var")
COUNTER = "num_batches_tracked"
MIX = "mix"
OPTIONS = ("momentum", "frozen_from", "own_share")
"""All options that a policy can have."""
NEEDED = {"frozen": "frozen_from", "wasserstein": "own_share"}
"""The option that a policy with this value needs."""


def _check_options(owner: str, given: Mapping[str, Any], known: Any) -> None:
    for option, value in given.items():
        if option not in known:
            raise unknown(f"option of {owner}", option, known)
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
            raise UserError(f"option {option} of {owner} is {value!r}: it must be a number from 0 to 1.")


@dataclass(frozen=True)
class Policy:
    """What happens to the batch-norm layers of a federated model.

        Policy("local", "pooled", "a thesis")     # affine local, statistics pooled

    affine: "shared" is averaged with the other parameters; "local" never leaves the client.
    statistics: "average" takes the weighted mean of the running means, and that of the running variances; "pooled"
        also adds the spread of the clients' means to the variance (law of total variance); "local" never leaves the
        client.
    source: where the method comes from.
    rest: everything outside batch norm: "shared" is averaged; "local" never leaves the client; "wasserstein" gives
        each client its own average, weighted by the distance of the others' statistics from its own (FedAP).
    training: what normalises in local training: the "batch"; "frozen" global statistics after a fraction of the
        rounds; the received "running" global statistics; a learned mix of these and the batch's ("hybrid"); or, in
        the first local step, the batches of all clients together ("synchronised").
    statistics_source: where a client's statistics come from: the running statistics of its training ("ema"), the
        exact moments of all inputs of its layers in training ("seen"), or a pass over its data: "before" means before
        each training, with the received model, and again before evaluation, with the evaluated model; "after" means
        only the latter.
    data: "own" means that a client trains on its own samples; "all" means a single client with all samples.
    options: settings of a run with their defaults, from 0 to 1. "momentum" is the fraction by which the server's
        statistics move to the clients' in a round, "frozen_from" the fraction of rounds after which they are frozen,
        "own_share" the weight of a client's own model in its personal average.

    The counter goes with the statistics. It is an integer, the maximum of the clients', and is never averaged.

    Raises:
        UserError: an invalid value of a field, or an option that is unknown, out of range, or missing.
    """

    affine: Literal["shared", "local"]
    statistics: Literal["average", "pooled", "local"]
    source: str
    rest: Literal["shared", "local", "wasserstein"] = "shared"
    training: Literal["batch", "frozen", "running", "hybrid", "synchronised"] = "batch"
    statistics_source: Literal["ema", "seen", "before", "after"] = "ema"
    options: Mapping[str, float] = field(default_factory=dict)
    data: Literal["own", "all"] = "own"

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(Policy).items():
            if get_origin(hint) is Literal and getattr(self, name) not in get_args(hint):
                raise unknown(f"{name} of a policy", str(getattr(self, name)), get_args(hint))
        if not isinstance(self.source, str):
            raise UserError(f"source of a policy is {self.source!r}: it must be a text.")
        _check_options("a policy", self.options, OPTIONS)
        for value in (self.rest, self.training):
            if value in NEEDED and NEEDED[value] not in self.options:
                raise UserError(
                    f'a policy with "{value}" needs options={{"{NEEDED[value]}": 0.5}}, or another number.'
                )
        if self.statistics_source == "seen" and self.training != "running":
            raise UserError(
                'a policy with statistics_source "seen" needs training="running", whose layer keeps them.'
            )

    @property
    def averages(self) -> bool:
        """Whether clients average one model, whose updates an algorithm can correct."""
        return self.rest == "shared" and self.data == "own"

    @property
    def personal(self) -> bool:
        """Whether some part stays on the client, so that a global model needs a further rule."""
        return self.rest != "shared" or "local" in (self.affine, self.statistics)


class Policies(Registry[Policy]):
    """The policies by name. `POLICIES["mine"] = Policy(...)` is short for `register_policy("mine", Policy(...))`."""

    def __setitem__(self, name: str, policy: Policy) -> None:
        if not isinstance(policy, Policy):
            raise UserError(
                f'federated policy {name!r} is {policy!r}: write Policy("local", "pooled", "its source") from '
                "syncnorm.federated."
            )
        self.add(name, policy)


POLICIES = Policies(
    "federated policy",
    dict(
        fedavg=Policy("shared", "average", "McMahan et al., arXiv 1602.05629, applied to every entry of the model"),
        fedavg_pooled=Policy("shared", "pooled", "the same with the variance of the union of the clients' samples"),
        fedbn=Policy("local", "local", "Li et al., arXiv 2102.07623"),
        silobn=Policy("shared", "local", "Andreux et al., arXiv 2008.07424"),
        stats_shared=Policy("local", "average", "the fourth corner of the table: affine local, statistics shared"),
        fixbn=Policy(
            "shared",
            "average",
            "Zhong, Chen & Chao, arXiv 2303.06530",
            training="frozen",
            options={"frozen_from": 0.5},
        ),
        fedtan=Policy("shared", "average", "Wang, Shi & Chang, arXiv 2301.02982", training="synchronised"),
        sbn=Policy(
            "shared",
            "pooled",
            "static BN of HeteroFL: Diao, Ding & Tarokh, arXiv 2010.01264",
            statistics_source="after",
        ),
        fbn=Policy(
            "shared",
            "pooled",
            "Guerraoui et al., arXiv 2405.14670",
            training="running",
            statistics_source="seen",
            options={"momentum": 0.1},
        ),
        hbn=Policy(
            "shared",
            "pooled",
            "Hybrid BN: Chen, Xu, Wu & Kittler, arXiv 2505.21877",
            training="hybrid",
            statistics_source="before",
            options={"momentum": 1.0},
        ),
        fedap=Policy("local", "local", "Lu et al., arXiv 2112.00734", rest="wasserstein", options={"own_share": 0.5}),
        local_only=Policy("local", "local", "every client by itself", rest="local"),
        centralised=Policy("shared", "average", "one client with the data of all: no federation", data="all"),
    ),
)
"""The policies by name."""

Reduction = Literal["average", "pooled", "max", "gathered", "local", "personal", "compared"]
"""How the server treats an entry of the clients' models."""
COMBINED: tuple[Reduction, ...] = ("average", "pooled", "max")
"""Entries that the server combines into one value for all clients."""
SENT: tuple[Reduction, ...] = (*COMBINED, "personal", "compared")
"""Entries that clients send: also those averaged per client, and those used for distances between clients."""
KEPT: tuple[Reduction, ...] = ("local", "compared")
"""Entries that differ between clients."""


def register_policy(name: str, policy: Policy) -> None:
    """Register a policy as `name`, for `Clients.method` and everything else that takes a policy's name.

        syncnorm.register_policy("mine", Policy("local", "pooled", "a thesis"))

    Raises:
        UserError: a name that is taken or invalid, or an object that is not a `Policy`.
    """
    POLICIES[name] = policy


def policy_named(policy: str | Policy) -> Policy:
    """Return a policy by name; an unknown name raises `UserError`, which suggests the nearest known name."""
    if isinstance(policy, Policy):
        return policy
    if not isinstance(policy, str):
        raise unknown(POLICIES.what, str(policy), POLICIES)
    return POLICIES[policy]


def policy_options(name: str, given: Mapping[str, Any]) -> dict[str, float]:
    """Return a policy's options: the defaults, overridden by the `given` ones.

    Raises:
        UserError: an option that the policy does not have, or a value that is not a number from 0 to 1.
    """
    known = policy_named(name).options
    if given and not known:
        raise UserError(f"the policy {name} takes no options: leave out '{next(iter(given))}'.")
    _check_options(f"the policy {name}", given, known)
    return {**known, **{option: float(value) for option, value in given.items()}}


def rules(model: nn.Module, policy: str | Policy) -> dict[str, Reduction]:
    """Return how the server treats every entry of the model's state, by type of layer, never by name.

    Outside batch norm, real and complex entries are averaged; of integers, the server takes the maximum. Statistics
    that a pass gathers after training are "gathered": updates do not contain them.

    Raises:
        UserError: a policy about batch norm for a model without any, which would make it another policy; or one that
            reads running statistics for a layer without them.
    """
    policy = policy_named(policy)
    _check_model(model, policy)
    found = {name: _reduction_of_rest(policy, value) for name, value in model.state_dict().items()}
    statistics: Reduction = "gathered" if policy.statistics_source == "after" else policy.statistics
    for name, part in batch_norm_entries(model).items():
        if part == MIX:
            found[name] = "local"
        elif part in AFFINE:
            found[name] = "average" if policy.affine == "shared" else "local"
        elif part in STATISTICS:
            found[name] = "compared" if policy.rest == "wasserstein" else statistics
        else:
            found[name] = statistics if statistics in ("local", "gathered") else "max"
    return found


def _reduction_of_rest(policy: Policy, value: Tensor) -> Reduction:
    if policy.rest == "local":
        return "local"
    if policy.rest == "wasserstein" and can_average(value.dtype):
        return "personal"
    return "average" if can_average(value.dtype) else "max"


def can_average(dtype: torch.dtype) -> bool:
    """Return whether a mean of values of this type has the type: true of real and complex floating-point numbers."""
    return dtype.is_floating_point or dtype.is_complex


def _check_model(model: nn.Module, policy: Policy) -> None:
    name = next((name for name, row in POLICIES.items() if row == policy), "this policy")
    layers = batch_norms(model)
    without = [where for where, layer in layers.items() if layer.running_mean is None]
    if without and (policy.rest == "wasserstein" or policy.statistics_source != "ema" or policy.training == "frozen"):
        raise UserError(
            f"layer '{without[0]}' keeps no running statistics, which {name} is about: build it with "
            "track_running_stats=True, or choose another method."
        )
    if layers or policy.rest == "local":
        return
    if policy.personal or policy.statistics != "average" or policy.training != "batch":
        raise UserError(
            f"the model has no batch norm, which is all that {name} is about, so it would do the same as fedavg: "
            "choose fedavg, or a model with batch norm."
        )


def shared_bytes(model: nn.Module, policy: str | Policy) -> int:
    """Return the bytes of the model's state that travel one way between the server and one client in a round."""
    state = model.state_dict()
    return sum(
        state[name].numel() * state[name].element_size()
        for name, reduction in rules(model, policy).items()
        if reduction in SENT
    )


def counters(model: nn.Module) -> list[str]:
    """Return the names of batch norm's counters of batches in the model's state."""
    return [name for name, part in batch_norm_entries(model).items() if part == COUNTER]


def batch_norm_entries(model: nn.Module) -> dict[str, str]:
    """Return the batch-norm entries of the model's state: their names, and the part of the layer that each is.

    A layer that the model uses in several places is listed under each of its names, as in the state.
    """
    layers = set(batch_norms(model).values())
    return {
        f"{where}.{part}" if where else part: part
        for where, module in model.named_modules(remove_duplicate=False)
        if module in layers
        for part in (*AFFINE, *STATISTICS, COUNTER, MIX)
        if getattr(module, part, None) is not None
    }
