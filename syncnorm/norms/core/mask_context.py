"""Which positions count: a context around the forward, so that models need no extra argument.

with syncnorm.mask(m):                              # m: bool, (N, H, W), true where a position counts
    logits = model(x)

syncnorm's layers read the mask themselves. PyTorch's batch, group and instance norms get it here, where they call
`torch.nn.functional`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from syncnorm.errors import UserError
from syncnorm.norms.core.domain_context import DomainIds, current_domain, domain
from syncnorm.norms.core.masked import batch_norm_where, check_counts, group_norm_where
from syncnorm.norms.core.running import update_running
from syncnorm.norms.core.valid import Masks, current_masks, handed_on, takes_no_mask, with_masks


@contextmanager
def mask(valid: Tensor | None, *others: Tensor) -> Iterator[None]:
    """Tell the norm layers called inside this context which positions count: those where `valid` is true.

    Statistics, outputs and gradients (of input, weight and bias) are then those of the norm of these positions alone;
    over ranks, real and virtual, the counts merge. Other positions may hold anything, even NaN: they come out as 0,
    in training and in evaluation, and get no gradient. Where no position counts, no running statistics move.

    A network changes its resolution, and the mask follows, in each dimension by itself:

        s times shorter     a position counts if any of its s does;
        s times longer      each position counts s times;
        pooled to (N, C)    a sample counts if any of its positions does.

    s is whole, or a power of 2 with the size rounded up or down, as strides and poolings round. Where a size does not
    follow like that, give a mask of it too: `syncnorm.mask(m, m_small)`.

    The mask holds for the current thread (or asyncio task) only, and the innermost context counts; in `mask(None)`
    every position does. With activation checkpointing, the recomputation runs in the backward, outside the context
    and perhaps in another thread: use `checkpoint(..., use_reentrant=False, context_fn=syncnorm.keep_mask)`.

    PyTorch's own batch, group and instance norms follow the mask as well; its layer norm over the last dimension
    treats each position by itself and is left alone. What computes statistics without these functions cannot see it.

    Args:
        valid: bool, (N, H, W), (N, 1, H, W) or (N, L) for inputs (N, C, H, W) or (N, C, L); (N,) for samples that
            count. None: every position counts.
        others: masks of the same samples at other sizes.

    Raises:
        UserError: a mask that is not a bool tensor. In the forward, `ValueError`: an input whose shape does not
            follow from the mask's; one value per channel where a variance is needed; a norm that takes no masks.
    """
    given = () if valid is None and not others else (valid, *others)
    with with_masks(Masks(*map(_checked, given))), _TorchNorms():
        yield


def keep_mask() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of a checkpointed forward and of its recomputation, which gets the current mask and domain.

    Use it as the `context_fn` of `torch.utils.checkpoint.checkpoint`.
    """
    return nullcontext(), _Kept(current_masks(), current_domain())


class _Kept(AbstractContextManager[None]):
    """The mask and the domain of a forward, to be entered as often as it is recomputed."""

    def __init__(self, masks: Masks | None, ids: DomainIds | None) -> None:
        self._masks, self._ids = masks, ids

    def __enter__(self) -> None:
        given = () if self._masks is None else self._masks.given
        self._stack = ExitStack()
        self._stack.enter_context(mask(*given or (None,)))
        if self._ids is not None:
            self._stack.enter_context(domain(self._ids.ids))

    def __exit__(self, *error: Any) -> None:
        self._stack.close()


def _checked(given: Any) -> Tensor:
    if isinstance(given, Tensor) and given.dtype == torch.bool and given.dim():
        return given
    shown = f"a tensor of {given.dtype} and shape {tuple(given.shape)}" if isinstance(given, Tensor) else repr(given)
    raise UserError(
        f"syncnorm.mask got {shown}: give a bool tensor (N, H, W), true where a position counts, such as m.bool()."
    )


class _TorchNorms(TorchFunctionMode):
    """Give the current mask to PyTorch's norms, where their layers call `torch.nn.functional`."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        masked = _MASKED.get(func)
        masks = current_masks() if masked is not None else None
        if masked is None or masks is None or not masks.given:
            return func(*args, **(kwargs or {}))
        with with_masks(Masks()):
            return masked(masks, *args, **(kwargs or {}))


def _batch_norm(
    masks: Masks,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    name = f"torch's batch norm of {input.shape[1]} channels"
    valid = masks.at(input, name)
    if not training:
        filled = valid.fill(input)
        return valid.fill(F.batch_norm(filled, running_mean, running_var, weight, bias, False, momentum, eps))
    if handed_on():
        with with_masks(masks):
            return F.batch_norm(input, running_mean, running_var, weight, bias, True, momentum, eps)
    check_counts([valid.count], name)
    y, moments = batch_norm_where(input, valid, weight, bias, eps)
    for running, new in ((running_mean, moments.mean), (running_var, moments.var(correction=1))):
        if running is not None:
            update_running(running, new, momentum, moments.count > 0)
    return y


def _group_norm(
    masks: Masks,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    valid = masks.at(input, f"torch's group norm of {input.shape[1]} channels")
    return group_norm_where(input, valid, num_groups, weight, bias, eps)


def _instance_norm(
    masks: Masks,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    name = f"torch's instance norm of {input.shape[1]} channels"
    if not use_input_stats:
        return _batch_norm(masks, input, running_mean, running_var, weight, bias, False, momentum, eps)
    if running_mean is not None or running_var is not None:
        raise ValueError(takes_no_mask(f"{name} with running statistics"))
    valid = masks.at(input, name)
    check_counts(valid.by_sample, name)
    return group_norm_where(input, valid, input.shape[1], weight, bias, eps)


def _layer_norm(masks: Masks, input: Tensor, normalized_shape: Any, *args: Any, **options: Any) -> Tensor:
    if len(normalized_shape) > 1:
        raise ValueError(takes_no_mask(f"torch's layer norm over {tuple(normalized_shape)}"))
    return F.layer_norm(input, normalized_shape, *args, **options)  # each position by itself


def _refused(name: str) -> Callable[..., Tensor]:
    def refuse(masks: Masks, *args: Any, **options: Any) -> Tensor:
        raise ValueError(takes_no_mask(name))

    return refuse


_MASKED: dict[Any, Callable[..., Tensor]] = {
    F.batch_norm: _batch_norm,
    F.group_norm: _group_norm,
    F.instance_norm: _instance_norm,
    F.layer_norm: _layer_norm,
    torch.batch_norm_stats: _refused("torch.nn.SyncBatchNorm"),
    torch.batch_norm: _refused("torch.batch_norm"),
    torch.group_norm: _refused("torch.group_norm"),
    torch.instance_norm: _refused("torch.instance_norm"),
    torch.native_batch_norm: _refused("torch.native_batch_norm"),
    torch.native_group_norm: _refused("torch.native_group_norm"),
}
