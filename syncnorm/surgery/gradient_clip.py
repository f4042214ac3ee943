"""Adaptive gradient clipping: what networks without norm layers need to bear large steps."""

from collections.abc import Mapping

import torch
from torch import Tensor

from syncnorm.errors import UserError


def adaptive_gradient_clip(
    parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor], clip: float, eps: float = 1e-3
) -> dict[str, Tensor]:
    """Return the gradients, shortened where an output unit's is long compared to its weight.

    For each output unit i of a weight W with gradient G, in Frobenius norms over all dimensions but the first,

        G_i  <-  G_i * min(1, clip * max(||W_i||, eps) / ||G_i||)

    Tensors of fewer than two dimensions (biases, gains) come back as they are. What is not to be clipped, such as
    the last linear layer in the source, is left out of `gradients`. Nothing is changed in place, and the result
    carries no gradient; under `torch.func.vmap` each of the stacked models is clipped by itself.

    Args:
        parameters: weights by name, (units, ...) each.
        gradients: by the same names; names that are missing here are missing in what is returned.
        clip: longest gradient of a unit, in units of its weight's norm (0.01 in the source).
        eps: shortest norm that a weight counts with, so that units that start at zero can move.

    Raises:
        UserError: a `clip` or `eps` that is not above 0, which would keep units where they are for good.

    Source: Brock, De, Smith & Simonyan (arXiv 2102.06171).
    """
    for name, value in (("clip", clip), ("eps", eps)):
        if not value > 0:
            raise UserError(f"{name} is {value}: adaptive gradient clipping needs one above 0.")
    return {
        name: _clip(parameters[name].detach(), gradient, clip, eps) if gradient.dim() > 1 else gradient
        for name, gradient in ((name, gradient.detach()) for name, gradient in gradients.items())
    }


def _clip(weight: Tensor, gradient: Tensor, clip: float, eps: float) -> Tensor:
    within_unit = tuple(range(1, weight.dim()))
    longest = clip * torch.linalg.vector_norm(weight, dim=within_unit, keepdim=True).clamp(min=eps)
    length = torch.linalg.vector_norm(gradient, dim=within_unit, keepdim=True)
    return gradient * torch.where(length > longest, longest / length, 1.0)
