"""Diminishing batch norm: running statistics that each new batch moves by less.

model = syncnorm.convert(model, "diminishing_bn")                           # alpha_m = 1 / m
model = syncnorm.convert(model, "diminishing_bn", alpha=0.25, power=0)      # alpha_m = 0.25
"""

from __future__ import annotations

import torch
from torch import Tensor

from syncnorm.norms.core.batch_norm import batch_norm
from syncnorm.norms.core.ranks.groups import Group
from syncnorm.norms.core.recomputation import refuse_recomputation
from syncnorm.norms.core.running import moved, update_running
from syncnorm.norms.core.shapes import check_divisor, check_values
from syncnorm.norms.core.synchronised import SynchronisedBatchNorm


class DiminishingBatchNorm(SynchronisedBatchNorm):
    """Batch norm that trains with its running statistics, which each batch moves by less than the one before.

    At step m = 1, 2, ... (num_batches_tracked counts them), with the batch's mean and its standard deviation
    s = sqrt(var + eps) (biased),

        alpha_m = alpha / m^power
        mu <- alpha_m mean + (1 - alpha_m) mu,   sigma <- alpha_m s + (1 - alpha_m) sigma
        y = (x - mu) / sigma * weight + bias

    The standard deviation is averaged, not the variance. The gradient treats mu and sigma as constants, including the
    batch's own part: alpha_m = 1 gives batch norm's output, but not its gradient. Evaluation normalises with mu and
    sigma. The state holds running_var = sigma^2 - eps, as in PyTorch's layer.

    The source tries power 1 (the default here), 2 and constant alphas (power 0). Its first theorem (the statistics
    converge) needs power > 1; its second (the gradient vanishes) needs power > 2, for example 2.001. Both assume full
    batches and two layers, and neither covers a constant alpha. The source normalises after the activation; `convert`
    puts the layer where the model has its norms, usually before it. The source adds eps to sigma; here eps is under
    the root, as in batch norm, so that evaluation is batch norm's.

    Because the gradient treats the statistics as constants, nothing keeps the weights from growing, and training can
    stall or diverge. A batch whose statistics are not finite raises `ValueError` before it changes the running ones.

    While somebody sets `momentum` to None to take the statistics anew, as `torch.optim.swa_utils.update_bn` does, all
    batches weigh the same.

    A layer converted after training continues batch norm's step count.

    Source: Ma & Klabjan (arXiv 1705.08011).

    Args:
        num_features: C of an input of shape (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W).
        eps: added to the variance.
        momentum: not used here, but for None as above; a layer converted from this one takes it over.
        affine: learn weight and bias, shape (C,).
        track_running_stats: must be True: the layer trains with them.
        alpha: factor of the schedule, above 0 and at most 1.
        power: how fast alpha_m diminishes, at least 0.
        sync: take the batch to be that of all ranks of torch.distributed (`process_group`: of these ranks); None: if
            a `process_group` is given.

    Raises:
        ValueError: statistics that are not finite; fewer than two values per channel in training; an input with
            another number of channels; a number out of range; a recomputation under activation checkpointing.
    """

    needs_statistics = "trains with running statistics"

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
        alpha: float = 1.0,
        power: float = 1.0,
    ) -> None:
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha is {alpha}: it must be above 0 and at most 1.")
        if not power >= 0:
            raise ValueError(f"power is {power}: it must be at least 0, which keeps alpha as it is.")
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self.share(sync, process_group)
        self.alpha, self.power = alpha, power

    def normalised(self, x: Tensor) -> Tensor:
        """Normalise `x` of shape (N, C, ...); in training, update the running statistics first."""
        if not self.training:
            return self.by_running(x)
        if not self.meets():
            check_values(self, self.num_features, x)
        refuse_recomputation("DiminishingBatchNorm")
        mean, var = self.running()
        if self.moves():
            self._update_running(x, mean, var)
        check_divisor(self, self.num_features, var)
        # Copies, since the backward needs this step's values.
        return batch_norm(x, mean.clone(), var.clone(), self.weight, self.bias, False, 0.0, self.eps)

    @torch.no_grad()
    def _update_running(self, x: Tensor, running_mean: Tensor, running_var: Tensor) -> None:
        batch = self.moments(x)
        # A graph cannot branch on values: in one, a diverged step is not told.
        traced = torch.compiler.is_compiling()
        if not traced and not (batch.mean.isfinite() & batch.m2.isfinite()).all():
            step = "" if self.num_batches_tracked is None else f" of step {int(self.num_batches_tracked) + 1}"
            raise ValueError(
                f"DiminishingBatchNorm({self.num_features}) diverged: the batch{step} has statistics that are not "
                "finite. Lower the learning rate, or let alpha diminish more slowly."
            )
        newest = self._alpha_of_next_step()
        update_running(running_mean, batch.mean, newest)
        sigma = moved((running_var + self.eps).sqrt(), (batch.var() + self.eps).sqrt(), newest)
        running_var.copy_((sigma.square() - self.eps).clamp(min=0))

    def _alpha_of_next_step(self) -> float | Tensor:
        """Count a step, and return alpha_m; without a counter a schedule that needs m stands still."""
        plain = self.count()
        step = self.num_batches_tracked
        if self.refilling():
            return plain
        if step is None:
            return self.alpha if self.power == 0 else 0.0
        return self.alpha / step.double() ** self.power

    def extra_repr(self) -> str:
        """Show the schedule after what every batch norm shows."""
        return f"{super().extra_repr()}, alpha={self.alpha}, power={self.power}"
