"""The arithmetic of folding: weight and bias of one layer that replaces a layer and the norm after it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from syncnorm.norms.core.affine import running_affine
from syncnorm.surgery.layers.substitute import spec_of_layer

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def as_affine(norm: Any) -> tuple[Tensor, Tensor]:
    """Return the scale and shift that `norm` applies in evaluation, (C,) each, in float64."""
    spec = spec_of_layer(norm)
    return spec.fold(norm) if spec is not None and callable(spec.fold) else running_affine(norm)


@torch.no_grad()
def folded(source: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Return the weight and bias, in the type of `source`'s, that make `source` include the `norm` after it."""
    scale, shift = as_affine(norm)
    weight: Tensor = source.weight.double()
    if isinstance(source, TRANSPOSED):  # (inputs, outputs / groups, ...), the inputs of a group are adjacent
        per_output = scale.view(source.groups, 1, -1, *[1] * (weight.dim() - 2))
        weight = (weight.reshape(source.groups, -1, *weight.shape[1:]) * per_output).reshape(weight.shape)
    else:
        weight = weight * scale.view(-1, *[1] * (weight.dim() - 1))
    if source.bias is not None:
        shift = shift + source.bias.double() * scale
    return weight.to(source.weight.dtype), shift.to(source.weight.dtype)
