"""Batch norm that learns, channel by channel, how far to trust its own batch.

model = syncnorm.convert(model, "hybrid_bn")
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from syncnorm.moments import Moments, accumulator
from syncnorm.norms.frozen_batch_norm import FrozenBatchNorm


class HybridBatchNorm(FrozenBatchNorm):
    """Batch norm whose training statistics lie between the running ones and those of the batch.

        a = sigmoid(mix)
        mean = (1 - a) running_mean + a batch_mean,   var = (1 - a) running_var + a batch_var   (biased)
        y = (x - mean) / sqrt(var + eps) * weight + bias

    The gradient goes through the batch's statistics and `mix`. Evaluation normalises with the running statistics
    alone, which no forward moves: they come from outside, e.g. from a server that pools its clients'. (var leaves
    out the spread between the two means, a (1 - a) (batch_mean - running_mean)^2, as in the source.)

    Source: HBN (Chen, Xu, Wu & Kittler, arXiv 2505.21877).

    Args:
        as for FrozenBatchNorm. `mix` is a parameter of shape (C,), 0 at first (a = 1/2), learnt also if affine=False.

    Raises:
        ValueError: one value per channel in training, which has no variance; an input of another number of channels.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        self.mix = nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` of shape (N, C, ...)."""
        if not self.training:
            return super().forward(x)
        self._check_input_dim(x)
        if x.numel() == self.num_features:
            raise ValueError(
                f"HybridBatchNorm({self.num_features}) got one value per channel (input of shape {tuple(x.shape)}): "
                "a variance needs two. Give it more samples, or call .eval()."
            )
        assert self.running_mean is not None
        assert self.running_var is not None
        batch = Moments.of(x, (0, *range(2, x.dim())))
        share = self.mix.to(batch.mean.dtype).sigmoid()
        mean = torch.lerp(self.running_mean.to(share.dtype), batch.mean, share)
        var = torch.lerp(self.running_var.to(share.dtype), batch.var(), share)
        scale = torch.rsqrt(var + self.eps)
        if self.weight is not None:
            scale = scale * self.weight.to(scale.dtype)
        channels = (1, -1, *[1] * (x.dim() - 2))
        y = (x.to(accumulator(x.dtype)) - mean.view(channels)) * scale.view(channels)
        if self.bias is not None:
            y = y + self.bias.to(scale.dtype).view(channels)
        return y.to(x.dtype)
