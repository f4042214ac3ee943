"""Batch renormalisation: batch norm, corrected within bounds towards its running statistics.

model = syncnorm.convert(model, "brn", warmup=500, r_end=4000, d_end=2500)
"""

from __future__ import annotations

import torch
from torch import Tensor

from syncnorm.moments import Moments
from syncnorm.norms.core.affine import normalise
from syncnorm.norms.core.batch_norm import batch_norm
from syncnorm.norms.core.ranks.groups import Group
from syncnorm.norms.core.recomputation import refuse_recomputation
from syncnorm.norms.core.running import moved, update_running
from syncnorm.norms.core.shapes import check_divisor, check_values
from syncnorm.norms.core.synchronised import SynchronisedBatchNorm


class BatchRenorm(SynchronisedBatchNorm):
    """Batch norm corrected towards its running statistics, so that training and evaluation normalise alike.

    With the batch's mean m and standard deviation s = sqrt(var + eps) (biased), and the running mu and sigma,

        r = clip(s / sigma, 1 / r_max, r_max),   d = clip((m - mu) / sigma, -d_max, d_max)
        y = ((x - m) / s * r + d) * weight + bias

    where r and d carry no gradient. Without the clips, y is what evaluation gives, (x - mu) / sigma * weight + bias.
    For the first `warmup` steps the bounds are r_max = 1 and d_max = 0, which is batch norm. They then grow linearly
    and reach the given bounds at steps `r_end` and `d_end`. num_batches_tracked counts the steps.

    Running statistics are updated after each batch,

        mu <- mu + momentum (m - mu),   sigma <- sigma + momentum (s - sigma)

    As in the source, the biased standard deviation is averaged, not the variance. The state holds running_var =
    sigma^2 - eps, so that it has the same meaning as in PyTorch's layer.

    Source: Ioffe (arXiv 1702.03275). The default bounds and steps are the source's for ImageNet, from memory and not
    confirmed; the linear ramp is a choice made here.

    Args:
        num_features: C of an input of shape (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W).
        eps: added to the variance.
        momentum: weight of the newest statistics in the running ones; None averages all batches equally.
        affine: learn weight and bias, shape (C,).
        track_running_stats: must be True: the batch is corrected towards them.
        r_max: largest r at the end of its ramp, at least 1.
        d_max: largest d at the end of its ramp, at least 0.
        warmup: steps of plain batch norm.
        r_end, d_end: steps at which r_max and d_max are reached, at least `warmup`.
        sync: take the batch to be that of all ranks of torch.distributed (`process_group`: of these ranks); None: if
            a `process_group` is given.

    Raises:
        ValueError: fewer than two values per channel in training; an input with another number of channels; a bound
            or step out of range; a recomputation under activation checkpointing, which would compute another r and d.
    """

    needs_statistics = "corrects the batch towards running statistics"

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
        r_max: float = 3.0,
        d_max: float = 5.0,
        warmup: int = 5000,
        r_end: int = 40000,
        d_end: int = 25000,
    ) -> None:
        for name, value, least in (("r_max", r_max, 1), ("d_max", d_max, 0), ("warmup", warmup, 0)):
            if not value >= least:
                raise ValueError(f"{name} is {value}: it must be at least {least}.")
        for name, end in (("r_end", r_end), ("d_end", d_end)):
            if end < warmup:
                raise ValueError(f"{name} is {end}, before the end of the warmup at {warmup}: write a later step.")
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self.share(sync, process_group)
        self.r_max, self.d_max = r_max, d_max
        self.warmup, self.r_end, self.d_end = warmup, r_end, d_end

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Return r_max and d_max for the next batch; num_batches_tracked gives its step (without it: the last)."""
        batches = self.num_batches_tracked
        step = torch.tensor(max(self.r_end, self.d_end)) if batches is None else batches
        begun = step.double() - self.warmup + 1
        r, d = ((begun / (end - self.warmup + 1)).clamp(0, 1) for end in (self.r_end, self.d_end))
        return 1 + (self.r_max - 1) * r, self.d_max * d

    def normalised(self, x: Tensor) -> Tensor:
        """Normalise `x` of shape (N, C, ...)."""
        if not self.training:
            return self.by_running(x)
        check_divisor(self, self.num_features)
        refuse_recomputation("BatchRenorm")
        if self.meets():
            batch = self.moments(x)
            return normalise(x, batch.mean, batch.var(), self.eps, *self._corrected(batch))
        check_values(self, self.num_features, x)
        # One kernel does the forward and the backward.
        weight, bias = self._corrected(Moments.of(x.detach(), (0, *range(2, x.dim()))))
        return batch_norm(x, None, None, weight, bias, True, 0.0, self.eps)

    def _corrected(self, batch: Moments) -> tuple[Tensor, Tensor]:
        """Return the weight and bias with which batch norm is the formula, (C,) each."""
        r, d = self._correct(batch)
        weight, bias = (r, d) if self.weight is None else (self.weight * r, self.weight * d)
        return weight, bias if self.bias is None else self.bias + bias

    @torch.no_grad()
    def _correct(self, batch: Moments) -> tuple[Tensor, Tensor]:
        """Return r and d, (C,) each, from the running statistics so far, and update the running statistics."""
        running_mean, running_var = self.running()
        deviation, running = (batch.var() + self.eps).sqrt(), (running_var + self.eps).sqrt()
        r_max, d_max = (bound.to(deviation) for bound in self.bounds())
        r = torch.clamp(deviation / running, 1 / r_max, r_max)
        d = torch.clamp((batch.mean - running_mean) / running, -d_max, d_max)
        if self.moves():
            newest = self.count()
            update_running(running_mean, batch.mean, newest)
            running_var.copy_((moved(running, deviation, newest).square() - self.eps).clamp(min=0))
        return r, d

    def extra_repr(self) -> str:
        """Show the bounds beside what every batch norm shows."""
        return f"{super().extra_repr()}, r_max={self.r_max}, d_max={self.d_max}, warmup={self.warmup}"
