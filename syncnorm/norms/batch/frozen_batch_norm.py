"""Batch norm that also trains with its running statistics, and one that measures its inputs meanwhile.

model = syncnorm.convert(model, "frozen_bn")        # fine-tuning; FixBN's second stage
model = syncnorm.convert(model, "reference_bn")     # federated: last round's statistics, moments for the next
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from syncnorm.moments import Moments, acc_dtype
from syncnorm.norms.core.batch_norm import BatchNormLayer, batch_norm
from syncnorm.norms.core.valid import Valid


class FrozenBatchNorm(BatchNormLayer):
    """Batch norm with fixed statistics: the same function of `x` in training and evaluation.

        y = (x - running_mean) / sqrt(running_var + eps) * weight + bias

    Weight and bias train. No forward changes the running statistics in either mode, so they stay frozen after
    `model.train()`; load or recalibrate them to change them. State entries have the names of PyTorch's layer. A batch
    may have any number of samples, including one and none.

    Tools that reset every batch norm and refill it in a pass with momentum None (`torch.optim.swa_utils.update_bn`,
    Lightning's weight averaging) do refill it: while `momentum` has been set to None, training normalises by the
    batch and takes the mean of the batches' statistics. A layer built with momentum None cannot see such a pass: it
    keeps its statistics, and `reset_running_stats` leaves them as they are.

    Sources: FixBN (Zhong, Chen & Chao, arXiv 2303.06530; from memory, not confirmed); the last
    epochs of Wu & Johnson (arXiv 2105.07576).

    Args:
        num_features: C of an input of shape (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W).
        eps: added to the variance.
        momentum: not used here, but for None as above; a layer converted from this one takes it over.
        affine: learn weight and bias, shape (C,).
        track_running_stats: must be True: the layer has no other statistics.

    Raises:
        ValueError: an input with another number of channels, or track_running_stats=False.
    """

    needs_statistics = "normalises with running statistics, so it cannot be without them"

    def normalised(self, x: Tensor) -> Tensor:
        """Normalise `x` of shape (N, C, ...) with the running statistics."""
        if self.refilling():
            return self.by_batch(x)
        return batch_norm(x, *self.running(), self.weight, self.bias, False, 0.0, self.eps)

    def masked(self, x: Tensor, valid: Valid) -> Tensor:
        """Normalise `x` where `valid` with the running statistics."""
        return self.by_valid(x, valid) if self.refilling() else self.by_running_where(x, valid)

    def reset_running_stats(self) -> None:
        """Start the statistics anew, unless nothing could refill them."""
        if self.momentum_at_first is not None:
            super().reset_running_stats()


class ReferenceBatchNorm(FrozenBatchNorm):
    """FrozenBatchNorm that also keeps the exact moments of all its training inputs.

    Estimator: `seen()` is `Moments.of` all training inputs since the last `forget_seen()` together, however they were
    split into batches; a recomputation under activation checkpointing is not counted twice. So statistics need no
    further pass over the data, and no batch changes how the next is normalised. (Inputs of deeper layers come from
    the model as it was during training.)

    Shapes: seen_count () int64, seen_mean (C,), seen_m2 (C,): buffers that move with the model but are not part of
    its state.

    Sources: FBN (Guerraoui, Pinot, Rizk, Stephan & Taiani, arXiv 2405.14670).
    """

    seen_count: Tensor
    seen_mean: Tensor
    seen_m2: Tensor

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
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        statistics = acc_dtype(dtype or torch.get_default_dtype())
        # An integer keeps its precision when the model is cast to a shorter type.
        self.register_buffer("seen_count", torch.zeros((), dtype=torch.int64, device=device), persistent=False)
        for name in ("seen_mean", "seen_m2"):
            self.register_buffer(name, torch.zeros(num_features, dtype=statistics, device=device), persistent=False)

    def normalised(self, x: Tensor) -> Tensor:
        """Normalise `x` of shape (N, C, ...) with the running statistics; in training, record its moments."""
        y = super().normalised(x)
        if self.moves():
            self._see(x)
        return y

    def masked(self, x: Tensor, valid: Valid) -> Tensor:
        """Normalise `x` where `valid` with the running statistics; in training, record its moments there."""
        y = super().masked(x, valid)
        if self.moves():
            self._see(x, valid.where)
        return y

    def seen(self) -> Moments:
        """Return the moments of all training inputs since the last `forget_seen`; the count is 0 if there were
        none."""
        return Moments(self.seen_count.double(), self.seen_mean.clone(), self.seen_m2.clone())

    def forget_seen(self) -> None:
        """Reset the recorded moments."""
        for buffer in (self.seen_count, self.seen_mean, self.seen_m2):
            buffer.zero_()

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        super()._load_from_state_dict(*args, **options)
        if self.seen_count.is_meta and self.running_mean is not None:  # the loaded tensors took the others' places
            self._seen_at(self.running_mean.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ReferenceBatchNorm:
        """Let a layer that leaves the meta device, where tensors hold nothing, start with nothing seen."""
        was_meta = self.seen_count.is_meta
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if was_meta and not self.seen_count.is_meta:
            self.forget_seen()
        return self

    def _seen_at(self, device: torch.device) -> None:
        for name in ("seen_count", "seen_mean", "seen_m2"):
            setattr(self, name, torch.zeros_like(getattr(self, name), device=device))

    @torch.no_grad()
    def _see(self, x: Tensor, where: Tensor | None = None) -> None:
        together = self.seen().merge(Moments.of(x, (0, *range(2, x.dim())), where))
        self.seen_count.copy_(together.count)
        self.seen_mean.copy_(together.mean)
        self.seen_m2.copy_(together.m2)
