"""FedAP's question: how near is one client's data to another's, as their batch-norm statistics show it?"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

NEAREST = 1e-12
"""Distances below this count as this: two clients with the same statistics weigh much, and not infinitely much."""


def personal_shares(states: Sequence[Mapping[str, Tensor]], layers: Sequence[str], own_share: float) -> Tensor:
    """Return what each client's personal average takes of every client: float64 (K, K), rows sum to 1.

    Between the running statistics of two clients, as diagonal Gaussians, lies the Wasserstein-2 distance

        d_ij = sum_layers sqrt(||mu_i - mu_j||^2 + ||sigma_i - sigma_j||^2);

    client i takes `own_share` of itself and the rest of the others in proportion to 1 / d_ij (FedAP, arXiv
    2112.00734). There the distances are measured once, after a pre-training; here in every round, between the clients
    of the round. A client that is alone takes itself.
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
