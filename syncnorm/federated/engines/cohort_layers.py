"""Layers of all clients at once: one kernel where `torch.vmap` is slow or fails.

Under vmap a convolution over K clients is one convolution with K groups, whose images are (B, K * C, H, W). PyTorch's
CPU kernels are fastest with these in channels_last: with 16 images of 8x8 for each of 20 clients, on one core, max
pooling is 30 times as fast as in the default layout, a convolution from 1 to 16 channels 8 times, and batch norm
twice. vmap's rules for max pooling and batch norm change that layout, and its rule for group norm refuses it. This
file replaces them by the same functions on the folded images, and cross-entropy by one call on all samples.

Legend: K clients, B samples per client, C channels.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from syncnorm._torch import outside_vmap
from syncnorm.norms.core.functional import batch_norm_plain

POOLING = (F.max_pool2d, F.adaptive_avg_pool2d)
"""Pooling to one position, for which vmap falls back to a loop over clients, with a warning."""


def fold(x: Tensor) -> Tensor:
    """Return (B, K, C, ...) as (B, K * C, ...), images on a CPU in channels_last."""
    folded = x.flatten(1, 2)
    if folded.dim() == 4 and folded.device.type == "cpu":  # measured there only
        folded = folded.contiguous(memory_format=torch.channels_last)
    return folded


def unfold(x: Tensor, clients: int) -> Tensor:
    """Return (B, K * C, ...) as (B, K, C, ...): the inverse of `fold`."""
    return x.view(len(x), clients, -1, *x.shape[2:])


class ClientsTogether(TorchFunctionMode):
    """While active, the functions in this file run as one kernel for all clients under `torch.vmap` over clients.

    synchronised: in training, batch norm normalises every client with the moments of all clients' samples, and
        updates running statistics with them (the variance unbiased by the total count), as SyncBatchNorm does with
        one rank per client. Gradients are those of the sum of all clients' losses.
    over_ranks: whether "all clients" are those on all ranks; then every rank makes the step with clients of its own.
    """

    def __init__(self, synchronised: bool = False, over_ranks: bool = False) -> None:
        super().__init__()
        self._synchronised, self._over_ranks = synchronised, over_ranks

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace the functions of this file, and call any other."""
        kwargs = kwargs or {}
        if func is F.batch_norm:
            return self._batch_norm(*args, **kwargs)
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

    def _group_norm(
        self, x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
    ) -> Any:
        return outside_vmap(partial(_group_norm, groups, eps), x, weight, bias)


def _pool(func: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], x: Tensor) -> Tensor:
    return unfold(func(fold(x), *args, **kwargs), x.shape[1])


def _cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    samples = logits.transpose(0, 1).flatten(0, 1)
    return F.cross_entropy(samples, y.flatten(), reduction="none").view(y.shape).T


def _group_norm(groups: int, eps: float, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    clients = x.shape[1]
    weight, bias = (None if tensor is None else tensor.flatten() for tensor in (weight, bias))
    return unfold(F.group_norm(fold(x), clients * groups, weight, bias, eps), clients)


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
    # Views, so that the kernel moves the clients' own running statistics.
    mean, var = (None if tensor is None else tensor.view(-1) for tensor in (mean, var))
    weight, bias = (None if tensor is None else tensor.flatten() for tensor in (weight, bias))
    return unfold(F.batch_norm(fold(x), mean, var, weight, bias, training, momentum, eps), x.shape[1])


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
    clients, channels = x.shape[1:3]
    samples = x.flatten(0, 1)
    if over_ranks:
        y, moments = batch_norm_plain(samples, None, None, eps, None)
        new_mean, new_var = moments.mean.detach(), moments.var(correction=1).detach()
    else:
        new_mean, new_var = x.new_zeros(2, channels)
        y = F.batch_norm(samples, new_mean, new_var, training=True, momentum=1.0, eps=eps)
    y = y.reshape(x.shape)
    for running, new in ((mean, new_mean), (var, new_var)):
        if running is not None:
            running.lerp_(new.to(running.dtype), momentum)
    by_channel = (clients, channels, *[1] * (x.dim() - 3))
    if weight is not None:
        y = y * weight.reshape(by_channel)
    return y if bias is None else y + bias.reshape(by_channel)
