"""The base of layers with the state of PyTorch's batch norm: what it holds, how it moves, and how it normalises."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import handle_torch_function, has_torch_function_unary

from syncnorm._torch import transforming
from syncnorm.moments import acc_dtype
from syncnorm.norms.core.layer import NormLayer, check_eps, check_flags
from syncnorm.norms.core.masked import batch_norm_where, check_counts
from syncnorm.norms.core.recomputation import recomputing
from syncnorm.norms.core.running import newest_weight, update_running
from syncnorm.norms.core.shapes import check_divisor, check_values, in_layout_of
from syncnorm.norms.core.valid import Valid

HALVES = (torch.float16, torch.bfloat16)


class BatchNormLayer(NormLayer, _BatchNorm):
    """A batch norm with the constructor, the state and the flags of PyTorch's, as they are at the moment of a call.

    `track_running_stats`, `momentum` and every buffer may be changed at run time, also to None:

    - Training moves the running statistics only while `track_running_stats` is true, and not in the recomputation of
      activation checkpointing. Setting it to False freezes them.
    - Evaluation normalises with running_mean and running_var, whatever the flag; with the batch if both are None.
    - momentum None is the mean of all batches since `num_batches_tracked` was 0; without that counter, nothing moves.

    Args:
        num_features: C of an input of shape (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W).
        eps: added to the variance, at least 0; above 0 wherever training divides by the batch's deviation.
        momentum: weight of the newest statistics in the running ones; None averages all batches equally.
        affine: learn weight and bias, shape (C,).
        track_running_stats: keep running_mean and running_var, shape (C,).
        device, dtype: of parameters and statistics.
        bias: learn a bias beside the weight.

    Raises:
        ValueError: a negative eps; a flag that is no bool; statistics of which only one is there.
    """

    needs_statistics: ClassVar[str] = ""
    """For a layer that cannot do without running statistics, what it does with them."""

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
        check_eps(self, num_features, eps)
        check_flags(self, num_features, affine=affine, track_running_stats=track_running_stats, bias=bias)
        if self.needs_statistics and not track_running_stats:
            raise ValueError(
                f"{type(self).__name__} {self.needs_statistics}: write track_running_stats=True, and load or "
                "recalibrate them."
            )
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        if not bias:  # torch's own constructor has not always known it
            self.register_parameter("bias", None)
        self.momentum_at_first = momentum

    def by_batch(self, x: Tensor) -> Tensor:
        """Normalise `x` by its own moments, and move the running statistics."""
        check_values(self, self.num_features, x)
        check_divisor(self, self.num_features)
        mean, var = self.tracked()
        newest = 0.0
        if self.track_running_stats:
            if not recomputing():
                newest = float(self.count())
            elif mean is not None and var is not None:
                # Copies, since a recomputation must save as many tensors as the forward did.
                mean, var = mean.clone(), var.clone()
        return batch_norm(x, mean, var, self.weight, self.bias, True, newest, self.eps)

    def by_batch_alone(self, x: Tensor) -> Tensor:
        """Normalise `x` by its own moments, and leave the running statistics as they are."""
        return batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)

    def by_running(self, x: Tensor) -> Tensor:
        """Normalise `x` by the running statistics, or by its own moments if there are none."""
        mean, var = self.running_mean, self.running_var
        if mean is None and var is None:
            return self.by_batch_alone(x)
        return batch_norm(x, *self.running(), self.weight, self.bias, False, 0.0, self.eps)

    def by_valid(self, x: Tensor, valid: Valid) -> Tensor:
        """Normalise `x` where `valid` by the moments there, and move the running statistics if anything is valid."""
        check_divisor(self, self.num_features)
        check_counts([valid.count], f"{type(self).__name__}({self.num_features})")
        y, moments = batch_norm_where(x, valid, self.weight, self.bias, self.eps)
        self.move(moments.mean, moments.var(correction=1), moments.count > 0)
        return y

    def by_running_where(self, x: Tensor, valid: Valid) -> Tensor:
        """Do what `by_running` does, where `valid`."""
        if self.running_mean is None and self.running_var is None:
            return self.by_valid(x, valid)
        return valid.fill(self.by_running(valid.fill(x)))

    def tracked(self) -> tuple[Tensor | None, Tensor | None]:
        """Return running_mean and running_var if the layer tracks them in training; else None for both."""
        if not self.track_running_stats:
            return None, None
        held = self._buffers  # asking the module for each would take as long as the rest of its checks
        mean, var = held.get("running_mean"), held.get("running_var")
        if (mean is None) is not (var is None):
            self.running()  # says which is missing
        return mean, var

    def running(self) -> tuple[Tensor, Tensor]:
        """Return running_mean and running_var, for what cannot do without; raise `ValueError` if one is None."""
        mean, var = self.running_mean, self.running_var
        if mean is None or var is None:
            missing = "running_mean" if mean is None else "running_var"
            raise ValueError(
                f"{type(self).__name__}({self.num_features}) has no {missing} (it is None), and "
                f"{self.needs_statistics or 'one statistic says nothing without the other'}: load both, or choose "
                "another norm."
            )
        return mean, var

    def moves(self) -> bool:
        """Return whether this forward moves the running statistics."""
        return self.training and self.track_running_stats and not recomputing()

    def refilling(self) -> bool:
        """Return whether somebody has set momentum to None since, and trains, to take the statistics anew.

        `torch.optim.swa_utils.update_bn` does so, and Lightning's weight averaging.
        """
        return self.training and self.momentum is None and self.momentum_at_first is not None

    def count(self, where: Tensor | None = None) -> float | Tensor:
        """Count a batch (only if `where` is true, if given), and return its weight in the running statistics."""
        batches = self._buffers.get("num_batches_tracked")
        if batches is None:
            return 0.0 if self.momentum is None else self.momentum
        batches.add_(1 if where is None else where)
        return newest_weight(None, batches) if self.momentum is None else self.momentum

    @torch.no_grad()
    def move(self, mean: Tensor, var: Tensor, where: Tensor | None = None) -> None:
        """Move the running statistics towards a batch's mean and unbiased variance, if this forward moves them."""
        if self.moves():
            newest = self.count(where)
            for running, new in ((self.running_mean, mean), (self.running_var, var)):
                if running is not None:
                    update_running(running, new, newest, where)

    def start_statistics(self) -> None:
        """Set the statistics that are there to mean 0, variance 1 and no batch."""
        for buffer, start in ((self.running_mean, 0), (self.running_var, 1), (self.num_batches_tracked, 0)):
            if buffer is not None:
                buffer.fill_(start)

    def reset_running_stats(self) -> None:
        """Start the statistics anew if the layer tracks them."""
        if self.track_running_stats:
            self.start_statistics()

    def reset_parameters(self) -> None:
        """Start the statistics anew if the layer tracks them, and set weight to 1 and bias to 0."""
        if self.track_running_stats:
            self.start_statistics()
        for parameter, start in ((self.weight, 1.0), (self.bias, 0.0)):
            if parameter is not None:
                nn.init.constant_(parameter, start)


def batch_norm(
    x: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    newest: float,
    eps: float,
) -> Tensor:
    """Return `F.batch_norm` of these, for any mix of floating-point types; the output has the type of `x`.

    The kernel wants one type for all, or float32 beside a half-precision input. Anything else is brought to the type
    that statistics of `x` are held in; mean and var are then updated in their own.
    """
    if _kernel_takes(x.dtype, mean, var, weight, bias):
        return F.batch_norm(x, mean, var, weight, bias, training, newest, eps)
    statistics = acc_dtype(x.dtype)
    mean_, var_, weight_, bias_ = (None if t is None else t.to(statistics) for t in (mean, var, weight, bias))
    y = F.batch_norm(x, mean_, var_, weight_, bias_, training, newest, eps)
    if training:
        for held, new in ((mean, mean_), (var, var_)):
            if held is not None and new is not None and held is not new:
                held.copy_(new)
    return y


def batch_norm_by_rank(
    x: Tensor,
    ranks: int,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    newest: float,
    eps: float,
) -> Tensor:
    """Return `batch_norm` in training of R ranks, of which rank r has samples r, r + R, ..., in the layout of `x`.

    mean, var, weight and bias are the ranks' own, (R * C,). A stack of models has kernels of its own for this.
    """
    if transforming() and has_torch_function_unary(x):
        own: Tensor = handle_torch_function(batch_norm_by_rank, (x,), x, ranks, mean, var, weight, bias, newest, eps)
        return own
    per_rank = x.reshape(len(x) // ranks, ranks * x.shape[1], *x.shape[2:])
    return in_layout_of(batch_norm(per_rank, mean, var, weight, bias, True, newest, eps).reshape(x.shape), x)


def _kernel_takes(
    own: torch.dtype, mean: Tensor | None, var: Tensor | None, weight: Tensor | None, bias: Tensor | None
) -> bool:
    """Return whether the tensors are all of the type `own`, or all float32 beside a half-precision one."""
    kind = own
    if own in HALVES and any(t is not None and t.dtype is torch.float32 for t in (mean, var, weight, bias)):
        kind = torch.float32
    return (  # written out: every layer asks at every call
        (mean is None or mean.dtype is kind)
        and (var is None or var.dtype is kind)
        and (weight is None or weight.dtype is kind)
        and (bias is None or bias.dtype is kind)
    )
