"""Batch norm over all ranks as a function, in two forms: plain operations and native kernels.

The plain form compiles and can be differentiated to any order. The native form is as fast as PyTorch's own batch
norm. Its first derivative is written out; its second is the plain form's.

Legend: C channels; N values per channel over all ranks (samples times positions).
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from syncnorm.moments import Moments, acc_dtype
from syncnorm.norms.core.affine import normalise
from syncnorm.norms.core.ranks.collectives import gather_moments_differentiably, sum_differentiably
from syncnorm.norms.core.ranks.meeting import Place

# Up to this many rows of channels, PyTorch's CPU kernel keeps float32 variances within 2e-5 at mean / std = 1e3.
ROWS_ADDED_WELL = 8192


def batch_norm_plain(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    group: ProcessGroup | None,
    where: Tensor | None = None,
) -> tuple[Tensor, Moments]:
    """Return `(y, moments)` for x of shape (N, C, ...), y normalised by the moments over all ranks.

    y = (x - mean) / sqrt(M2 / N + eps) * weight + bias

    With `where`, bool (N, 1, ...), only values where it is true count; outside of it, x has to be zero and dy too.
    """
    moments = gather_moments_differentiably(Moments.of(x, (0, *range(2, x.dim())), where), group).pooled()
    return normalise(x, moments.mean, moments.var(), eps, weight, bias), moments


def batch_norm_native(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    place: Place,
    where: Tensor | None = None,
) -> tuple[Tensor, Moments]:
    """Return what `batch_norm_plain` returns, from native kernels; the moments carry no gradient.

    If a rank has announced an error or runs another layer than that of `place`, every rank raises `ValueError`,
    provided that tensors are on the CPU.
    """
    # Copied here, where autograd records it: a second derivative must reach x through the copy.
    x = x.contiguous(memory_format=_memory_format(x))
    y, count, mean, m2 = _NativeBatchNorm.apply(x, weight, bias, eps, place, where)  # type: ignore[no-untyped-call]
    return y, Moments(count, mean, m2)


def pooled_moments(local: Moments, place: Place) -> Moments:
    """Return the moments of all ranks together; gradients of mean and M2 go through every rank's, to any order.

    D moments, count (D,), mean and m2 (D, C), are each pooled with their like, in the one collective.

    Raises what `batch_norm_native` raises of other ranks.
    """
    return Moments(*_PooledMoments.apply(local.count, local.mean, local.m2, place))  # type: ignore[no-untyped-call]


class _PooledMoments(torch.autograd.Function):
    """With the local count n, mean m and M2 s, of N values with the mean M and the sum of squares S over all ranks,

    dL/dm = n / N dL/dM + 2 n (m - M) dL/dS,   dL/ds = dL/dS,   where L is the sum of all ranks' losses.
    """

    @staticmethod
    def forward(ctx: Any, count: Tensor, mean: Tensor, m2: Tensor, place: Place) -> tuple[Tensor, Tensor, Tensor]:
        """Return count (), mean and M2 (C,) of all ranks; with D moments in one, each with D in front."""
        together = place.gather(Moments(count, mean, m2)).pooled()
        ctx.save_for_backward(count, mean, together.count, together.mean)
        ctx.place = place
        ctx.mark_non_differentiable(together.count)
        return together.count, together.mean, together.m2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        count, mean, total, together = ctx.saved_tensors
        own = torch.stack(grads[1:])
        if torch.is_grad_enabled():  # gradients are recorded here only under create_graph=True
            ctx.place.refuse_in_join("create_graph=True")
            both = sum_differentiably(own, ctx.place.group)
        else:
            both = ctx.place.sum(own)
        count, total = count.unsqueeze(-1), total.unsqueeze(-1)
        share = (count / total.clamp(min=1)).to(mean.dtype)
        away = torch.where(count > 0, count.to(mean.dtype) * (mean - together), 0.0)
        return None, share * both[0] + 2 * away * both[1], both[1], None


class _NativeBatchNorm(torch.autograd.Function):
    """Batch norm of x (N, C, ...) by the moments of all ranks, with PyTorch's own kernels forward and backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        place: Place,
        where: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return y (N, C, ...), and count, mean (C,) and m2 (C,) of all ranks, which have no gradient."""
        local = moments_of_channels(x) if where is None else Moments.of(x, (0, *range(2, x.dim())), where)
        moments = place.gather(local).pooled()
        count, mean, var = moments.count, moments.mean, moments.var()
        ctx.save_for_backward(x, weight, bias, count, mean, var, where)
        ctx.eps, ctx.place = eps, place
        ctx.mark_non_differentiable(count, mean, moments.m2)
        return standardise(x, mean, var, eps, weight, bias), count, mean, moments.m2

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        # Gradients are recorded here only under create_graph=True.
        derive = _differentiable_backward if torch.is_grad_enabled() else _native_backward
        return *derive(ctx, grads[0]), None, None, None


def _native_backward(ctx: Any, dy: Tensor) -> list[Tensor | None]:
    """First derivative; dweight = sum(dy * xhat) and dbias = sum(dy) stay this rank's, for DDP to average.

    dy is zero where nothing counts, and dx is lost there.
    """
    x, weight, bias, count, mean, var, _ = ctx.saved_tensors
    dweight, dbias = sums_of_gradient(dy, x, mean, var, ctx.eps)
    dx = None
    if ctx.needs_input_grad[0]:
        sums = ctx.place.sum(torch.stack([dweight, dbias]))
        dx = input_gradient(dy, x, (count, mean, var), sums, weight, ctx.eps)
    return [
        grad.to(tensor.dtype) if needed and grad is not None else None
        for grad, tensor, needed in zip((dx, dweight, dbias), (x, weight, bias), ctx.needs_input_grad, strict=False)
    ]


def _differentiable_backward(ctx: Any, dy: Tensor) -> list[Tensor | None]:
    """First derivative as a differentiable function of x, weight and dy: autograd of the plain form."""
    x, weight, bias, *_, where = ctx.saved_tensors
    ctx.place.refuse_in_join("create_graph=True")
    y, _ = batch_norm_plain(x, weight, bias, ctx.eps, ctx.place.group, where)
    wanted = [tensor for tensor, needed in zip((x, weight, bias), ctx.needs_input_grad, strict=False) if needed]
    grads = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
    return [next(grads) if needed else None for needed in ctx.needs_input_grad[:3]]


def moments_of_channels(x: Tensor) -> Moments:
    """Return this rank's moments per channel, without a gradient, by the fastest precise method.

    That is PyTorch's kernel, except for many values on a CPU with channels adjacent in memory, as in (N, C) and
    channels_last: there the kernel sums row after row in the input's type.
    """
    if x.device.type == "cpu" and x.stride(1) == 1 and x.numel() > ROWS_ADDED_WELL * x.shape[1]:
        return Moments.of(x, (0, *range(2, x.dim())))
    channels, statistics = x.shape[1], acc_dtype(x.dtype)
    count = x.new_full((), x.numel() // channels, dtype=statistics)
    scratch = x.new_zeros(2, channels, dtype=statistics)
    if x.numel() == 0:
        return Moments(count, scratch[0], scratch[1])
    # Running statistics of the accumulator's type make the kernel return that type for float16 and bfloat16 too.
    mean, var = torch.batch_norm_update_stats(x, scratch[0], scratch[1], 0.0)
    return Moments(count, mean, var * count)


def sums_of_gradient(dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return sum(dy * xhat) and sum(dy) of this part of the samples, (C,) each, in the type of `mean`."""
    if x.numel() == 0:
        return torch.zeros_like(mean), torch.zeros_like(mean)
    x, dy = x.to(mean.dtype), dy.to(mean.dtype).contiguous(memory_format=_memory_format(x))
    # Evaluation mode takes the statistics as given: those of all ranks.
    backward = torch.ops.aten.native_batch_norm_backward
    _, dweight, dbias = backward(dy, x, torch.ones_like(mean), mean, var, None, None, False, eps, [False, True, True])
    return dweight, dbias


def input_gradient(
    dy: Tensor,
    x: Tensor,
    statistics: tuple[Tensor, Tensor, Tensor],
    sums: Tensor,
    weight: Tensor | None,
    eps: float,
) -> Tensor:
    """Return dx of this part of the samples, in the type of the statistics:

        dx = weight / sqrt(var + eps) * (dy - sum(dy) / N - xhat * sum(dy * xhat) / N)

    statistics = (N, mean, var) and sums = (sum(dy * xhat), sum(dy)), (2, C), are those of all samples.
    """
    count, mean, var = statistics
    x, dy = x.to(mean.dtype), dy.to(mean.dtype)
    mean_dy_xhat, mean_dy = (sums / count.clamp(min=1)).unbind(0)
    scale = torch.rsqrt(var + eps)
    if weight is not None:
        scale = scale * weight.to(scale.dtype)
    dx = standardise(x, mean, var, eps, -mean_dy_xhat, -mean_dy)
    dx += dy
    dx *= scale.view(1, -1, *[1] * (x.dim() - 2))
    return dx


def standardise(
    x: Tensor, mean: Tensor, var: Tensor, eps: float, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    """Return (x - mean) / sqrt(var + eps) * weight + bias in one pass of PyTorch's kernel."""
    if x.numel() == 0:
        return torch.empty_like(x)
    scale, shift = (None if tensor is None else tensor.to(mean.dtype) for tensor in (weight, bias))
    y: Tensor = torch.native_batch_norm(x, scale, shift, mean, var, False, 0.0, eps)[0]
    return y


def _memory_format(x: Tensor) -> torch.memory_format:
    """Return the layout in which `x` lies, or the nearest one that the kernels know."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    if last is not None and x.is_contiguous(memory_format=last) and not x.is_contiguous():
        return last
    return torch.contiguous_format
