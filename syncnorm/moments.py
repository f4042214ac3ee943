"""The primitive: count, mean and M2 of a sample, and their exact merge.

SyncBatchNorm merges them over ranks, recalibration over batches, a federated server over clients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations (M2) of a sample, per channel.

    Estimator: exact moments of everything merged in, in any order and any split. Merging adds up the parts' M2 and
    the spread of their means,

        N = sum n_r,   mean = sum n_r mean_r / N,   M2 = sum M2_r + sum n_r (mean_r - mean)^2

    (Chan, Golub & LeVeque 1983), which stays precise when the mean is much larger than the standard deviation, unlike
    E[x^2] - E[x]^2. `var(correction=1)` is the unbiased variance that BN keeps as running variance, `correction=0`
    the biased one it normalises with. A count of zero is a neutral element. Everything is differentiable.

    Shapes: count (), mean (C,), m2 (C,). Parts stacked along a leading dimension R are (R,), (R, C), (R, C).
    """

    count: Tensor
    mean: Tensor
    m2: Tensor

    @classmethod
    def of(cls, x: Tensor, dim: int | Sequence[int], where: Tensor | None = None) -> Moments:
        """Return the moments of `x` over the dimensions `dim`, e.g. (0, 2, 3) for x of shape (N, C, H, W).

        With `where`, bool, as many dimensions as `x`, 1 in that of the channels, only values where it is true count;
        others may be anything, even NaN. One more dimension that stays, before the channels, makes a stack of parts:
        x (b, R, C, H, W) over (0, 3, 4) has count (R,).

        float16 and bfloat16 are accumulated in float32; other types in their own. An empty sample has mean and M2
        zero, connected to `x` for autograd, so that a rank without samples still takes part in a backward.
        """
        dims = (dim,) if isinstance(dim, int) else tuple(dim)
        x = x.to(acc_dtype(x.dtype))
        samples: int | Tensor
        if where is None:
            total = 1
            for d in dims:
                total *= x.shape[d]
            count, samples = x.new_full((), total, dtype=torch.float64), max(total, 1)
            rough = x.sum(dims, keepdim=True) / samples
            deviation = x - rough
        else:
            x = torch.where(where, x, 0.0)
            each = _count(where, x, dims)
            count, samples = each.squeeze(dims).squeeze(-1), each.clamp(min=1).to(x.dtype)
            rough = x.sum(dims, keepdim=True) / samples
            deviation = torch.where(where, x - rough, 0.0)
            samples = samples.squeeze(dims)
        # Zero except for the rounding error of the first sum; this removes that error from mean and M2.
        residue = deviation.sum(dims) / samples
        m2 = deviation.square().sum(dims) - samples * residue.square()
        return cls(count, rough.reshape(residue.shape) + residue, m2)

    def merge(self, other: Moments) -> Moments:
        """Return the moments of both samples together."""
        return Moments.pool([self, other])

    @staticmethod
    def pool(parts: Sequence[Moments]) -> Moments:
        """Return the moments of all parts together. An empty sequence raises `ValueError`: the shape is unknown."""
        if not parts:
            raise ValueError("Moments.pool got no parts: give it at least one.")
        return Moments(
            torch.stack([part.count for part in parts]),
            torch.stack([part.mean for part in parts]),
            torch.stack([part.m2 for part in parts]),
        ).pooled()

    def pooled(self) -> Moments:
        """Return the moments of all parts of a stack (count (R,), mean (R, C), m2 (R, C)) together.

        One dimension more after the first, (R, D) and (R, D, C), gives D moments: count (D,), mean and m2 (D, C).
        """
        count = self.count.unsqueeze(-1)
        total = self.count.sum(0)
        share = (count / torch.where(total > 0, total, 1.0).unsqueeze(-1)).to(self.mean.dtype)
        # The mean of a part without samples may be anything, even NaN, so a weight of zero would not exclude it.
        mean_of_part = torch.where(count > 0, self.mean, 0.0)
        m2_of_part = torch.where(count > 0, self.m2, 0.0)
        rough = (share * mean_of_part).sum(0)
        # Zero except for the rounding error of the first sum, as in `of`.
        mean = rough + (share * (mean_of_part - rough)).sum(0)
        spread = mean_of_part - mean
        return Moments(total, mean, (m2_of_part + count.to(mean.dtype) * spread.square()).sum(0))

    def var(self, correction: int = 0) -> Tensor:
        """Return the variance M2 / (count - correction): biased for correction 0, unbiased for 1. Shape (C,).

        Zero if count <= correction. Of a stack, each part's: (R, C).
        """
        if correction not in (0, 1):
            raise ValueError(f"correction is {correction!r}: write 0 (biased) or 1 (unbiased).")
        degrees = (self.count - correction).to(self.m2.dtype)
        degrees = degrees.unsqueeze(-1) if degrees.dim() else degrees
        return torch.where(degrees > 0, self.m2 / degrees.clamp(min=1e-30), 0.0)


def _count(where: Tensor, x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return how many values of `x` there are where `where` is true, over `dims`, which stay as 1; in float64."""
    times = 1
    for d in dims:
        times *= x.shape[d] // where.shape[d] if where.shape[d] else 1
    return where.sum(dims, keepdim=True, dtype=torch.float64) * times


def acc_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type that statistics of `dtype` are held in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
