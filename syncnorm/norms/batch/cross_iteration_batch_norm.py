"""Cross-iteration batch norm: statistics of several steps, corrected for the change of the weights since then.

model = syncnorm.convert(model, "cbn", window=8)        # where each batch norm follows a convolution or linear layer
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from syncnorm.moments import Moments, acc_dtype
from syncnorm.norms.core.affine import normalise
from syncnorm.norms.core.ranks.groups import Group
from syncnorm.norms.core.recomputation import refuse_recomputation
from syncnorm.norms.core.shapes import check_divisor
from syncnorm.norms.core.synchronised import SynchronisedBatchNorm


@dataclass(frozen=True)
class _Step:
    """What later steps need of a step: mean and biased variance (C,), their derivatives and the weight (C, ...)."""

    mean: Tensor
    var: Tensor
    dmean: Tensor
    dvar: Tensor
    weight: Tensor

    def at(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return this step's mean and variance under `weight`, to first order in mean and mean square.

            mean' = mean + <dmean, D>,   E[x^2]' = E[x^2] + <dE[x^2], D>,   D = weight - this step's weight

        and var' = E[x^2]' - mean'^2 = var + <dvar, D> - <dmean, D>^2, which does not lose precision when the mean is
        large.
        """
        change = weight - self.weight
        mean, var = ((d * change).flatten(1).sum(1) for d in (self.dmean, self.dvar))
        return self.mean + mean, self.var + var - mean.square()


class CrossIterationBatchNorm(SynchronisedBatchNorm):
    """Batch norm with the statistics of the last `window` steps, corrected for the change of the preceding weight.

    The moments of steps s = t, t-1, ..., t-window+1 are extrapolated to the current weight W_t of the convolution or
    linear layer that `x` comes from (derivatives with respect to that weight alone, per channel, from step s itself):

        mean_s(W_t) ~ mean_s + <d mean_s / dW, W_t - W_s>,   the same for E_s[x^2]
        mean = average of mean_s,   var = average of E_s[x^2] - mean^2
        y = (x - mean) / sqrt(var + eps) * weight + bias

    Steps whose E_s[x^2] - mean_s^2 comes out negative are left out, channel by channel, as in the authors' code.
    In their code, the gradient goes through the moments of step t alone. That is a 1 / `window` share of how the
    statistics respond to the weight, so, unlike batch norm's gradient, it does not keep the weight from growing:
    without a small learning rate or weight decay, the weight can grow until training stalls. `through_weight` also
    lets the gradient go through W_t in the corrections of the past steps, which is the derivative of the formula.

    Running statistics and evaluation are batch norm's: each batch alone updates them, with the unbiased variance. Two
    choices differ from the authors' code: eps is under the root, as in batch norm (theirs adds it to the root by
    default), and the first `burn_in` steps, which use their own batch alone, do not enter the window.

    The weight is found through the autograd graph of `x`, so `x` must come directly from that layer. If the weight is
    frozen, or there is no graph, the step uses its own batch alone. A step costs two more derivatives with respect to
    the weight, and the window stores three tensors of the weight's size per step. The window is not part of the
    state, so the state is that of any batch norm: after loading, the window fills again, and the first steps use a
    smaller one.

    Source: Yao, Cao, Zheng, Huang & Lin (arXiv 2002.05712); the article's own treatment of negative variances is not
    confirmed.

    Args:
        num_features: C of an input of shape (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W).
        eps: added to the variance.
        momentum: weight of the newest statistics in the running ones; None averages all batches equally.
        affine: learn weight and bias, shape (C,).
        track_running_stats: keep running_mean and running_var, shape (C,); without them evaluation takes the batch.
        window: number of steps that count, including the current one; 8 is from memory of the source, not confirmed.
        through_weight: let the gradient go through the current weight in the corrections of past steps.
        burn_in: steps of plain batch norm, counted by num_batches_tracked (0 if the layer has no such counter). The
            source has a burn-in; how long it should be depends on the training, so the default is none.
        sync: take the batch to be that of all ranks of torch.distributed (`process_group`: of these ranks); None: if
            a `process_group` is given.

    Raises:
        ValueError: an input that does not come from a convolution or linear layer, or has another number of channels;
            fewer than two values per channel in training; a number out of range; a recomputation under activation
            checkpointing, which would see another window.
    """

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
        window: int = 8,
        through_weight: bool = False,
        burn_in: int = 0,
    ) -> None:
        for name, value, least in (("window", window, 1), ("burn_in", burn_in, 0)):
            if value < least:
                raise ValueError(f"{name} is {value}: it must be at least {least}.")
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self.share(sync, process_group)
        self.window, self.through_weight, self.burn_in = window, through_weight, burn_in
        self._past: list[_Step] = []

    def normalised(self, x: Tensor) -> Tensor:
        """Normalise `x` of shape (N, C, ...)."""
        if not self.training:
            return self.by_running(x)
        refuse_recomputation("CrossIterationBatchNorm")
        values = x.to(acc_dtype(x.dtype))
        batch = self.moments(values)
        self.move(batch.mean, batch.var(correction=1))
        weight = self._weight_behind(x) if self._past_burn_in() else None
        mean, var = (batch.mean, batch.var()) if weight is None else self._over_window(values, batch, weight)
        check_divisor(self, self.num_features, var)
        return normalise(x, mean.unsqueeze(0), var.unsqueeze(0), self.eps, self.weight, self.bias)

    def _past_burn_in(self) -> bool:
        return self.burn_in == 0 or self.num_batches_tracked is None or int(self.num_batches_tracked) > self.burn_in

    def _over_window(self, x: Tensor, batch: Moments, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance over the window, and add this step to it."""
        mean, var, today = batch.mean, batch.var(), weight.detach()
        dmean, dvar = self._slopes(x, batch, weight)
        steps = [(mean, var), *(step.at(weight if self.through_weight else today) for step in self._past)]
        means, variances = (torch.stack(rows) for rows in zip(*steps, strict=True))
        valid = (variances >= 0).to(means.dtype)
        share = valid / valid.sum(0)  # today's variance is never negative
        together = (share * means).sum(0)
        spread = (share * (means - together).square()).sum(0)
        newest = _Step(mean.detach(), var.detach(), dmean.detach(), dvar.detach(), today.clone())
        self._past = [newest, *self._past][: self.window - 1]
        return together, (share * variances).sum(0) + spread

    def _slopes(self, x: Tensor, batch: Moments, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the derivatives of the batch's mean and variance with respect to the weight, (C, ...) each.

        Over ranks, with n of N values here, whose mean and variance are m and v,

            dmean = sum over ranks of n / N dm,   dvar = sum over ranks of n / N (dv + 2 (m - mean) dm)
        """
        own = Moments.of(x, (0, *range(2, x.dim()))) if self.meets() else batch
        dmean, dvar = (torch.autograd.grad(m.sum(), weight, retain_graph=True)[0] for m in (own.mean, own.var()))
        if not self.meets():
            return dmean, dvar
        away = (own.mean - batch.mean).detach().view(-1, *[1] * (weight.dim() - 1))
        both = torch.stack([dmean, dvar + 2 * away * dmean]) * (own.count / batch.count).to(dmean.dtype)
        dmean, dvar = self.among_ranks(x).sum(both, backward=False)
        return dmean, dvar

    def _weight_behind(self, x: Tensor) -> Tensor | None:
        """Return the weight of the convolution or linear layer whose output `x` is; None if it does not train."""
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

    def start_statistics(self) -> None:
        """Reset: mean 0, variance 1, and an empty window."""
        super().start_statistics()
        self._past = []

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        super()._load_from_state_dict(*args, **options)
        self._past = []

    def remember(self) -> list[list[Tensor]]:
        """Return the window as tensors, for `recall`: it is not in the state_dict."""
        return [list(vars(step).values()) for step in self._past]

    def recall(self, window: list[list[Tensor]]) -> None:
        """Restore the window that `remember` returned."""
        place = next(self.buffers(), None)
        self._past = [_Step(*(t if place is None else t.to(place.device) for t in step)) for step in window]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CrossIterationBatchNorm:
        """Move the window with the layer."""
        self._past = [_Step(*map(fn, vars(step).values())) for step in getattr(self, "_past", [])]
        return super()._apply(fn, recurse)  # type: ignore[no-any-return, no-untyped-call]

    def extra_repr(self) -> str:
        """Show the window after what every batch norm shows."""
        return f"{super().extra_repr()}, window={self.window}"
