"""RMS norm: layer norm without subtracting the mean.

model = syncnorm.convert(model, "rms")
"""

import torch
from torch import Tensor

from syncnorm.moments import acc_dtype
from syncnorm.norms.core.affine import ChannelAffine
from syncnorm.norms.core.masked import mean_square_where
from syncnorm.norms.core.valid import Valid


class RMSNorm(ChannelAffine):
    """RMS norm over (C, H, W) of each sample, with a weight per channel; input (N, C, ...).

        y = x / sqrt(mean(x^2) + eps) * weight_c,   mean over the whole sample

    Like LayerNorm here, it normalises over the whole sample; the source has vectors (N, C), for which the two
    readings agree. The source has no bias; `bias=True` adds one, for models whose convolutions have none because the
    replaced batch norm had it.

    Source: Zhang & Sennrich (arXiv 1910.07467).

    Raises:
        ValueError: an input with another number of channels.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        bias: bool = False,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, affine, bias, device=device, dtype=dtype)

    def normalised(self, x: Tensor) -> Tensor:
        """Normalise each sample of `x` by its root mean square."""
        values = x.to(acc_dtype(x.dtype))
        return self._divided(values, values.square().mean(tuple(range(1, x.dim())), keepdim=True)).to(x.dtype)

    def masked(self, x: Tensor, valid: Valid) -> Tensor:
        """Normalise each sample of `x` where `valid` by its root mean square there."""
        values = valid.fill(x).to(acc_dtype(x.dtype))
        return valid.fill(self._divided(values, mean_square_where(values, valid, by_channel=False)).to(x.dtype))

    def _divided(self, values: Tensor, square: Tensor) -> Tensor:
        return self.scale_and_shift(values * torch.rsqrt(square + self.eps))
