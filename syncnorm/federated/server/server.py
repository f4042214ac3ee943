"""The server of a federation: it makes broadcasts and processes replies, without network or files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from syncnorm.config import Clients
from syncnorm.errors import UserError
from syncnorm.federated.aggregation import check_update, combine, is_dense, normalised_weights, not_finite
from syncnorm.federated.algorithms.base import Memory, ServerRound
from syncnorm.federated.federation import Federation
from syncnorm.federated.messages import Broadcast, Reply
from syncnorm.federated.policies import can_average

State = dict[str, Tensor]
MOST_SAMPLES = 2**53
"""Largest number of samples that is believed."""


@dataclass(frozen=True)
class Received:
    """The outcome of a round."""

    used: list[int]
    """Clients whose replies are used, in ascending order."""
    left_out: dict[int, str] = field(default_factory=dict)
    """Why other clients' replies are not used, one sentence each."""
    loss: float = 0.0
    """Mean data loss of local training in nats, with the clients' weights."""


class Server:
    """The global model and the server's further state.

    state: the model's entries; those that stay with clients keep their initial values.
    memory: the state of the run's algorithm.
    """

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        template = federation.models.template.state_dict()
        self.state: State = {name: value.detach().clone() for name, value in template.items()}
        parameters = {name: self.state[name] for name in federation.layout.shared_parameters}
        self.memory: Memory = federation.algorithm.server_memory(parameters)

    def broadcast(self, round_: int, client: int, evaluate: bool = False) -> Broadcast:
        """Return the broadcast to a client in a round; it has gathered statistics only for evaluation."""
        layout, algorithm = self.federation.layout, self.federation.algorithm
        names = [*layout.broadcast, *(layout.gathered if evaluate else ())]
        state = {name: self.state[name] for name in names}
        personal = algorithm.personal_entries(self.memory, client)
        return Broadcast(round_, {**state, **personal}, algorithm.message(self.memory))

    def receive(self, round_: int, replies: Sequence[Reply]) -> Received:
        """Compute the next model from the replies of a round's clients; unusable replies are left out.

        Raises:
            UserError: less than the fraction `enough` of the clients gave a usable update; the model is then
            unchanged.
        """
        usable, left_out = self._usable(replies)
        world = self.federation.world
        if len(usable) < max(1, world.enough * len(replies)):
            client, why = next(iter(left_out.items()))
            raise UserError(
                f"round {round_ + 1}: {len(left_out)} of {len(replies)} clients gave no usable update, and enough is "
                f"{world.enough:g} (client {client}: {why}) Lower optim.lr if training diverges, or lower enough."
            )
        weights = [float(reply.samples) if world.weighting == "samples" else 1.0 for reply in usable]
        shares = normalised_weights(usable, weights)
        self._step(round_, usable, shares)
        loss = sum(share * reply.loss for share, reply in zip(shares.tolist(), usable, strict=True))
        return Received([reply.client for reply in usable], left_out, loss)

    def set_statistics(self, statistics: Mapping[str, Tensor]) -> None:
        """Set running statistics that a pass has gathered."""
        self.state = {**self.state, **statistics}

    def remember(self) -> dict[str, Any]:
        """Return the server's state, as plain data and tensors."""
        return {"state": self.state, "memory": self.memory}

    def recall(self, known: Mapping[str, Any]) -> None:
        """Restore the state that `remember` returned."""
        self.state, self.memory = known["state"], known["memory"]

    def _usable(self, replies: Sequence[Reply]) -> tuple[list[Reply], dict[int, str]]:
        usable, left_out = [], {}
        for reply in sorted(replies, key=lambda reply: reply.client):
            try:
                if reply.error:
                    raise ValueError(reply.error)
                check_update(self.state, reply.state, self.federation.layout.reductions, str(reply.client))
                _check_numbers(reply)
                self._check_result(reply)
                usable.append(reply)
            except ValueError as error:
                left_out[reply.client] = str(error)
        return usable, left_out

    def _check_result(self, reply: Reply) -> None:
        if odd := sorted(str(name) for name, value in reply.extra.items() if not is_dense(value)):
            raise ValueError(f"client {reply.client} sent '{odd[0]}' beside its model, which is no tensor.")
        try:
            self.federation.algorithm.check_result(self.memory, reply.extra)
        except ValueError as error:
            raise ValueError(f"client {reply.client} {error}") from error

    def _step(self, round_: int, usable: Sequence[Reply], shares: Tensor) -> None:
        """Combine usable replies, and let the algorithm compute the next model from the average."""
        federation, layout = self.federation, self.federation.layout
        states = [reply.state for reply in usable]
        combined = combine(self.state, layout.reductions, states, shares, federation.aggregation)
        self._blend_statistics(round_, combined)
        known = ServerRound(
            state=self.state,
            average=combined,
            shared=layout.shared_parameters,
            personal=layout.personal,
            layers=layout.layers,
            replies=usable,
            weights=shares,
            clients=len(federation.schedule.trainees),
        )
        moved, memory = federation.algorithm.server_step(known, self.memory)
        after = {**combined, **moved}
        if (first := not_finite(moved, self.state)) is not None:
            raise UserError(
                f"round {round_ + 1}: the server's step of algorithm {federation.world.algorithm} made '{first}' "
                "infinite: lower its learning rate, or, if a client may be hostile, choose aggregation median."
            )
        if _spoilt(memory, self.state):
            chosen, plain = federation.world.algorithm, Clients.algorithm
            what = f"method {federation.world.method}" if chosen == plain else f"algorithm {chosen}"
            raise UserError(
                f"round {round_ + 1}: {what} would remember values that are not finite: lower the learning rate, or, "
                f"if a client may be hostile, choose {what.split()[0]} {plain}."
            )
        self.memory = memory
        # A layer with two names has two entries here, but an algorithm changes only one.
        self.state = {name: after[listed] for name, listed in layout.listed.items()}

    def _blend_statistics(self, round_: int, combined: State) -> None:
        """Move statistics towards the clients' by the policy's momentum.

        Frozen statistics stay bit-identical; their own average might not be.
        """
        momentum = self.federation.options.get("momentum", 1.0)
        momentum = 0.0 if self.federation.schedule.is_frozen(round_) else momentum
        if momentum < 1:
            for name in self.federation.layout.statistics:
                combined[name] = torch.lerp(self.state[name], combined[name], momentum)


def _spoilt(memory: Any, state: Mapping[str, Tensor]) -> bool:
    """Return whether an algorithm's memory, of whatever depth, has values that are not finite.

    Where a part is named after an entry of the model, infinities that the entry has itself do not count.
    """
    if isinstance(memory, Tensor):
        return can_average(memory.dtype) and not bool(memory.isfinite().all())
    if not isinstance(memory, Mapping):
        return False
    entries = {name: part for name, part in memory.items() if _is_like(part, state.get(name))}
    known = {name: state[name] for name in entries}
    return not_finite(entries, known) is not None or any(
        _spoilt(part, state) for name, part in memory.items() if name not in entries
    )


def _is_like(part: Any, entry: Tensor | None) -> bool:
    return isinstance(part, Tensor) and entry is not None and part.shape == entry.shape


def _check_numbers(reply: Reply) -> None:
    """Raise `ValueError` for a number of samples or a loss that would spoil a mean."""
    if not (isinstance(reply.samples, int) and 0 <= reply.samples <= MOST_SAMPLES):
        raise ValueError(f"client {reply.client} says that it has {reply.samples} samples, which is no count.")
    if not (isinstance(reply.loss, int | float) and isfinite(reply.loss)):
        raise ValueError(f"client {reply.client} sent the loss {reply.loss}, which is not finite.")
