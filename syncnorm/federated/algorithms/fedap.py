"""FedAP (Lu et al., arXiv 2112.00734): each client's own average, the nearer clients counting more."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from syncnorm.federated.aggregation import wide
from syncnorm.federated.algorithms.base import Algorithm, Memory, ServerRound
from syncnorm.federated.messages import Tensors
from syncnorm.federated.options import FROM_0_TO_1, Option

NEAREST = 1e-12
"""Lower bound on distances, so that two clients with the same statistics get a large but finite weight."""


class FedAP(Algorithm):
    """Average everything except batch norm separately for each client (`personal_shares`).

    A newly sampled client starts from the mean of all clients' averages.

    Options:
        own_share: the weight of a client's own model in its average.
    """

    OPTIONS: ClassVar[Mapping[str, Option]] = {"own_share": Option(0.5, FROM_0_TO_1)}
    needs_average = False

    def server_memory(self, parameters: Tensors) -> Memory:
        """Return the clients' averages, none at first."""
        return {"personal": {}}

    def personal_entries(self, memory: Memory, client: int) -> Tensors:
        """Return the client's average."""
        own: Tensors = memory["personal"].get(client, {})
        return own

    def server_step(self, round_: ServerRound, memory: Memory) -> tuple[Tensors, Memory]:
        """Update the averages of the round's clients."""
        shares = personal_shares([reply.state for reply in round_.replies], round_.layers, self.options["own_share"])
        stacked = {name: torch.stack([reply.state[name] for reply in round_.replies]) for name in round_.personal}
        personal = dict(memory["personal"])
        for reply, row in zip(round_.replies, shares, strict=True):
            personal[reply.client] = {
                name: torch.tensordot(row.to(value.device, kind := wide(value.dtype)), value.to(kind), 1).to(
                    value.dtype
                )
                for name, value in stacked.items()
            }
        everybody = [personal[client] for client in sorted(personal)]
        mean = {
            name: torch.stack([one[name].to(wide(one[name].dtype)) for one in everybody])
            .mean(0)
            .to(round_.state[name].dtype)
            for name in round_.personal
        }
        return mean, {"personal": personal}


def _mean(stacked: Tensor, shares: Tensor) -> Tensor:
    """Return the mean over the first dimension with these shares."""
    kind = wide(stacked.dtype)
    mean: Tensor = torch.tensordot(shares.to(kind), stacked.to(kind), 1)
    return mean


def personal_shares(states: Sequence[Mapping[str, Tensor]], layers: Sequence[str], own_share: float) -> Tensor:
    """Return each client's weights of all clients in its personal average: float64 (K, K), rows sum to 1.

    With the Wasserstein-2 distance between two clients' running statistics, as diagonal Gaussians,

        d_ij = sum_layers sqrt(||mu_i - mu_j||^2 + ||sigma_i - sigma_j||^2);

    client i has weight `own_share` in its own average, and the others share the rest in proportion to 1 / d_ij
    (FedAP, arXiv 2112.00734). FedAP measures the distances once, after a pre-training; here they are measured in
    every round, between the clients of the round. A single client gets weight 1.
    """
    count = len(states)
    if count == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    near = 1 / distances(states, layers).clamp(min=NEAREST)
    near.fill_diagonal_(0)
    shares = (1 - own_share) * near / near.sum(1, keepdim=True)
    return shares + own_share * torch.eye(count, dtype=torch.float64)


def distances(states: Sequence[Mapping[str, Tensor]], layers: Sequence[str]) -> Tensor:
    """Return the Wasserstein-2 distances between all pairs of clients, summed over layers: float64 (K, K)."""
    total = torch.zeros(len(states), len(states), dtype=torch.float64)
    for layer in layers:
        where = f"{layer}." if layer else ""
        mean = torch.stack([state[f"{where}running_mean"].double() for state in states])
        deviation = torch.stack([state[f"{where}running_var"].double().sqrt() for state in states])
        spread = torch.cat([mean, deviation], dim=1)
        total += (spread.unsqueeze(0) - spread.unsqueeze(1)).square().sum(2).sqrt().cpu()
    return total
