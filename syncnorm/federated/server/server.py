"""The server of a federation: what it sends, and what it makes of the replies. No network, no files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from syncnorm.errors import UserError
from syncnorm.federated.aggregation import check_update, combine, normalised_weights
from syncnorm.federated.federation import Federation
from syncnorm.federated.messages import Broadcast, Reply
from syncnorm.federated.server.wasserstein import personal_shares
from syncnorm.federated.validation import algorithm_options

State = dict[str, Tensor]


@dataclass(frozen=True)
class Received:
    """What came of a round."""

    used: list[int]
    """Clients whose replies count, in ascending order."""
    left_out: dict[int, str] = field(default_factory=dict)
    """Why others do not, one sentence a client."""
    loss: float = 0.0
    """Mean data loss of local training, weighted as the clients are, in nats."""


class Server:
    """The global model and what the server remembers beside it.

    state: the model's entries; those that stay with clients are as they were built.
    control: SCAFFOLD's c, by parameter (arXiv 1910.06378).
    """

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        self.state: State = {name: value.detach().clone() for name, value in federation.model.state_dict().items()}
        self.control: State = {}
        if federation.world.algorithm == "scaffold":
            self.control = {name: torch.zeros_like(self.state[name]) for name in sorted(federation.shared_parameters)}
        self._personal: dict[int, State] = {}
        self._first: State = {}
        self._second: State = {}

    def broadcast(self, round_: int, client: int, evaluate: bool = False) -> Broadcast:
        """Return what a client receives in a round; gathered statistics are for evaluation alone."""
        names = [*self.federation.shared_names, *(self.federation.gathered_names if evaluate else ())]
        state = {name: self.state[name] for name in names}
        return Broadcast(round_, {**state, **self._personal.get(client, {})}, self.control)

    def receive(self, round_: int, replies: Sequence[Reply]) -> Received:
        """Take the replies of a round's clients in, in the order of their ids; unusable ones are left out.

        Raises:
            UserError: fewer than `enough` of the clients gave a usable update; the model is as it was.
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
        combined = combine(self.state, self.federation.kinds, [reply.state for reply in usable], shares)
        self._blend_statistics(round_, combined)
        self._step(combined)
        self._move_control(usable)
        if self.federation.policy.rest == "wasserstein":
            combined |= self._mix(usable)
        # A layer with two names has two entries here, of which a server optimiser moves one.
        self.state = {name: combined[known] for name, known in self.federation.entries.items()}
        loss = sum(share * reply.loss for share, reply in zip(shares.tolist(), usable, strict=True))
        return Received([reply.client for reply in usable], left_out, loss)

    def set_statistics(self, statistics: Mapping[str, Tensor]) -> None:
        """Take running statistics that a pass has gathered."""
        self.state = {**self.state, **statistics}

    def remember(self) -> dict[str, Any]:
        """Return all that the server knows, as plain data and tensors."""
        return {
            "state": self.state,
            "control": self.control,
            "personal": dict(self._personal),
            "first": dict(self._first),
            "second": dict(self._second),
        }

    def recall(self, known: Mapping[str, Any]) -> None:
        """Go back to what `remember` returned."""
        self.state, self.control, self._personal = known["state"], known["control"], known["personal"]
        self._first, self._second = known["first"], known["second"]

    def _usable(self, replies: Sequence[Reply]) -> tuple[list[Reply], dict[int, str]]:
        usable, left_out = [], {}
        for reply in sorted(replies, key=lambda reply: reply.client):
            try:
                if reply.error:
                    raise ValueError(reply.error)
                check_update(self.state, reply.state, self.federation.kinds, str(reply.client))
                _check_control(self.control, reply)
                usable.append(reply)
            except ValueError as error:
                left_out[reply.client] = str(error)
        return usable, left_out

    def _blend_statistics(self, round_: int, combined: State) -> None:
        """Move statistics towards the clients' by the policy's momentum.

        Frozen ones stay as they are to the bit, which their own average need not be.
        """
        momentum = self.federation.options.get("momentum", 1.0)
        momentum = 0.0 if self.federation.is_frozen(round_) else momentum
        if momentum < 1:
            for name in self.federation.statistics:
                combined[name] = torch.lerp(self.state[name], combined[name], momentum)

    def _step(self, combined: State) -> None:
        """Let a server optimiser move the shared parameters by the clients' mean change; buffers are never touched.

        FedAvgM: v = momentum v + d, w += lr v (arXiv 1909.06335). FedAdam: m = beta1 m + (1 - beta1) d,
        v = beta2 v + (1 - beta2) d^2, w += lr m / (sqrt(v) + tau) (arXiv 2003.00295, algorithm 2).
        """
        world = self.federation.world
        if world.algorithm not in ("fedadam", "fedavgm"):
            return
        options = algorithm_options(world)
        for name in sorted(self.federation.shared_parameters):
            change = combined[name] - self.state[name]
            first = self._first.get(name, torch.zeros_like(change))
            if world.algorithm == "fedavgm":
                self._first[name] = options["momentum"] * first + change
                step = self._first[name]
            else:
                second = self._second.get(name, torch.zeros_like(change))
                self._first[name] = options["beta1"] * first + (1 - options["beta1"]) * change
                self._second[name] = options["beta2"] * second + (1 - options["beta2"]) * change.square()
                step = self._first[name] / (self._second[name].sqrt() + options["tau"])
            combined[name] = self.state[name] + options["lr"] * step

    def _move_control(self, usable: Sequence[Reply]) -> None:
        """Add the sum of the clients' changes over the number of all clients: |S|/N mean_k(dc_k)."""
        count = len(self.federation.trainees)
        self.control = {
            name: value + torch.stack([reply.control[name] for reply in usable]).sum(0) / count
            for name, value in self.control.items()
        }

    def _mix(self, usable: Sequence[Reply]) -> State:
        """Average everything but batch norm for each client anew, the nearer clients the more (FedAP).

        Returns the mean of all clients' averages: what a client starts from when it is sampled for the first time.
        """
        federation = self.federation
        own_share = federation.options["own_share"]
        shares = personal_shares([reply.state for reply in usable], federation.layers, own_share)
        names = [name for name, rule in federation.kinds.items() if rule == "personal"]
        stacked = {name: torch.stack([reply.state[name] for reply in usable]) for name in names}
        for reply, row in zip(usable, shares, strict=True):
            self._personal[reply.client] = {
                name: torch.tensordot(row.to(value.device), value.double(), 1).to(value.dtype)
                for name, value in stacked.items()
            }
        everybody = [self._personal[client] for client in sorted(self._personal)]
        return {
            name: torch.stack([one[name].double() for one in everybody]).mean(0).to(self.state[name].dtype)
            for name in names
        }


def _check_control(control: State, reply: Reply) -> None:
    for name, value in control.items():
        sent = reply.control.get(name)
        if sent is None or sent.shape != value.shape or not sent.isfinite().all():
            raise ValueError(f"client {reply.client} sent no usable control for '{name}'.")
