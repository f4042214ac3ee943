"""Which domain each sample is from: a context around the forward, so that models need no extra argument.

with syncnorm.domain(ids):
    logits = model(x)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from syncnorm.errors import UserError
from syncnorm.norms.core.recomputation import recomputing


@dataclass(frozen=True)
class DomainIds:
    """The domain of each sample: ids (N,) int64, or one int for all. Their range is read once, not in each layer."""

    ids: int | Tensor
    smallest: int
    largest: int

    def of(self, x: Tensor) -> Tensor:
        """Return the ids of the samples of `x` (N, ...), shape (N,), on the device of `x`."""
        if isinstance(self.ids, int):
            return torch.full(x.shape[:1], self.ids, device=x.device)
        if len(self.ids) != len(x):
            raise ValueError(
                f"syncnorm.domain got ids of {len(self.ids)} samples, and a layer an input of {len(x)}: give one id "
                "for each sample, or one for all."
            )
        return self.ids.to(x.device)


_CURRENT: ContextVar[DomainIds | None] = ContextVar("syncnorm_domain", default=None)


@contextmanager
def domain(ids: int | Tensor) -> Iterator[None]:
    """Tell the layers called inside this context which domain the samples are from.

    The ids hold for the current thread (or asyncio task) only, and the innermost context counts. With activation
    checkpointing, the recomputation runs in the backward, outside the context and perhaps in another thread: use
    `checkpoint(..., use_reentrant=False, context_fn=syncnorm.keep_domain)`.

    Args:
        ids: one id for the whole batch, or an integer tensor (N,), one id per sample. Domains count from 0.

    Raises:
        UserError: ids that are not integers, a tensor that is not one-dimensional, or a negative id.
    """
    token = _CURRENT.set(_checked(ids))
    try:
        yield
    finally:
        _CURRENT.reset(token)


@contextmanager
def domain_of_part(rank: int, ranks: int) -> Iterator[None]:
    """Let layers called inside see the ids of samples rank, rank + ranks, ... of the current ones, if any."""
    now = _CURRENT.get()
    if now is None or isinstance(now.ids, int):
        yield
        return
    token = _CURRENT.set(replace(now, ids=now.ids[rank::ranks]))
    try:
        yield
    finally:
        _CURRENT.reset(token)


def keep_domain() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of a checkpointed forward and of its recomputation, which gets the current ids.

    Use it as the `context_fn` of `torch.utils.checkpoint.checkpoint`.
    """
    now = _CURRENT.get()
    return nullcontext(), nullcontext() if now is None else domain(now.ids)


def current_domain() -> DomainIds | None:
    """Return the ids of the innermost `domain`, or None outside any."""
    return _CURRENT.get()


def no_domain(layer: str) -> str:
    """Say that a layer was called outside `domain`, and what to do; without a full stop."""
    again = "checkpoint with context_fn=syncnorm.keep_domain" if recomputing() else "call the model inside of it"
    return f"{layer} does not know the samples' domains: `with syncnorm.domain(ids):` tells them, so {again}"


def _checked(ids: int | Tensor) -> DomainIds:
    if isinstance(ids, Tensor) and ids.dim() == 0 and not ids.is_floating_point():
        ids = int(ids)
    if isinstance(ids, int) and not isinstance(ids, bool):
        found = DomainIds(ids, ids, ids)
    elif isinstance(ids, Tensor) and ids.dim() == 1 and not (ids.is_floating_point() or ids.dtype == torch.bool):
        smallest, largest = torch.aminmax(ids) if len(ids) else (0, 0)
        found = DomainIds(ids.long(), int(smallest), int(largest))
    else:
        shown = f"a tensor of {ids.dtype} and shape {tuple(ids.shape)}" if isinstance(ids, Tensor) else repr(ids)
        raise UserError(f"syncnorm.domain got {shown}: give an int, or an integer tensor (N,) of one id a sample.")
    if found.smallest < 0:
        raise UserError(f"syncnorm.domain got the id {found.smallest}: domains count from 0.")
    return found
