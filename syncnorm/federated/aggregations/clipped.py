"""The mean of updates clipped to their median norm; statistics are clipped to a ratio of the median variance."""

from collections.abc import Mapping, Sequence
from math import inf
from typing import ClassVar

import torch
from torch import Tensor

from syncnorm.federated.aggregations.base import averaged_parameters, change, statistics_pairs
from syncnorm.federated.aggregations.trimmed import Median, Trimmed
from syncnorm.federated.messages import Tensors
from syncnorm.federated.options import Option, Range
from syncnorm.federated.policies import Reduction

ABOVE_1 = Range("at least 1", lambda number: 1 <= number < inf)
MIDDLE = Median()


class Clipped(Trimmed):
    """The mean of updates clipped to their median norm (arXiv 2101.02281), trimmed moments of clipped statistics.

    With d_k the change of all averaged entries but running statistics, a client's change becomes

        d_k min(1, med_j |d_j| / |d_k|)

    in the Euclidean norm (the clipping of FLAME, Nguyen et al., arXiv 2101.02281, without its clusters and noise). In
    each channel, with v = med_k(sigma_k^2) and the ratio r,

        sigma_k^2 is clipped to [v / r, v r],   mu_k to med_j(mu_j) +- sqrt(v (r - 1)),

    then statistics and whole numbers are combined as by `Trimmed`. The clip alone (trim 0) bounds what hostile
    clients can do, and does not hold a third of them: together at the bound they move a mean by a part of a standard
    deviation. An update's size is bounded and its direction is not: sign-flipped updates slow training down. Clients
    count alike.

    Options:
        ratio: largest ratio of a client's variance to the median, or of the median to it.
        trim: fraction of clients whose statistics are dropped at each end.
    """

    OPTIONS: ClassVar[Mapping[str, Option]] = {"ratio": Option(4.0, ABOVE_1), **Trimmed.OPTIONS}

    def bounded(
        self, current: Tensors, states: Sequence[Tensors], reductions: Mapping[str, Reduction]
    ) -> Sequence[Tensors]:
        """Return the states with clipped changes and statistics."""
        after = [dict(state) for state in states]
        self._clip_changes(current, after, averaged_parameters(current, reductions))
        for mean, var in statistics_pairs(reductions, "average", "pooled"):
            self._clip_statistics(after, mean, var)
        return after

    def center(self, values: Tensor, shares: Tensor) -> Tensor:
        """Return the mean of clipped parameters; clients count alike."""
        return (values / len(values)).sum(0)

    def statistic(self, values: Tensor, shares: Tensor) -> Tensor:
        """Return the trimmed mean of clipped statistics."""
        return super().center(values, shares)

    def _clip_changes(self, current: Tensors, states: Sequence[dict[str, Tensor]], names: Sequence[str]) -> None:
        """Clip the changes of `names` in place; a change with an infinite norm becomes none."""
        if not names:
            return
        norms = torch.stack([_norm([change(current[name], state[name]) for name in names]) for state in states])
        bound = MIDDLE.center(norms, norms)
        for state, norm in zip(states, norms, strict=True):
            if norm <= bound:
                continue
            for name in names:
                step = change(current[name], state[name]) * (bound / norm)
                step = torch.where(step.isfinite(), step, 0.0)
                state[name] = current[name].to(step.dtype) + step

    def _clip_statistics(self, states: Sequence[dict[str, Tensor]], mean: str, var: str) -> None:
        means, variances = (torch.stack([state[name].double() for state in states]) for name in (mean, var))
        alike = torch.ones(len(states), dtype=torch.float64)
        middle, usual, ratio = MIDDLE.center(means, alike), MIDDLE.center(variances, alike), self.options["ratio"]
        reach = (usual * (ratio - 1)).sqrt()
        for state, one, other in zip(states, means, variances, strict=True):
            state[mean] = one.clamp(middle - reach, middle + reach)
            state[var] = other.clamp(usual / ratio, usual * ratio)


def _norm(changes: Sequence[Tensor]) -> Tensor:
    return torch.stack([one.abs().square().sum() for one in changes]).sum().sqrt()
