"""The base of aggregations: how a server makes one value of its clients', and the weighted mean.

A server first lets the aggregation bound what clients sent (`bounded`), and choose whose parameters count (`chosen`).
Then it takes one value of the clients' for each entry: the centre of parameters (`center`) and of averaged statistics
(`statistic`), the largest of whole numbers (`largest`), mean and variance of pooled statistics (`pooled`). The
weighted mean uses the default of every hook, but merges moments exactly.

    import syncnorm
    from syncnorm.federated import Aggregation

    @syncnorm.register_aggregation("midpoint")
    class Midpoint(Aggregation):
        \"\"\"The middle between the smallest and the largest value.\"\"\"

        def center(self, values, shares):
            return (values.amin(0) + values.amax(0)) / 2
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from syncnorm.federated.messages import Tensors
from syncnorm.federated.options import Option, checked_options
from syncnorm.federated.policies import STATISTICS, Reduction, can_average
from syncnorm.moments import Moments


class Aggregation:
    """The weighted mean of what clients sent, with hooks for other aggregations.

    An aggregation stores only its options, so that any process can compute the same model.

    Args:
        options: values that override the defaults in `OPTIONS`.

    Raises:
        UserError: an option that it does not have, or a value of the wrong type or out of range.
    """

    OPTIONS: ClassVar[Mapping[str, Option]] = {}
    """Options by name."""

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self.options = checked_options(f"the aggregation {type(self).__name__.lower()}", self.OPTIONS, options or {})

    def bounded(
        self, current: Tensors, states: Sequence[Tensors], reductions: Mapping[str, Reduction]
    ) -> Sequence[Tensors]:
        """Return the clients' states with bounds on what each may change; `current` is the global model's.

        States are in the order of clients, and hold what `reductions` combines.
        """
        return states

    def chosen(
        self, current: Tensors, states: Sequence[Tensors], reductions: Mapping[str, Reduction]
    ) -> Sequence[int]:
        """Return the places of the clients whose parameters count; statistics and counters are those of all."""
        return range(len(states))

    def center(self, values: Tensor, shares: Tensor) -> Tensor:
        """Return one value for those of all clients, (K, ...) to (...) in float64; shares (K,) sum to 1."""
        return (shares.view(-1, *[1] * (values.dim() - 1)) * values).sum(0)

    def statistic(self, values: Tensor, shares: Tensor) -> Tensor:
        """Return one value for a running statistic of all clients, as `center` does for a parameter."""
        return self.center(values, shares)

    def largest(self, values: Tensor) -> Tensor:
        """Return one whole number for those of all clients, (K, ...) to (...): the maximum."""
        return nth_smallest(values, len(values) - 1)

    def pooled(self, means: Tensor, variances: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance, (C,), of all clients together, from theirs, (K, C) in float64.

        With the centre c of `statistic`, the law of total variance becomes

            mu = c_k(mu_k),   sigma^2 = c_k(sigma_k^2 + (mu_k - mu)^2).
        """
        mean = self.statistic(means, shares)
        return mean, self.statistic(variances + (means - mean).square(), shares)


class Mean(Aggregation):
    """The weighted mean (McMahan et al., arXiv 1602.05629); moments merge exactly. One client can move it far."""

    def pooled(self, means: Tensor, variances: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance, (C,), of the union of the clients' samples (law of total variance)."""
        merged = Moments(shares, means, shares.unsqueeze(1) * variances).pooled()
        return merged.mean, merged.var()


WEIGHTED = Mean()
"""The weighted mean."""


def statistics_pairs(reductions: Mapping[str, Reduction], *kinds: Reduction) -> list[tuple[str, str]]:
    """Return the names of running means and variances whose variance has one of these reductions."""
    mean, var = STATISTICS
    variances = [name for name, reduction in reductions.items() if reduction in kinds and name.endswith(var)]
    return [(name.removesuffix(var) + mean, name) for name in variances]


def averaged_parameters(current: Tensors, reductions: Mapping[str, Reduction]) -> list[str]:
    """Return the names of the averaged entries that are no running statistics."""
    statistics = {name for pair in statistics_pairs(reductions, "average", "pooled") for name in pair}
    return [
        name
        for name, reduction in reductions.items()
        if reduction == "average" and name not in statistics and can_average(current[name].dtype)
    ]


def change(before: Tensor, after: Tensor) -> Tensor:
    """Return a change in float64 or complex128; of values that were not finite, which none may change, it is zero."""
    kind = torch.complex128 if before.dtype.is_complex else torch.float64
    own = before.to(kind)
    return torch.where(own.isfinite(), after.to(kind) - own, 0.0)


def nth_smallest(values: Tensor, place: int) -> Tensor:
    """Return the whole number at a place, from 0, of those of all clients in ascending order, (K, ...) to (...)."""
    if values.dtype not in (torch.uint16, torch.uint32, torch.uint64):
        return values.sort(0).values[place]
    # PyTorch does not sort these types.
    found = np.asarray(np.sort(values.cpu().numpy(), axis=0)[place])
    return torch.from_numpy(found).to(values.device)
