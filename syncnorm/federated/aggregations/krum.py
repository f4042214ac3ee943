"""Multi-Krum (Blanchard et al., arXiv 1703.02757) for parameters, trimmed pooled moments for statistics."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from syncnorm.federated.aggregations.base import averaged_parameters, change
from syncnorm.federated.aggregations.trimmed import Trimmed
from syncnorm.federated.messages import Tensors
from syncnorm.federated.policies import Reduction


class Krum(Trimmed):
    """The mean of the clients nearest to the others (Multi-Krum, Blanchard et al., arXiv 1703.02757).

    Of K clients, f = floor(trim K) are left out: those with the largest scores

        s_k = sum of |w_k - w_j|^2 over the K - f - 2 other clients j nearest to k (at least one),

    over all averaged entries but running statistics. A client whose update points elsewhere is left out as a whole,
    which no bound on single coordinates can do. Statistics and counters are those of all clients, with the trimmed
    mean and trimmed pooled moments of `Trimmed`, since a client may be honest about parameters alone. Clients count
    alike. The guarantee of the source needs K > 2 f + 2. Hostile clients that send the same are near each other.

    Options:
        trim: fraction of clients that is left out, and of statistics that is dropped at each end.
    """

    def chosen(
        self, current: Tensors, states: Sequence[Tensors], reductions: Mapping[str, Reduction]
    ) -> Sequence[int]:
        """Return the places of the K - f clients with the smallest scores, in ascending order."""
        count, left_out = len(states), self._cut(len(states))
        names = averaged_parameters(current, reductions)
        if not names or not left_out:
            return range(count)
        apart = torch.stack([_squares(current[name], [state[name] for state in states]) for name in names]).sum(0)
        apart.fill_diagonal_(0)
        nearest = apart.sort(1).values[:, 1 : 1 + max(1, count - left_out - 2)]  # the first is the client itself
        order = nearest.sum(1).sort(stable=True).indices[: count - left_out]
        places: list[int] = sorted(order.tolist())
        return places

    def center(self, values: Tensor, shares: Tensor) -> Tensor:
        """Return the mean of the chosen clients' values."""
        return (values / len(values)).sum(0)

    def statistic(self, values: Tensor, shares: Tensor) -> Tensor:
        """Return the trimmed mean of all clients' statistics."""
        return super().center(values, shares)


def _squares(before: Tensor, values: Sequence[Tensor]) -> Tensor:
    """Return the squared distances of all pairs of clients in one entry, (K, K) in float64."""
    changes = torch.stack([change(before, value) for value in values])
    parts = (torch.view_as_real(changes) if changes.is_complex() else changes).reshape(len(values), -1)
    return torch.cdist(parts, parts, compute_mode="donot_use_mm_for_euclid_dist").square().cpu()
