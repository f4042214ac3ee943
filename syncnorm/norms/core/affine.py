"""The formula of a norm, and its weight and bias per channel."""

from typing import Any

import torch
from torch import Tensor, nn

from syncnorm.norms.core.layer import NormLayer, check_eps, check_flags
from syncnorm.norms.core.shapes import beside


def normalise(x: Tensor, mean: Tensor, var: Tensor, eps: float, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return `x` (N, C, ...) normalised by given statistics, in the type of `x`.

        y = (x - mean) / sqrt(var + eps) * weight + bias

    computed in the type of `var`. With statistics (C,), the weight is first multiplied into 1 / sqrt(var + eps),
    which saves a pass over `x`. With statistics (N, C) or (1, C) the weight is applied last, and weight and bias may
    be (N, C).
    """
    scale = torch.rsqrt(var + eps)
    if scale.dim() == 1 and weight is not None:
        scale, weight = scale * weight.to(scale.dtype), None
    y = (x.to(scale.dtype) - beside(mean, x)) * beside(scale, x)
    return scale_and_shift(y, weight, bias).to(x.dtype)


def scale_and_shift(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return `y` (N, C, ...) times weight plus bias, (C,) or (N, C), in the type of `y`; either may be missing."""
    if weight is not None:
        y = y * beside(weight.to(y.dtype), y)
    if bias is not None:
        y = y + beside(bias.to(y.dtype), y)
    return y


def running_affine(norm: Any) -> tuple[Tensor, Tensor]:
    """Return the scale and shift of a layer that evaluates with running_mean and running_var.

    scale = weight / sqrt(running_var + eps),   shift = bias - running_mean scale;   (C,) each, in float64
    """
    return _as_affine(norm, norm.running_mean.double(), norm.running_var.double())


def running_square_affine(norm: Any) -> tuple[Tensor, Tensor]:
    """Like `running_affine`, for a layer that evaluates with running_square and subtracts no mean."""
    square = norm.running_square.double()
    return _as_affine(norm, torch.zeros_like(square), square)


def _as_affine(norm: Any, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    scale = torch.rsqrt(var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias.double()


class ChannelAffine(NormLayer):
    """A layer of C channels that ends in `y * weight + bias`; both have shape (C,), 1 and 0 at first, or are None."""

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
        check_eps(self, num_features, eps)
        check_flags(self, num_features, affine=affine, bias=bias)
        self.num_features, self.eps, self.affine = num_features, eps, affine
        for name, start, wanted in (("weight", 1.0, affine), ("bias", 0.0, affine and bias)):
            values = torch.full((num_features,), start, device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(values) if wanted else None)

    def scale_and_shift(self, y: Tensor) -> Tensor:
        """Return `y` (N, C, ...) times weight, plus bias, in the type of `y`."""
        return scale_and_shift(y, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Show the channels and eps."""
        return f"{self.num_features}, eps={self.eps}, affine={self.affine}"
