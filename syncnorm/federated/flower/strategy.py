"""Flower's FedAvg for models with batch norm: layers found by type, a policy for each part, integer counters."""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from logging import INFO, WARNING
from math import isfinite
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from torch import Tensor, nn

from syncnorm.errors import UserError
from syncnorm.federated.aggregation import check_update, combine, normalised_weights
from syncnorm.federated.flower.grid import reason
from syncnorm.federated.flower.records import arrays_in, from_record, to_record
from syncnorm.federated.policies import POLICIES, Policy, policy_named, rules
from syncnorm.surgery import batch_norms

LEFT_OUT = "clients-left-out"
"""The metric that counts the clients of a round whose replies were unusable."""


class NormFedAvg(FedAvg):
    """FedAvg that treats batch norm by a policy; a drop-in for `flwr.serverapp.strategy.FedAvg`.

        strategy = NormFedAvg(model, policy="fedavg_pooled", fraction_train=0.1)
        strategy.start(grid, initial_arrays=ArrayRecord(model.state_dict()), num_rounds=20)

    FedAvg averages every array, including counters; this strategy uses `syncnorm.federated.aggregate` instead: the
    running variance of fedavg_pooled is that of all clients' samples together, counters stay integers, every entry
    keeps its dtype, and entries that a policy leaves with the clients do not change. Clients are summed in the order
    of node ids.

    Clients receive every entry of the model, so that a new client has all of them. For policies that keep entries
    with clients (fedbn, silobn, stats_shared), `load_global` and `reply_with` are the client's side.

    A reply is left out if it is an error, has no positive weight, or has a model that is not finite or does not
    match. The log and `left_out` name it, and the metric "clients-left-out" counts it. If fewer than `enough` of a
    round's clients gave a usable reply, the global model does not change.

    Args:
        model: defines which entries are batch norm's, and the shapes and types of all entries; it is not changed.
        policy: a name in `POLICIES` that does not change training, or your own `Policy`.
        enough: smallest fraction of a round's clients needed for a new global model.
        options: FedAvg's options.

    Raises:
        UserError: an unknown policy, one that changes how clients train, or one about batch norm for a model without
        it.
    """

    def __init__(
        self, model: nn.Module, policy: str | Policy = "fedavg_pooled", *, enough: float = 0.5, **options: Any
    ) -> None:
        super().__init__(**options)
        if not 0 <= enough <= 1:
            raise UserError(f"enough is {enough}: it is a fraction of a round's clients, from 0 to 1.")
        self.policy = check_policy(policy)
        self.enough = enough
        self.reductions = rules(model, self.policy)
        self.layers = list(batch_norms(model))
        """The batch norms, by name."""
        self.left_out: dict[int, list[str]] = {}
        """What was wrong with replies, by round, one sentence each."""
        self._state: Mapping[str, Tensor] = deepcopy(model.state_dict())
        self._asked = 0

    def summary(self) -> None:
        """Log the strategy's settings and how many batch norms it found."""
        log(INFO, "\t├──> Batch norm: %d layers, found by type", len(self.layers))
        log(INFO, "\t│\t└──affine %s | statistics %s", self.policy.affine, self.policy.statistics)
        super().summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the round's messages, as FedAvg does.

        Raises:
            UserError: arrays that do not match the model's state.
        """
        state = from_record(arrays)
        own = self._state
        strange = sorted(name for name in {*state, *own} if _shape(state.get(name)) != _shape(own.get(name)))
        if strange:
            raise UserError(
                f"the arrays of round {server_round} differ from the model given to NormFedAvg in '{strange[0]}' "
                f"({len(strange)} entries differ): start with ArrayRecord(model.state_dict())."
            )
        self._state = {name: state[name].to(value.dtype) for name, value in own.items()}
        messages = list(super().configure_train(server_round, arrays, config, grid))
        self._asked = len(messages)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the next global model and the clients' mean metrics; neither if too few replies are usable."""
        usable, wrong = self._sort_out(replies, train=True)
        if missing := self._asked - len(usable) - len(wrong):
            wrong.append(f"{missing} of {self._asked} clients did not reply")
        self._report(server_round, wrong)
        if len(usable) < max(1, self.enough * self._asked):
            if self._asked:
                log(WARNING, "round %d: too few clients are left, the model stays as it is", server_round)
            return None, None
        states = [from_record(arrays_in(reply.content)) for reply in usable]
        shares = normalised_weights(states, [self._weight(reply) for reply in usable])
        try:
            combined = combine(self._state, self.reductions, states, shares)
        except UserError as error:
            self._report(server_round, [f"all clients: {error}"])
            log(WARNING, "round %d: the model stays as it is", server_round)
            return None, None
        metrics = self.train_metrics_aggr_fn([reply.content for reply in usable], self.weighted_by_key)
        metrics[LEFT_OUT] = self._asked - len(usable)
        return to_record(combined, copy=False), metrics

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return the clients' mean metrics; unusable replies are left out."""
        usable, wrong = self._sort_out(replies, train=False)
        self._report(server_round, wrong)
        if not usable:
            return None
        return self.evaluate_metrics_aggr_fn([reply.content for reply in usable], self.weighted_by_key)

    def _sort_out(self, replies: Iterable[Message], train: bool) -> tuple[list[Message], list[str]]:
        """Return the usable replies, in the order of node ids, and what is wrong with the others."""
        usable: list[Message] = []
        wrong = []
        for reply in sorted(replies, key=lambda reply: reply.metadata.src_node_id):
            try:
                self._check(reply, train)
                if usable and _metrics(reply).keys() != _metrics(usable[0]).keys():
                    first = usable[0].metadata.src_node_id
                    raise ValueError(f"it sent metrics of other names than client {first}")
                if usable and _lengths(reply) != _lengths(usable[0]):
                    first = usable[0].metadata.src_node_id
                    raise ValueError(f"it sent a list where client {first} sent a number or a list of another length")
                usable.append(reply)
            except Exception as error:  # a bad reply must not end the run
                client = f"client {reply.metadata.src_node_id}"
                wrong.append(f"{client}: {str(error).removeprefix(client).strip()}")
        return usable, wrong

    def _check(self, reply: Message, train: bool) -> None:
        if reply.has_error():
            raise ValueError(reason(reply))
        weight = self._weight(reply)
        if not (isinstance(weight, int | float) and isfinite(weight) and weight > 0):
            raise ValueError(f"its weight '{self.weighted_by_key}' is {weight}, which is no positive number")
        if train:
            state = from_record(arrays_in(reply.content))
            check_update(self._state, state, self.reductions, str(reply.metadata.src_node_id))

    def _weight(self, reply: Message) -> float:
        metrics = _metrics(reply)
        if self.weighted_by_key not in metrics:
            raise ValueError(f"its metrics have no '{self.weighted_by_key}', which weighs its update")
        weight: Any = metrics[self.weighted_by_key]
        return weight  # type: ignore[no-any-return]

    def _report(self, server_round: int, wrong: Sequence[str]) -> None:
        if wrong:
            self.left_out.setdefault(server_round, []).extend(wrong)
        for sentence in wrong:
            log(WARNING, "round %d, left out: %s", server_round, sentence)


def check_policy(policy: str | Policy) -> Policy:
    """Return the policy if it only asks clients to keep entries; a policy that changes training raises
    `UserError`."""
    row = policy_named(policy)
    if _is_averaging(row):
        return row
    offered = [name for name, other in POLICIES.items() if _is_averaging(other)]
    name = policy if isinstance(policy, str) else "this policy"
    raise UserError(
        f"{name} also changes how clients train, which a strategy cannot: choose one of {', '.join(offered)}, or run "
        "it with syncnorm.federated.simulate."
    )


def _is_averaging(row: Policy) -> bool:
    plain = row.averages and row.training == "batch" and row.statistics_source == "ema"
    return plain and not row.options


def _shape(value: Tensor | None) -> torch.Size | None:
    return None if value is None else value.shape


def _lengths(reply: Message) -> dict[str, int | None]:
    """Return the length of each metric that is a list, None for a number: only equal lengths can be averaged."""
    return {name: len(value) if isinstance(value, list) else None for name, value in _metrics(reply).items()}


def _metrics(reply: Message) -> MetricRecord:
    found = [record for record in reply.content.values() if isinstance(record, MetricRecord)]
    if len(found) != 1:
        raise ValueError(f"it sent {len(found)} MetricRecords, where one is expected")
    return found[0]
