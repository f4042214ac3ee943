"""Adaptive gradient clipping, which networks without norm layers need for large learning rates."""

from collections.abc import Mapping

import torch
from torch import Tensor

from syncnorm.errors import UserError


def adaptive_gradient_clip(
    parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor], clip: float, eps: float = 1e-3
) -> dict[str, Tensor]:
    """Return the gradients, clipped for output units whose gradient is large compared with their weight.

    For each output unit i of a weight W with gradient G, in Frobenius norms over all dimensions but the first,

        G_i  <-  G_i * min(1, clip * max(||W_i||, eps) / ||G_i||)

    Tensors of fewer than two dimensions (biases, gains) are returned unchanged. Leave out of `gradients` what should
    not be clipped, such as the last linear layer in the source. Nothing is changed in place, and the result carries
    no gradient; under `torch.func.vmap` each of the stacked models is clipped separately.

    Args:
        parameters: weights by name, (units, ...) each.
        gradients: gradients by the same names; missing names are missing in the result too.
        clip: largest allowed ratio of gradient norm to weight norm of a unit (0.01 in the source).
        eps: lower bound on the weight norm, so that units that start at zero can move.

    Raises:
        UserError: a `clip` or `eps` that is not above 0, which would never let units move.

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
