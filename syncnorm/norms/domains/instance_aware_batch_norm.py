"""Batch norm that uses a sample's own statistics where they differ from the batch's by more than chance.

model = syncnorm.convert(model, "iabn", k=4.0)
"""

from __future__ import annotations

import torch
from torch import Tensor

from syncnorm.moments import Moments, acc_dtype
from syncnorm.norms.core.affine import normalise
from syncnorm.norms.core.ranks.groups import Group
from syncnorm.norms.core.shapes import check_divisor, positions_problem
from syncnorm.norms.core.synchronised import SynchronisedBatchNorm


class InstanceAwareBatchNorm(SynchronisedBatchNorm):
    """Instance-aware batch norm, for streams in which neighbouring samples are similar.

    Let mu and s2 be the mean and variance of the batch in training, and the running ones in evaluation. With the mean
    mu_i and variance s2_i of each sample over its L positions,

        mean_i = mu + shrink(mu_i - mu, k sqrt((s2 + eps) / L))
        var_i  = s2 + shrink(s2_i - s2, k (s2 + eps) sqrt(2 / (L - 1)))
        y_i = (x_i - mean_i) / sqrt(var_i + eps) * weight + bias,   shrink(d, t) = sign(d) max(0, |d| - t)

    A sample is normalised as in batch norm unless its own statistics are more than k standard errors away: k =
    infinity is batch norm, k = 0 instance norm. (The source clips var_i at 0, but it is never below.) In evaluation,
    a sample's output does not depend on its batch. Running statistics are updated as in PyTorch's layer, with the
    unbiased variance.

    Source: NOTE (Gong et al., arXiv 2208.05117): the formula is theirs, s2 and s2_i unbiased as in their code. From
    memory and not confirmed: k = 4 is the article's value (their class has 3). `BalancedMemory` is their memory,
    which updates the running statistics at test time.

    Args:
        num_features: C of an input of shape (N, C, L), (N, C, H, W) or (N, C, D, H, W).
        eps: added to the variance.
        momentum: weight of the newest statistics in the running ones; None averages all batches equally.
        affine: learn weight and bias, shape (C,).
        track_running_stats: must be True: samples are compared with them.
        k: number of standard errors attributed to chance, at least 0.
        sync: take the batch to be that of all ranks of torch.distributed (`process_group`: of these ranks); None: if
            a `process_group` is given.

    Raises:
        ValueError: an input with another number of channels, or with fewer than two positions.
    """

    needs_statistics = "evaluates by running statistics"

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        sync: bool | None = None,
        process_group: Group = None,
        k: float = 4.0,
    ) -> None:
        if not k >= 0:
            raise ValueError(f"k is {k}: it is a number of standard errors, at least 0.")
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self.share(sync, process_group)
        self.k = k

    def check(self, x: Tensor) -> None:
        """Raise `ValueError` for an input with one position too."""
        super().check(x)
        if problem := positions_problem(self, self.num_features, x):
            self.refuse(problem, x)

    def normalised(self, x: Tensor) -> Tensor:
        """Normalise `x` of shape (N, C, ...), with at least two positions."""
        positions = max(x[0:1, 0:1].numel(), 2)  # an empty batch has none
        values = x.to(acc_dtype(x.dtype))
        mean, var = self._statistics(values)
        own = Moments.of(values, tuple(range(2, x.dim())))
        spread = var + self.eps
        mean_i = mean + _shrink(own.mean - mean, self.k * (spread / positions).sqrt())
        var_i = var + _shrink(own.var(correction=1) - var, self.k * spread * (2 / (positions - 1)) ** 0.5)
        check_divisor(self, self.num_features, var_i)
        return normalise(x, mean_i, var_i, self.eps, self.weight, self.bias)

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and variance that samples are compared with, (C,); in training, update the running ones."""
        if self.training and (x.numel() or self.meets()):
            batch = self.moments(x, empty=True)
            var = batch.var(correction=1)
            self.move(batch.mean, var, batch.count > 0)
            return batch.mean, var
        running_mean, running_var = self.running()
        return running_mean.to(x.dtype), running_var.to(x.dtype)

    def extra_repr(self) -> str:
        """Show k after what every batch norm shows."""
        return f"{super().extra_repr()}, k={self.k}"


def _shrink(difference: Tensor, chance: Tensor) -> Tensor:
    """Return sign(d) max(0, |d| - t)."""
    return difference - torch.minimum(torch.maximum(difference, -chance), chance)
