"""Which positions of an input count: what `syncnorm.mask` was given, at the size that a layer sees.

Norm layers ask here; `syncnorm.norms.core.mask_context` is the context that tells.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from syncnorm.norms.core.opened import Opened


@dataclass(frozen=True)
class Valid:
    """The positions of an input (N, C, ...) that count: `where`, bool, (N, 1, ...) on the input's device."""

    where: Tensor

    @cached_property
    def by_sample(self) -> list[int]:
        """How many positions of each sample count; read from the device once for each size, not in each layer."""
        counts: list[int] = self.where.flatten(1).sum(1).tolist()
        return counts

    @property
    def count(self) -> int:
        """How many positions of the batch count."""
        return sum(self.by_sample)

    def fill(self, x: Tensor) -> Tensor:
        """Return `x` with zeros where positions do not count, whatever stood there."""
        return torch.where(self.where, x, 0.0)


class Masks:
    """The masks of a `syncnorm.mask`, each bool (N, ...), (N, 1, ...) or (N,); none: every position counts."""

    def __init__(self, *given: Tensor) -> None:
        self.given = given
        self._at: dict[tuple[int, torch.Size, torch.device], Valid] = {}

    def at(self, x: Tensor, layer: str) -> Valid:
        """Return the positions of `x` (N, C, ...) that count.

        A mask of the size of `x` is taken as it is; else the first whose size `x` can have come from (see `resized`).
        Raises `ValueError` if there is none.
        """
        key = len(x), x.shape[2:], x.device
        if key not in self._at:
            fitting = [mask for given in self.given if (mask := _for_dimensions(given, x)) is not None]
            fitting.sort(key=lambda mask: mask.shape[1:] != x.shape[2:])  # stable: the same size comes first
            found = next((at for mask in fitting if (at := resized(mask, x.shape[2:])) is not None), None)
            if found is None:
                raise ValueError(self._does_not_fit(x, layer))
            self._at[key] = Valid(found.unsqueeze(1).to(x.device))
        return self._at[key]

    def _does_not_fit(self, x: Tensor, layer: str) -> str:
        shapes = " and ".join(str(tuple(mask.shape)) for mask in self.given)
        wanted = (len(x), *x.shape[2:])
        return (
            f"syncnorm.mask of shape {shapes} says nothing of the input {tuple(x.shape)} of {layer}: add a mask of "
            f"its size, syncnorm.mask(m, m_small) with m_small of shape {wanted}."
        )


def _for_dimensions(mask: Tensor, x: Tensor) -> Tensor | None:
    """Return `mask` as (N, ...) with the dimensions of `x` (N, C, ...) but the channels; None if it has others."""
    if len(mask) != len(x):
        return None
    if x.dim() == 2:  # positions are pooled: a sample counts if any of its positions does
        return mask.flatten(1).any(1) if mask.dim() > 1 else mask
    if mask.dim() == 1:  # samples that count, with all their positions
        return mask.view(-1, *[1] * (x.dim() - 2))
    if mask.dim() == x.dim():
        return mask[:, 0] if mask.shape[1] == 1 else None
    return mask if mask.dim() == x.dim() - 1 else None


def resized(mask: Tensor, size: torch.Size) -> Tensor | None:
    """Return `mask` (N, ...) at another size of its positions, or None where that does not follow from it.

    Each dimension by itself: s times as long, each position counts s times; s times shorter, a position counts if any
    of its s does. Strides and poolings by powers of 2 round a size that s does not divide up or down: both follow.
    """
    for dim, new in enumerate(size, start=1):
        old = mask.shape[dim]
        if new == old:
            continue
        if not (old and new):
            return None
        if new % old == 0:
            mask = mask.repeat_interleave(new // old, dim)
            continue
        stride = _stride(old, new)
        if stride is None:
            return None
        short = new * stride - old
        if short > 0:
            mask = torch.cat([mask, mask.new_zeros(*mask.shape[:dim], short, *mask.shape[dim + 1 :])], dim)
        mask = mask.narrow(dim, 0, new * stride)
        mask = mask.reshape(*mask.shape[:dim], new, stride, *mask.shape[dim + 1 :]).any(dim + 1)
    return mask


def _stride(old: int, new: int) -> int | None:
    """Return the whole number of times that `new` is shorter than `old`; None if there is none."""
    if old % new == 0:
        return old // new
    powers = (2**k for k in range(1, old.bit_length()))
    return next((stride for stride in powers if new in (old // stride, -(-old // stride))), None)


def takes_no_mask(layer: str) -> str:
    """Say that a layer cannot run inside `syncnorm.mask`."""
    return (
        f"{layer} takes no syncnorm.mask, since it has no formula for a part of the positions: use a norm that does "
        "(docs/layers.md lists them), or run this part under syncnorm.mask(None)."
    )


_CURRENT: ContextVar[Masks | None] = ContextVar("syncnorm_mask", default=None)


OPENED = Opened()
"""Whether any thread is inside a `syncnorm.mask`."""


def current_masks() -> Masks | None:
    """Return the masks of the innermost `syncnorm.mask`, or None outside any."""
    return _CURRENT.get()


def valid_of(x: Tensor, layer: str) -> Valid | None:
    """Return which positions of `x` count, the input of the layer that is called so; None if all do."""
    masks = current_masks()
    return masks.at(x, layer) if masks is not None and masks.given else None


@contextmanager
def with_masks(masks: Masks) -> Iterator[None]:
    """Let `masks` be the current ones."""
    OPENED.count(1)
    token = _CURRENT.set(masks)
    try:
        yield
    finally:
        _CURRENT.reset(token)
        OPENED.count(-1)


_HANDED_ON: ContextVar[bool] = ContextVar("syncnorm_batch_norms_handed_on", default=False)


def hand_on_batch_norms() -> None:
    """Let somebody further out normalise by batches from here on in this context, who asks for the masks himself."""
    _HANDED_ON.set(True)


def handed_on() -> bool:
    """Return whether somebody further out normalises by batches."""
    return _HANDED_ON.get()
