"""Moving average batch norm: for small batches, statistics over several steps, forward and backward.

model = syncnorm.convert(model, "mabn", buffer=16)      # 16 steps of 2 images instead of one of 32
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from syncnorm.moments import Moments, acc_dtype
from syncnorm.norms.core.affine import ChannelAffine
from syncnorm.norms.core.ranks.groups import Group
from syncnorm.norms.core.ranks.meeting import Place
from syncnorm.norms.core.recomputation import refuse_recomputation
from syncnorm.norms.core.running import newest_weight, update_running
from syncnorm.norms.core.shapes import by_channel
from syncnorm.norms.core.synchronised import Synchronised


class MovingAverageBatchNorm(Synchronised, ChannelAffine):
    """Normalise with the mean square of the last `buffer` steps; the gradient's statistic is averaged in the same
    way.

    At step t = 1, 2, ..., with chi_t = mean(x^2) over (N, H, W), m = `buffer` and averages over the last m steps,

        chi = mean(chi_t, ..., chi_{t-m+1})      (chi_t alone while t <= m or t < warmup)
        z = x / sqrt(chi + eps)
        r = clip(sqrt(chi + eps) / sqrt(running_square + eps), 1/5, 5)      (1 while t <= max(renorm_after, warmup))
        y = r z * weight + bias
        running_square <- running_square + momentum (chi - running_square)

    and backward, with dL/d(r z) the gradient at the input of weight and bias, g = r dL/d(r z), psi_t = mean(g z),

        psi = mean(psi_t, ..., psi_{t-m+1})      (psi_t alone as above)
        dx = (g - z psi) / sqrt(chi + eps)

    So the gradient is not that of the output, but the one that batch norm over all m steps would have; there is no
    second derivative. Evaluation gives x / sqrt(running_square + eps) * weight + bias. No mean is subtracted: as in
    the source, `convert` centres the weights of convolutions instead (W - mean of each unit).

    Statistics are those of the authors' code. That code does not cover a layer called twice before its backward; here
    each call is a step.

    Set `track_running_stats` to False to keep running_square as it is. A converted layer starts from
    running_square = 1, since batch norm's statistics belong to uncentred convolutions:
    train before evaluating. There is no running mean, so this is not a subclass of PyTorch's batch norm.

    Source: Yan, Wan, Zhang, Zhang, Wei & Sun (ICLR 2020, arXiv 2001.06838).

    Args:
        num_features: C of an input of shape (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W).
        eps: added to the mean square.
        momentum: weight of the newest in the running mean square (0.02 in the source; `convert` keeps the replaced
            layer's momentum unless given); None averages all steps equally.
        affine: learn weight and bias, shape (C,).
        buffer: m, number of steps that count; the source uses 32 / (samples per device), the default is for two.
        warmup: steps that use their own batch alone; 100 is from memory of the authors' code and not confirmed.
        renorm_after: steps during which r stays 1.
        sync: take the batch to be that of all ranks of torch.distributed (`process_group`: of these ranks); None: if
            a `process_group` is given.

    Raises:
        ValueError: an empty batch in training; an input with another number of channels; a number out of range; a
            recomputation under activation checkpointing, which would see other statistics.
    """

    running_square: Tensor
    squares: Tensor
    gradients: Tensor
    steps: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.02,
        affine: bool = True,
        *,
        buffer: int = 16,
        warmup: int = 100,
        renorm_after: int = 1000,
        sync: bool | None = None,
        process_group: Group = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, value, least in (("buffer", buffer, 1), ("warmup", warmup, 0), ("renorm_after", renorm_after, 0)):
            if value < least:
                raise ValueError(f"{name} is {value}: it must be at least {least}.")
        super().__init__(num_features, eps, affine, device=device, dtype=dtype)
        self.share(sync, process_group)
        self.track_running_stats = True
        self.momentum, self.buffer, self.warmup, self.renorm_after = momentum, buffer, warmup, renorm_after
        self.register_buffer("running_square", torch.ones(num_features, device=device, dtype=dtype))
        for kind in ("squares", "gradients"):  # chi and psi of the last steps
            self.register_buffer(kind, torch.zeros(buffer, num_features, device=device, dtype=dtype))
        # Not PyTorch's counter: a converted layer has no past steps in its rows, whatever batch norm had counted.
        self.register_buffer("steps", torch.zeros((), dtype=torch.long, device=device))

    def normalised(self, x: Tensor) -> Tensor:
        """Normalise `x` of shape (N, C, ...)."""
        values = x.to(acc_dtype(x.dtype))
        if not self.training:
            scale = torch.rsqrt(self.running_square.to(values.dtype) + self.eps)
            return self.scale_and_shift(values * by_channel(scale, x)).to(x.dtype)
        refuse_recomputation("MovingAverageBatchNorm")
        compiling = self.meets() and torch.compiler.is_compiling()  # a graph would not hold the backward's collective
        train = torch.compiler.disable(self._train) if compiling else self._train  # type: ignore[no-untyped-call]
        return self.scale_and_shift(train(values)).to(x.dtype)

    def _train(self, x: Tensor) -> Tensor:
        """Return r z."""
        own, count, place = self._mean_square(x)
        scale, r, averages = self._step(own)
        slot = (self.steps - 1) % self.buffer
        y: Tensor = _MovingAverage.apply(x, scale, r, self.gradients, slot, averages, count, place)  # type: ignore[no-untyped-call]
        return y

    @torch.no_grad()
    def _mean_square(self, x: Tensor) -> tuple[Tensor, Tensor | None, Place | None]:
        """Return chi_t; of all ranks, also the number of values and the place where the backward meets them."""
        own, count, place = x.square().mean((0, *range(2, x.dim()))), None, None
        if self.meets():
            place, samples = self.among_ranks(x), own.new_tensor(x.numel() // self.num_features)
            together = place.gather(Moments(samples, own, torch.zeros_like(own))).pooled()
            own, count = together.mean, together.count
        if x.numel() == 0 and not count:
            raise ValueError(
                f"MovingAverageBatchNorm({self.num_features}) got an empty batch: it has no mean square."
            )
        return own, count, place

    @torch.no_grad()
    def _step(self, own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Record the step's chi_t; return 1 / sqrt(chi + eps), r, and whether past steps count in chi."""
        self.steps.add_(1)
        step = self.steps
        _put(self.squares, (step - 1) % self.buffer, own)
        averages = (step > self.buffer) & (step >= self.warmup)
        chi = torch.where(averages, self.squares.to(own.dtype).mean(0), own)
        bounded = ((chi + self.eps).sqrt() / (self.running_square + self.eps).sqrt()).clamp(1 / 5, 5)
        r = torch.where(step > max(self.renorm_after, self.warmup), bounded, 1.0)
        if self.track_running_stats:
            update_running(self.running_square, chi, newest_weight(self.momentum, step))
        return torch.rsqrt(chi + self.eps), r, averages

    def extra_repr(self) -> str:
        """Show the number of steps that count after channels and eps."""
        return f"{super().extra_repr()}, buffer={self.buffer}"


class _MovingAverage(torch.autograd.Function):
    """r z = r x / sqrt(chi + eps), with the backward of MovingAverageBatchNorm."""

    @staticmethod
    def forward(
        x: Tensor,
        scale: Tensor,
        r: Tensor,
        gradients: Tensor,
        slot: Tensor,
        averages: Tensor,
        count: Tensor | None,
        place: Place | None,
    ) -> Tensor:
        return x * by_channel(scale * r, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, scale, r, gradients, slot, averages, count, place = inputs
        ctx.save_for_backward(x, scale, r, slot, averages, count)
        ctx.gradients = gradients  # other steps' backwards change it, which autograd would reject
        ctx.place = place

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, r, slot, averages, count = ctx.saved_tensors
        z, g = x * by_channel(scale, x), dy * by_channel(r, dy)
        dims = (0, *range(2, x.dim()))
        own = (g * z).mean(dims) if ctx.place is None else ctx.place.sum((g * z).sum(dims)) / count
        _put(ctx.gradients, slot, own)
        psi = torch.where(averages, ctx.gradients.to(own.dtype).mean(0), own)
        return (g - z * by_channel(psi, x)) * by_channel(scale, x), None, None, None, None, None, None, None


def _put(rows: Tensor, slot: Tensor, row: Tensor) -> None:
    """Set the row `slot` of `rows` without a host synchronisation."""
    here = (torch.arange(len(rows), device=rows.device) == slot).unsqueeze(1)
    rows.copy_(torch.where(here, row.to(rows.dtype), rows))
