"""Normalise weights instead of activations: convolutions that standardise their weight at every call.

model = syncnorm.convert(model, "scaled_ws")        # with syncnorm.adaptive_gradient_clip in the training step
"""

from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from syncnorm.moments import Moments
from syncnorm.norms.core.layer import as_leaf

EPS = 1e-4
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def scaled_weight_standardization(weight: Tensor, gain: Tensor, eps: float = EPS) -> Tensor:
    """Return the standardised weight: every output unit with mean 0 and norm `gain`.

    For output unit i with n = fan_in weights and their biased variance,

        W'_i = gain_i * (W_i - mean(W_i)) / sqrt(max(n var(W_i), eps)),

    that is gain (W - mean) / (std sqrt(fan_in)) unless the weights nearly vanish: `eps` is a floor, not a summand, as
    in the code of Brock et al. (from memory, not confirmed), so it has no effect while n var(W_i) >= eps. They also
    multiply activations by a constant (1.71 for ReLU), which is not applied here; the gain can learn it. The gradient
    goes through mean and variance.

    Shapes: weight (units, ...), gain (units,).

    Sources: Brock, De & Smith (arXiv 2101.08692); in federated learning FedWon (Zhuang & Lyu, arXiv 2306.05879).
    """
    moments = Moments.of(weight, tuple(range(1, weight.dim())))
    units = (-1, *[1] * (weight.dim() - 1))
    scale = gain.to(moments.m2.dtype) * torch.rsqrt(moments.m2.clamp(min=eps))
    return ((weight - moments.mean.view(units)) * scale.view(units)).to(weight.dtype)


class _ScaledWS:
    """Adds to PyTorch's convolutions a `gain` (out_channels,), 1 at first, and the standardisation."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        weight = self.weight  # type: ignore[attr-defined]
        self.gain = nn.Parameter(torch.ones(weight.shape[0], device=weight.device, dtype=weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `x` with the standardised weight, and add the bias."""
        if isinstance(x, Proxy):
            return as_leaf(self, x)
        weight = scaled_weight_standardization(self.weight, self.gain)  # type: ignore[attr-defined]
        y: Tensor = self._conv_forward(x, weight, self.bias)  # type: ignore[attr-defined]
        return y


class ScaledWSConv1d(_ScaledWS, nn.Conv1d):
    """`torch.nn.Conv1d` with its weight put through `scaled_weight_standardization`, and a learnt `gain`."""


class ScaledWSConv2d(_ScaledWS, nn.Conv2d):
    """`torch.nn.Conv2d` with its weight put through `scaled_weight_standardization`, and a learnt `gain`."""


class ScaledWSConv3d(_ScaledWS, nn.Conv3d):
    """`torch.nn.Conv3d` with its weight put through `scaled_weight_standardization`, and a learnt `gain`."""


def can_be_standardised(module: nn.Module) -> bool:
    """Return whether `module` is a convolution, not standardised yet, with more than one weight per unit.

    One weight per unit (a 1x1 depthwise convolution) is a gain already: subtracting its mean leaves zero.
    """
    if not isinstance(module, CONVOLUTIONS) or isinstance(module, _ScaledWS):
        return False
    return module.in_channels // module.groups * prod(module.kernel_size) != 1


def standardised(convolution: nn.Module) -> nn.Module:
    """Build `convolution` with its weight standardised; it shares the weight and bias parameters."""
    new: Any = convolution_like(convolution, (ScaledWSConv1d, ScaledWSConv2d, ScaledWSConv3d))
    new.gain = nn.Parameter(torch.ones(new.out_channels, device=new.weight.device, dtype=new.weight.dtype))
    return new  # type: ignore[no-any-return]


def convolution_like(convolution: nn.Module, kinds: tuple[type[nn.Module], ...] = CONVOLUTIONS) -> nn.Module:
    """Build a convolution of one of `kinds` (chosen by dimensions) with another's geometry and parameters."""
    kind: Any = next(own for plain, own in zip(CONVOLUTIONS, kinds, strict=True) if isinstance(convolution, plain))
    c: Any = convolution
    geometry = (c.in_channels, c.out_channels, c.kernel_size, c.stride, c.padding, c.dilation, c.groups)
    # On "meta", its own weights are neither allocated nor drawn.
    new: nn.Module = kind(*geometry, bias=c.bias is not None, padding_mode=c.padding_mode, device="meta")
    new.weight, new.bias = c.weight, c.bias
    return new.train(c.training)
