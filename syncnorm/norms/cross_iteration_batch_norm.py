"""Cross-iteration batch norm: statistics of several steps, brought up to date with the weights of today.

model = syncnorm.convert(model, "cbn", window=8)        # where each batch norm follows a convolution or linear layer
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from syncnorm.moments import Moments, acc_dtype
from syncnorm.norms.core.affine import normalise
from syncnorm.norms.core.recomputation import refuse_recomputation
from syncnorm.norms.core.running import newest_weight, update_running
from syncnorm.norms.core.shapes import check_channels, check_values


@dataclass(frozen=True)
class _Step:
    """What a step leaves for the next: mean and biased variance (C,), their derivatives and the weight (C, ...)."""

    mean: Tensor
    var: Tensor
    dmean: Tensor
    dvar: Tensor
    weight: Tensor

    def at(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return what mean and variance would be under `weight`, to first order in mean and mean square.

            mean' = mean + <dmean, D>,   E[x^2]' = E[x^2] + <dE[x^2], D>,   D = weight - weight then

        and var' = E[x^2]' - mean'^2 = var + <dvar, D> - <dmean, D>^2, which loses no digits to a large mean.
        """
        change = weight - self.weight
        mean, var = ((d * change).flatten(1).sum(1) for d in (self.dmean, self.dvar))
        return self.mean + mean, self.var + var - mean.square()


class CrossIterationBatchNorm(_BatchNorm):
    """Batch norm by the statistics of the last `window` steps, corrected for how the weight before it has changed.

    With the moments of step s = t, t-1, ..., t-window+1 as they would be under today's weight W_t of the convolution
    or linear layer that `x` comes from (derivatives by that weight alone, per channel, from the step itself),

        mean_s(W_t) ~ mean_s + <d mean_s / dW, W_t - W_s>,   the same for E_s[x^2]
        mean = average of mean_s,   var = average of E_s[x^2] - mean^2
        y = (x - mean) / sqrt(var + eps) * weight + bias

    Steps whose E_s[x^2] - mean_s^2 comes out negative are left out, channel by channel, as in the authors' code.
    There the gradient goes through the moments of step t alone. That is one part in `window` of what the statistics
    answer to a change of the weight, so it does not keep the weight from growing as batch norm's gradient does:
    without a small learning rate or weight decay it can grow until training stalls. `through_weight` lets the
    gradient go through W_t in the corrections of the past steps too, which is the derivative of the formula.

    Running statistics are batch norm's own: those of each batch alone, the variance unbiased; evaluation is batch
    norm's. Two choices differ from the authors' code: eps stands under the root, as in batch norm (there it is added
    to the root unless told), and the first `burn_in` steps, which use their own batch alone, leave nothing behind.

    The weight is found in autograd's record of `x`, so `x` has to come straight from the layer in question; one
    whose weight is frozen, or no record at all, leaves the step's own batch. A step costs two further derivatives by
    the weight, and the window holds three times the weight for each step. The window is no part of the state, so that
    this is the state of any batch norm: after loading it fills anew, and the first steps of a run that resumes are
    those of a smaller window.

    Source: Yao, Cao, Zheng, Huang & Lin (arXiv 2002.05712); the article's own treatment of negative variances is not
    confirmed.

    Args:
        num_features: C of an input of shape (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W).
        eps: added to the variance.
        momentum: weight of the newest statistics in the running ones; None averages all batches equally.
        affine: learn weight and bias, shape (C,).
        track_running_stats: keep running_mean and running_var, shape (C,); without them evaluation takes the batch.
        window: steps that count, this one included.
        through_weight: let the gradient go through today's weight in what past steps are corrected by.
        burn_in: steps of plain batch norm (num_batches_tracked counts them; 0 where there is no such counter).

    Raises:
        ValueError: an input that comes from anything but a convolution or linear layer, or of another number of
            channels; fewer than two values a channel in training; a number out of range; a recomputation under
            activation checkpointing, which would find another window.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        window: int = 8,
        through_weight: bool = False,
        burn_in: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, value, least in (("window", window, 1), ("burn_in", burn_in, 0)):
            if value < least:
                raise ValueError(f"{name} is {value}: it must be at least {least}.")
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        self.window, self.through_weight, self.burn_in = window, through_weight, burn_in
        self._past: list[_Step] = []

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` of shape (N, C, ...)."""
        check_channels(self, self.num_features, x)
        if not self.training:
            mean, var = self.running_mean, self.running_var
            return F.batch_norm(x, mean, var, self.weight, self.bias, mean is None, 0.0, self.eps)
        check_values(self, self.num_features, x)
        refuse_recomputation("CrossIterationBatchNorm")
        values = x.to(acc_dtype(x.dtype))
        batch = Moments.of(values, (0, *range(2, x.dim())))
        self._update_running(batch)
        weight = self._weight_behind(x) if self._past_burn_in() else None
        mean, var = (batch.mean, batch.var()) if weight is None else self._over_window(batch, weight)
        return normalise(x, mean.unsqueeze(0), var.unsqueeze(0), self.eps, self.weight, self.bias)

    def _past_burn_in(self) -> bool:
        return self.burn_in == 0 or self.num_batches_tracked is None or int(self.num_batches_tracked) > self.burn_in

    def _over_window(self, batch: Moments, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance over the window, and take this step into it."""
        mean, var, today = batch.mean, batch.var(), weight.detach()
        dmean, dvar = (torch.autograd.grad(m.sum(), weight, retain_graph=True)[0] for m in (mean, var))
        steps = [(mean, var), *(step.at(weight if self.through_weight else today) for step in self._past)]
        means, variances = (torch.stack(rows) for rows in zip(*steps, strict=True))
        valid = (variances >= 0).to(means.dtype)
        share = valid / valid.sum(0)  # today's variance is never negative
        together = (share * means).sum(0)
        spread = (share * (means - together).square()).sum(0)
        newest = _Step(mean.detach(), var.detach(), dmean.detach(), dvar.detach(), today.clone())
        self._past = [newest, *self._past][: self.window - 1]
        return together, (share * variances).sum(0) + spread

    def _weight_behind(self, x: Tensor) -> Tensor | None:
        """Return the weight of the convolution or linear layer that `x` is the output of; None where none learns."""
        if x.grad_fn is None:
            return None
        node: Any = x.grad_fn
        place = {"ConvolutionBackward0": 1, "AddmmBackward0": 2, "MmBackward0": 1}.get(node.name())
        if place is None or getattr(node, "_saved_transposed", False):
            raise ValueError(
                f"CrossIterationBatchNorm({self.num_features}) needs its input straight from a convolution or linear "
                f"layer, whose weight it follows, and got one from {node.name()}: choose another norm for this place."
            )
        node = node.next_functions[place][0]
        while node is not None and node.name() in ("TBackward0", "ToCopyBackward0"):
            node = node.next_functions[0][0]
        if node is None:
            return None
        if not hasattr(node, "variable"):
            raise ValueError(
                f"CrossIterationBatchNorm({self.num_features}) follows the weight of the layer before it, and that "
                f"is computed from something else ({node.name()}): choose another norm for this place."
            )
        weight: Tensor = node.variable
        return weight

    @torch.no_grad()
    def _update_running(self, batch: Moments) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        newest = newest_weight(self.momentum, self.num_batches_tracked)
        update_running(self.running_mean, batch.mean, newest)
        update_running(self.running_var, batch.var(correction=1), newest)

    def reset_running_stats(self) -> None:
        """Forget what was seen: mean 0, variance 1, and an empty window."""
        super().reset_running_stats()
        self._past = []

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        super()._load_from_state_dict(*args, **options)
        self._past = []

    def remember(self) -> list[list[Tensor]]:
        """Return the window as tensors, for `recall` to take up: no state_dict holds it."""
        return [list(vars(step).values()) for step in self._past]

    def recall(self, window: list[list[Tensor]]) -> None:
        """Go on with what `remember` returned."""
        place = next(self.buffers(), None)
        self._past = [_Step(*(t if place is None else t.to(place.device) for t in step)) for step in window]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CrossIterationBatchNorm:
        """Move the window where the layer goes."""
        self._past = [_Step(*map(fn, vars(step).values())) for step in getattr(self, "_past", [])]
        return super()._apply(fn, recurse)  # type: ignore[no-any-return, no-untyped-call]

    def extra_repr(self) -> str:
        """Show the window beside what every batch norm shows."""
        return f"{super().extra_repr()}, window={self.window}"  # type: ignore[no-untyped-call]
