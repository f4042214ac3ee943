"""Norms of convolution weights: how each changes a convolution, and which layer it leaves beside it.

model = syncnorm.convert(model, "ws", groups=8)             # standardised weights, group norm instead of batch norm
model = syncnorm.convert(model, "weight_norm")              # or "spectral_norm"; batch norm is removed

They use PyTorch parametrizations: the state has the raw weight as parametrizations.weight.original, and
`convolution.weight` is the normalised one. (PyTorch can copy such modules, but can pickle only their states.)
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import register_parametrization

from syncnorm.moments import acc_dtype
from syncnorm.norms.sample.per_sample import GroupNorm
from syncnorm.norms.spec import OnWeight
from syncnorm.norms.weight.weight_standardization import convolution_like, standardised

_MARK = "_syncnorm_weight_norm"


class WeightStandardization(nn.Module):
    """Weight standardisation as a parametrization: every output unit gets mean 0 and standard deviation 1.

        W'_i = (W_i - mean(W_i)) / (std(W_i) + 1e-5),   std unbiased over the unit's weights

    There is no gain: a norm with weight and bias follows, group norm in the source. (eps is added to the standard
    deviation, which is unbiased, as in the authors' code; their article is not confirmed to say the same.)

    Source: Qiao, Wang, Liu, Shen & Yuille (arXiv 1903.10520).
    """

    def forward(self, weight: Tensor) -> Tensor:
        """Return the standardised weight, (units, ...) as `weight`."""
        values, within_unit = weight.to(acc_dtype(weight.dtype)), tuple(range(1, weight.dim()))
        centred = values - values.mean(within_unit, keepdim=True)
        return (centred / (values.std(within_unit, keepdim=True) + 1e-5)).to(weight.dtype)


class WeightCentralization(nn.Module):
    """Centred weights, W'_i = W_i - mean(W_i), as a parametrization, for moving average batch norm.

    Source: Yan, Wan, Zhang, Zhang, Wei & Sun (arXiv 2001.06838).
    """

    def forward(self, weight: Tensor) -> Tensor:
        """Return the centred weight, (units, ...) as `weight`."""
        return weight - weight.mean(tuple(range(1, weight.dim())), keepdim=True)


class NoNorm(nn.Identity):
    """No norm in the place of one: y = x, in memory of its own.

    Models go on in place after a norm, in ReLU(inplace=True), say. Without a copy, that would change the input, which
    a shortcut or another norm may use as well.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return a copy of `input`, of any shape."""
        return input.clone()


def nothing(num_features: int) -> nn.Module:
    """Build a layer that normalises nothing."""
    return NoNorm()


def norm_beside_ws(
    num_features: int,
    norm: Literal["gn", "none"] = "gn",
    groups: int | None = None,
    eps: float = 1e-5,
    affine: bool = True,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Build the layer beside a convolution with standardised weights: a GroupNorm with these options, or none."""
    if norm not in ("gn", "none"):
        raise ValueError(f"norm is {norm!r}: write 'gn' or 'none'.")
    if norm == "none":
        return NoNorm()
    return GroupNorm(num_features, groups, eps, affine, device=device, dtype=dtype)


class BesideSpectralNorm(NoNorm):
    """The layer beside a convolution with spectral norm: no norm, which holds the norm's option.

    Args:
        num_features: channels of the replaced layer.
        power_iterations: steps of the power method per training forward.
    """

    def __init__(self, num_features: int, power_iterations: int = 1) -> None:
        if power_iterations < 1:
            raise ValueError(f"power_iterations is {power_iterations}: it must be at least 1.")
        super().__init__()


def _weight_norm(convolution: nn.Module) -> None:
    weight = convolution.weight
    parametrizations.weight_norm(convolution)
    convolution.parametrizations.weight.original1 = weight  # type: ignore[union-attr]


def _spectral_norm(convolution: nn.Module, power_iterations: int = 1) -> None:
    parametrizations.spectral_norm(convolution, n_power_iterations=power_iterations)


def _parametrized(parametrize: Callable[..., Any], *own: str) -> OnWeight:
    """Return a builder of convolutions with `parametrize` applied; it takes the norm's options named in `own`."""

    def build(convolution: nn.Module, options: Mapping[str, Any]) -> nn.Module:
        new = convolution_like(convolution)
        parametrize(new, **{key: value for key, value in options.items() if key in own})
        setattr(new, _MARK, True)
        return new.train(convolution.training)  # the parametrization too

    return build


def scaled_standardise_weight(convolution: nn.Module, options: Mapping[str, Any]) -> nn.Module:
    """Build a convolution whose weight is standardised and scaled for its fan-in, with a gain (`ScaledWSConv2d`)."""
    return standardised(convolution)


standardise_weight = _parametrized(lambda new: register_parametrization(new, "weight", WeightStandardization()))
"""Builds a convolution with `WeightStandardization`."""
centre_weight = _parametrized(lambda new: register_parametrization(new, "weight", WeightCentralization()))
"""Builds a convolution with `WeightCentralization`."""
weight_norm_weight = _parametrized(_weight_norm)
"""Builds a convolution with weight norm W_i = g_i V_i / ||V_i|| (Salimans & Kingma, arXiv 1602.07868), g_i = ||W_i||
at first. It is PyTorch's, and V is the original weight parameter. The source's initial scale and bias, computed from
data, are left out."""
spectral_norm_weight = _parametrized(_spectral_norm, "power_iterations")
"""Builds a convolution with PyTorch's spectral norm W / sigma(W) (Miyato, Kataoka, Koyama & Yoshida, arXiv
1802.05957)."""


def raw_parameter(module: nn.Module, name: str) -> Any:
    """Return a module's parameter `name`; if a norm of this file computes it, the raw parameter behind it.

    For a user's own parametrization this is the computed tensor.
    """
    if name == "weight" and hasattr(module, _MARK):
        weights: Any = module.parametrizations.weight  # type: ignore[union-attr]
        if len(weights) == 1:
            return weights.original if weights.is_tensor else weights.original1
    return getattr(module, name, None)
