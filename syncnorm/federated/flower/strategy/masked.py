"""Policies under Flower's secure aggregation, in which the server sees a sum over clients and nothing else.

SecAgg+ (Bell et al. 2020, IACR ePrint 2020/704; Flower's `SecAggPlusWorkflow` and `secaggplus_mod`) gives the server
sum_k n_k v_k / sum_k n_k of vectors v_k that it never sees. What a policy needs has to be such a mean:

    shared parameters, averaged statistics    v_k = value_k - value
    pooled statistics                         v_k = mu_k - mu  and  sigma_k^2 + (mu_k - mu)^2 - sigma^2
    entries that stay with clients            nothing is sent

where mu, sigma^2 and value are those of the global model, which everybody knows. With the means d and e of the two
pooled vectors, the law of total variance gives

    mu' = mu + d,    sigma'^2 = sigma^2 + e - d^2.

A maximum is no sum, so counters of batches stay as they are. Nor is anything that compares clients: medians,
distances (FedAP), naming a client whose reply is not finite.
"""

import json
from collections.abc import Callable, Mapping
from copy import copy, deepcopy
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.common import (
    Code,
    EvaluateRes,
    FitRes,
    Parameters,
    Status,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.compat.common import recorddict_compat as compat
from flwr.server.strategy import FedAvg
from torch import Tensor, nn

from syncnorm.errors import UserError
from syncnorm.federated.aggregation import State, pooled_pairs
from syncnorm.federated.flower.handshake import Terms, check_policy, name_of
from syncnorm.federated.flower.records import from_record, to_record
from syncnorm.federated.flower.strategy.metrics import weight_in
from syncnorm.federated.policies import Policy, Reduction, rules

EXAMPLES = "num-examples"
NAMES, SUMMED, POOLED, ROUND = "norm-names", "norm-summed", "norm-pooled", "server-round"
SECRET = "secaggplus_state"
Pairs = list[tuple[str, str]]
App = Callable[[Message, Context], Message]


def summed_names(reductions: Mapping[str, Reduction]) -> list[str]:
    """Return the entries of which the server needs a mean over clients."""
    return [name for name, reduction in reductions.items() if reduction in ("average", "pooled")]


def to_summands(state: State, known: State, names: list[str], pooled: Pairs) -> dict[str, Tensor]:
    """Return a client's vectors v_k, float64, given its state and the global model's."""
    found = {name: state[name].double() - known[name].double() for name in names}
    return found | {variance: found[variance] + found[mean].square() for mean, variance in pooled}


def from_means(means: State, known: State, pooled: Pairs) -> dict[str, Tensor]:
    """Return the next global model's entries from the means over clients of `to_summands`.

    A variance that the protocol's rounding has made negative becomes zero.
    """
    found = {name: known[name].double() + mean.double() for name, mean in means.items()}
    for mean, variance in pooled:
        found[variance] = (found[variance] - means[mean].double().square()).clamp(min=0)
    return {name: value.to(known[name].dtype) for name, value in found.items()}


class MaskedNorm(FedAvg):
    """A policy for batch norm under Flower's secure aggregation: a strategy for `SecAggPlusWorkflow`.

        client_app = ClientApp(mods=[masked_mod])                         # in the place of secaggplus_mod

        strategy = MaskedNorm(model, "fedavg_pooled", min_fit_clients=3)
        legacy = LegacyContext(context, ServerConfig(num_rounds=3), strategy)
        DefaultWorkflow(fit_workflow=SecAggPlusWorkflow(num_shares=3, reconstruction_threshold=2))(grid, legacy)
        strategy.arrays                                                   # the global model

    Clients are written as for `NormFedAvg`: with `load_global` and `reply_with`, and messages of today's API.

    Args:
        model: defines which entries are batch norm's; it is not changed.
        policy: a name in `POLICIES` that does not change training, or your own `Policy`.
        options: options of `flwr.server.strategy.FedAvg`.

    Raises:
        UserError: a policy that does not fit; results that are no sums.
    """

    def __init__(self, model: nn.Module, policy: str | Policy = "fedavg_pooled", **options: Any) -> None:
        super().__init__(**options)
        self.policy = check_policy(policy)
        self.rounds: list[int] = []
        """The rounds whose sum has come; of others, too few clients were left."""
        self._terms = Terms(self.policy, name_of(policy))
        self._state = {name: value.detach().cpu() for name, value in deepcopy(model.state_dict()).items()}
        reductions = rules(model, self.policy)
        self._summed, self._pooled = summed_names(reductions), pooled_pairs(reductions)

    @property
    def arrays(self) -> ArrayRecord:
        """The global model."""
        return to_record(self._state)

    def initialize_parameters(self, client_manager: Any) -> Parameters:
        """Return the model's state, as a list."""
        return ndarrays_to_parameters([value.numpy() for value in self._state.values()])

    def configure_fit(self, server_round: int, parameters: Parameters, client_manager: Any) -> Any:
        """Return the round's messages, with the names of entries in their config."""
        return self._explained(server_round, super().configure_fit(server_round, parameters, client_manager))

    def configure_evaluate(self, server_round: int, parameters: Parameters, client_manager: Any) -> Any:
        """Return the messages of an evaluation, likewise."""
        return self._explained(server_round, super().configure_evaluate(server_round, parameters, client_manager))

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        """Return the next model from the sum that secure aggregation has found."""
        if not results:
            return None, {}
        given = {id(result.parameters) for _, result in results}
        arrays = parameters_to_ndarrays(results[0][1].parameters)
        if len(given) > 1 or len(arrays) != len(self._summed):
            raise UserError(
                "MaskedNorm got the clients' own results: use it with SecAggPlusWorkflow and masked_mod, or take "
                "NormFedAvg."
            )
        means = {name: torch.from_numpy(np.asarray(one)) for name, one in zip(self._summed, arrays, strict=True)}
        self._state |= from_means(means, self._state, self._pooled)
        self.rounds.append(server_round)
        return self.initialize_parameters(None), {}

    def _explained(self, server_round: int, messages: Any) -> Any:
        config = ConfigRecord()
        self._terms.put_into(config, part=False)
        for _, instructions in messages:
            instructions.config |= {**config, ROUND: server_round, NAMES: json.dumps(list(self._state))}
            instructions.config |= {SUMMED: json.dumps(self._summed), POOLED: json.dumps(self._pooled)}
        return messages


def masked_mod(message: Message, context: Context, call_next: App) -> Message:
    """Flower's `secaggplus_mod` for clients of `MaskedNorm`: what they send is masked, and is what can be summed.

    The app gets messages of today's API, and answers them as it does without masks. The server learns neither the
    client's metrics nor its number of samples. Evaluations are not masked.

    Raises:
        ValueError: a client's change, times its weight, that the protocol would clip.
    """
    if message.metadata.message_type == "evaluate":
        return _evaluated(message, context, call_next)
    if message.metadata.message_type != "train":
        return call_next(message, context)
    reply = secaggplus_mod(message, context, lambda inner, own: _trained(inner, own, call_next))
    if reply.has_content() and isinstance(record := reply.content.get("fitres.num_examples"), MetricRecord):
        record["num_examples"] = 1  # the masked sum has it
    return reply


def _trained(message: Message, context: Context, call_next: App) -> Message:
    """Let the app train, and return its reply as the protocol takes it."""
    asked = compat.recorddict_to_fitins(message.content, keep_input=True)
    named, config = _named(asked.parameters, asked.config)
    reply = call_next(_with(message, named, config), context)
    if reply.has_error():
        return reply
    names, pooled = json.loads(str(config[SUMMED])), [tuple(pair) for pair in json.loads(str(config[POOLED]))]
    sent = next(from_record(one) for one in reply.content.values() if isinstance(one, ArrayRecord))
    if missing := [name for name in names if name not in sent]:
        raise ValueError(f"the client sent no '{missing[0]}', and secure aggregation needs every shared entry")
    summands = to_summands(sent, named, names, pooled)
    weight = weight_in(reply.content, EXAMPLES)
    _check_range(summands, weight, context)
    arrays = [value.numpy() for value in summands.values()]
    result = FitRes(Status(Code.OK, ""), ndarrays_to_parameters(arrays), round(weight), {})
    return Message(compat.fitres_to_recorddict(result, keep_input=True), reply_to=message)


def _evaluated(message: Message, context: Context, call_next: App) -> Message:
    """Let the app evaluate, and return its reply as strategies of the older API take it."""
    asked = compat.recorddict_to_evaluateins(message.content, keep_input=True)
    reply = call_next(_with(message, *_named(asked.parameters, asked.config)), context)
    if reply.has_error():
        return reply
    metrics: dict[str, Any] = {}
    for record in reply.content.values():
        if isinstance(record, MetricRecord):
            metrics |= {name: value for name, value in record.items() if not isinstance(value, list)}
    weight = weight_in(reply.content, EXAMPLES)
    result = EvaluateRes(Status(Code.OK, ""), float(metrics.pop("loss", 0.0)), round(weight), metrics)
    return Message(compat.evaluateres_to_recorddict(result), reply_to=message)


def _named(parameters: Parameters, config: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if NAMES not in config:
        raise ValueError("masked_mod is for a server with MaskedNorm: with another strategy, take secaggplus_mod")
    names = json.loads(str(config[NAMES]))
    arrays = [np.asarray(one) for one in parameters_to_ndarrays(parameters)]
    return {name: torch.from_numpy(one.copy()) for name, one in zip(names, arrays, strict=True)}, dict(config)


def _with(message: Message, named: State, config: Mapping[str, Any]) -> Message:
    """Return the message as today's strategies would send it."""
    delivered = copy(message)
    delivered.content = RecordDict({"arrays": to_record(named), "config": ConfigRecord(dict(config))})
    return delivered


def _check_range(summands: State, weight: float, context: Context) -> None:
    """Raise `ValueError` where the protocol would clip, which nobody could notice in the sum."""
    state: Any = context.state.get(SECRET)
    limit, heaviest = (float(state[name]) for name in ("clipping_range", "max_weight")) if state else (0.0, 0.0)
    if weight != round(weight):
        raise ValueError(f"the weight '{EXAMPLES}' is {weight:g}, and secure aggregation takes whole numbers")
    if heaviest and weight > heaviest:
        raise ValueError(f"the client has {weight:g} samples: raise SecAggPlusWorkflow's max_weight, {heaviest:g}")
    for name, value in summands.items():
        far = float(value.abs().max()) if value.numel() else 0.0
        if not far < float("inf"):
            raise ValueError(f"'{name}' is not finite after training")
        if heaviest and far * weight / heaviest > limit:
            raise ValueError(
                f"'{name}' has changed by {far:.3g}, times {weight / heaviest:.3g}, beyond the clipping_range "
                f"{limit:g} of SecAggPlusWorkflow: raise it, or lower the learning rate"
            )
