"""Batch norm that learns, for each channel, how much weight its own batch gets.

model = syncnorm.convert(model, "hybrid_bn")
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from syncnorm.norms.batch.frozen_batch_norm import FrozenBatchNorm
from syncnorm.norms.core.affine import normalise
from syncnorm.norms.core.ranks.groups import Group
from syncnorm.norms.core.shapes import check_divisor
from syncnorm.norms.core.synchronised import SynchronisedBatchNorm


class HybridBatchNorm(SynchronisedBatchNorm, FrozenBatchNorm):
    """Batch norm that trains with a learnt mix of the running statistics and the batch's.

        a = sigmoid(mix)
        mean = (1 - a) running_mean + a batch_mean,   var = (1 - a) running_var + a batch_var   (biased)
        y = (x - mean) / sqrt(var + eps) * weight + bias

    The gradient goes through the batch's statistics and `mix`. Evaluation normalises with the running statistics
    alone. No forward changes them: they come from outside, for example from a server that pools its clients'. (As in
    the source, var leaves out the spread between the two means, a (1 - a) (batch_mean - running_mean)^2.)

    A plain batch norm's state also loads, and leaves `mix` unchanged.

    Source: HBN (Chen, Xu, Wu & Kittler, arXiv 2505.21877).

    The other arguments are those of FrozenBatchNorm. `mix` is a parameter of shape (C,), 0 at first (a = 1/2); it is
    learnt even with affine=False.

    Args:
        sync: take the batch to be that of all ranks of torch.distributed (`process_group`: of these ranks); None: if
            a `process_group` is given.

    Raises:
        ValueError: one value per channel in training; an input with another number of channels.
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
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self.share(sync, process_group)
        self.mix = nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if prefix + "running_mean" in state_dict:  # a plain batch norm's state has no `mix`: keep it
            _, _, missing_keys, *_ = args
            missing_keys[:] = [key for key in missing_keys if key != prefix + "mix"]

    def normalised(self, x: Tensor) -> Tensor:
        """Normalise `x` of shape (N, C, ...)."""
        if not self.training or self.refilling():
            return super().normalised(x)
        running_mean, running_var = self.running()
        batch = self.moments(x, empty=True)
        share = self.mix.to(batch.mean.dtype).sigmoid()
        mean = torch.lerp(running_mean.to(share.dtype), batch.mean, share)
        var = torch.lerp(running_var.to(share.dtype), batch.var(), share)
        check_divisor(self, self.num_features, var)
        return normalise(x, mean, var, self.eps, self.weight, self.bias)
