"""Layers of all models at once: one kernel where `torch.vmap` is slow or fails.

Under vmap a convolution over K models is one convolution with K groups, whose images are (B, K * C, H, W). PyTorch's
CPU kernels are fastest with these in channels_last: with 16 images of 8x8 for each of 20 models, on one core, max
pooling is 30 times as fast as in the default layout, a convolution from 1 to 16 channels 8 times, and batch norm
twice. vmap's rules for max pooling and batch norm change that layout, and its rule for group norm refuses it. This
file replaces them by the same functions on the folded images, and cross-entropy by one call on all samples.

Legend: K models, which are clients or runs; B samples per model, C channels.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from syncnorm._torch import outside_vmap
from syncnorm.moments import acc_dtype
from syncnorm.norms.core.batch_norm import batch_norm, batch_norm_by_rank
from syncnorm.norms.core.functional import batch_norm_plain

PRODUCTS = frozenset(
    {
        *(F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, F.linear),
        *(torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm, torch.bmm, Tensor.bmm, torch.einsum),
        *(torch.addmm, torch.baddbmm, F.scaled_dot_product_attention),
    }
)
"""What autocast computes in its shorter type."""
POOLING = (F.max_pool2d, F.adaptive_avg_pool2d)
"""Pooling to one position, for which vmap falls back to a loop over models, with a warning."""


def fold(x: Tensor) -> Tensor:
    """Return (B, K, C, ...) as (B, K * C, ...), images on a CPU in channels_last."""
    folded = x.flatten(1, 2)
    if folded.dim() == 4 and folded.device.type == "cpu":  # measured there only
        folded = folded.contiguous(memory_format=torch.channels_last)
    return folded


def unfold(x: Tensor, models: int) -> Tensor:
    """Return (B, K * C, ...) as (B, K, C, ...): the inverse of `fold`."""
    return x.view(len(x), models, -1, *x.shape[2:])


class ModelsTogether(TorchFunctionMode):
    """While active, the functions in this file run as one kernel for all models under `torch.vmap` over models.

    Under `torch.autocast`, `PRODUCTS` run in its shorter type: autocast itself does not reach into vmap, and says
    nothing. What else autocast would change runs in the type that it gets.

    synchronised: in training, batch norm normalises every model with the moments of all models' samples, and
        updates running statistics with them (the variance unbiased by the total count), as SyncBatchNorm does with
        one rank per model. Gradients are those of the sum of all models' losses.
    over_ranks: whether "all models" are those on all ranks; then every rank makes the step with models of its own.
    """

    def __init__(self, synchronised: bool = False, over_ranks: bool = False) -> None:
        super().__init__()
        self._synchronised, self._over_ranks = synchronised, over_ranks

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace the functions of this file, and call any other."""
        kwargs = kwargs or {}
        if func in PRODUCTS:
            return func(*_lowered(args), **_lowered(kwargs))
        if func is F.batch_norm:
            return self._batch_norm(*args, **kwargs)
        if func is batch_norm_by_rank:
            return self._batch_norm_by_rank(*args)
        if func is F.group_norm:
            return self._group_norm(*args, **kwargs)
        if func in POOLING and not kwargs.get("return_indices"):
            return outside_vmap(partial(_pool, func, args[1:], kwargs), args[0])
        if func is F.cross_entropy and len(args) == 2 and not kwargs and args[0].dim() == 2:
            return outside_vmap(_cross_entropy, *args).mean()
        return func(*args, **kwargs)

    def _batch_norm(
        self,
        x: Tensor,
        mean: Tensor | None,
        var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Any:
        if training and self._synchronised:
            call = partial(_synchronised_batch_norm, self._over_ranks, momentum, eps)
        else:
            call = partial(_batch_norm, training, momentum, eps)
        return outside_vmap(call, x, mean, var, weight, bias)

    def _batch_norm_by_rank(
        self,
        x: Tensor,
        ranks: int,
        mean: Tensor | None,
        var: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        newest: float,
        eps: float,
    ) -> Any:
        return outside_vmap(partial(_batch_norm_by_rank, ranks, newest, eps), x, mean, var, weight, bias)

    def _group_norm(
        self, x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
    ) -> Any:
        return outside_vmap(partial(_group_norm, groups, eps), x, weight, bias)


def _lowered(values: Any) -> Any:
    """Return the arguments of a product, with float32 tensors in autocast's type where autocast is on."""
    if isinstance(values, dict):
        return {name: _lowered(value) for name, value in values.items()}
    if isinstance(values, tuple | list):
        return type(values)(_lowered(value) for value in values)
    if not isinstance(values, Tensor) or values.dtype is not torch.float32:
        return values
    kind = values.device.type
    return values.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else values


def _pool(func: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], x: Tensor) -> Tensor:
    return unfold(func(fold(x), *args, **kwargs), x.shape[1])


def _cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    samples = logits.transpose(0, 1).flatten(0, 1)
    return F.cross_entropy(samples, y.flatten(), reduction="none").view(y.shape).T


def _group_norm(groups: int, eps: float, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    models = x.shape[1]
    weight, bias = (None if tensor is None else tensor.flatten() for tensor in (weight, bias))
    return unfold(F.group_norm(fold(x), models * groups, weight, bias, eps), models)


def _batch_norm(
    training: bool,
    momentum: float,
    eps: float,
    x: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    # Views, so that the kernel moves the models' own running statistics.
    mean, var = (None if tensor is None else tensor.view(-1) for tensor in (mean, var))
    weight, bias = (None if tensor is None else tensor.flatten() for tensor in (weight, bias))
    return unfold(F.batch_norm(fold(x), mean, var, weight, bias, training, momentum, eps), x.shape[1])


def _batch_norm_by_rank(
    ranks: int,
    newest: float,
    eps: float,
    x: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """Batch norm of R ranks: x is (b * R, K, C, ...), and all others are (K, R * C)."""
    models = x.shape[1]
    held = mean, var
    mean, var, weight, bias = (
        None if tensor is None else tensor.view(models, ranks, -1).transpose(0, 1).flatten()
        for tensor in (mean, var, weight, bias)
    )
    if models == 1:  # then these are views, and may not be moved twice
        mean, var = (None if tensor is None else tensor.clone() for tensor in (mean, var))
    y = _samples(batch_norm(_ranks(fold(x), ranks), mean, var, weight, bias, True, newest, eps), ranks)
    for running, new in zip(held, (mean, var), strict=True):
        if running is not None and new is not None:
            running.copy_(new.view(ranks, models, -1).transpose(0, 1).flatten(1))
    return unfold(y, models)


def _ranks(x: Tensor, ranks: int) -> Tensor:
    """Return folded samples (b * R, K * C, ...) with each rank's channels apart, (b, R * K * C, ...)."""
    if not _last(x):
        return x.reshape(len(x) // ranks, -1, *x.shape[2:])
    last = x.movedim(1, -1)
    rows = last.reshape(-1, ranks, *last.shape[1:]).movedim(1, 3)  # whole rows of channels are copied
    return rows.flatten(3).movedim(-1, 1)


def _samples(x: Tensor, ranks: int) -> Tensor:
    """Return the inverse of `_ranks`."""
    if not _last(x):
        return x.reshape(len(x) * ranks, -1, *x.shape[2:])
    last = x.movedim(1, -1)
    rows = last.reshape(*last.shape[:-1], ranks, -1).movedim(3, 1)
    return rows.flatten(0, 1).movedim(-1, 1)


def _last(x: Tensor) -> bool:
    """Return whether `x` are images with their channels last in memory."""
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _synchronised_batch_norm(
    over_ranks: bool,
    momentum: float,
    eps: float,
    x: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    models, channels = x.shape[1:3]
    samples = x.flatten(0, 1)
    if over_ranks:
        y, moments = batch_norm_plain(samples, None, None, eps, None)
        new_mean, new_var = moments.mean.detach(), moments.var(correction=1).detach()
    else:
        new_mean, new_var = x.new_zeros(2, channels, dtype=acc_dtype(x.dtype))
        y = F.batch_norm(samples, new_mean, new_var, training=True, momentum=1.0, eps=eps)
    y = y.reshape(x.shape)
    for running, new in ((mean, new_mean), (var, new_var)):
        if running is not None:
            running.lerp_(new.to(running.dtype), momentum)
    by_channel = (models, channels, *[1] * (x.dim() - 3))
    if weight is not None:
        y = y * weight.reshape(by_channel)
    y = y if bias is None else y + bias.reshape(by_channel)
    return y.to(x.dtype)
