"""What layers that are not torch's own have in common: a weight and a bias per channel."""

import torch
from torch import Tensor, nn

from syncnorm.norms.core.shapes import by_channel, check_channels


def scale_and_shift(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return `y` (N, C, ...) times weight (C,), plus bias (C,), in the type of `y`; either may be missing."""
    if weight is not None:
        y = y * by_channel(weight.to(y.dtype), y)
    if bias is not None:
        y = y + by_channel(bias.to(y.dtype), y)
    return y


class ChannelAffine(nn.Module):
    """A layer of C channels that ends in `y * weight + bias`: 1 and 0 at first, of shape (C,), or None."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        eps: float,
        affine: bool = True,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.affine = num_features, eps, affine
        for name, start, wanted in (("weight", 1.0, affine), ("bias", 0.0, affine and bias)):
            values = torch.full((num_features,), start, device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(values) if wanted else None)

    def check(self, x: Tensor) -> None:
        """Raise `ValueError` where `x` is not (N, C, ...)."""
        check_channels(self, self.num_features, x)

    def scale_and_shift(self, y: Tensor) -> Tensor:
        """Return `y` (N, C, ...) times weight, plus bias, in the type of `y`."""
        return scale_and_shift(y, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Show the channels and eps."""
        return f"{self.num_features}, eps={self.eps}, affine={self.affine}"
