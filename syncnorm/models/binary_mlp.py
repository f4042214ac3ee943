"""A binary network: weights and activations are -1 and +1, trained by means of real ones."""

from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syncnorm.errors import unknown
from syncnorm.models.factory import NormFactory, plain_batch_norm

Init = Literal["glorot", "he", "uniform"]


def binary_sign(x: Tensor) -> Tensor:
    """Return the sign of every value, +1 for 0, with the straight-through gradient: that of `x` clipped to [-1, 1].

    So the gradient passes where |x| <= 1, including the ends, and is zero elsewhere (Hubara et al., arXiv
    1602.02830). NaN stays NaN.
    """
    clipped = x.clamp(-1, 1)
    # The difference is exactly zero: the value is that of the sign, and the gradient that of the clipped identity.
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype) + (clipped - clipped.detach())


class BinaryLinear(nn.Linear):
    """A linear layer that multiplies by the signs of its weights: y = a sign(W) x + b.

    The optimiser updates the real W with the straight-through gradient, see `binary_sign`. A weight outside [-1, 1]
    no longer has a gradient. The factor a is 1, or, with `scaled`, 1 / sqrt(in_features), which preserves the
    variance of the input.
    """

    def __init__(self, in_features: int, out_features: int, scaled: bool = False) -> None:
        super().__init__(in_features, out_features)
        self.factor = in_features**-0.5 if scaled else 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, out_features) for x (N, in_features)."""
        return F.linear(x, self.factor * binary_sign(self.weight), self.bias)


class Sign(nn.Module):
    """`binary_sign` as an activation."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the signs of x, of the same shape."""
        return binary_sign(x)


class BinaryMLP(nn.Module):
    """A linear layer, `depth` binary layers of `width`, and a linear classifier, with a norm before each activation.

    The first layer and the classifier are real, as is usual in binary networks. Without `binary`, the hidden weights
    are real too, and activations are clipped to [-1, 1], which has the same gradient as the signs in training, so
    only the signs are left out. With `scaled`, binary layers divide by the square root of their number of inputs
    (`BinaryLinear`): a fixed scale instead of a norm's measured one.

    `init` draws all weights: "glorot" and "he" are PyTorch's xavier_normal_ and kaiming_normal_ (for ReLU, by
    inputs), "uniform" is between -1 and 1. Biases start at zero. In a binary layer, the scale of the initialisation
    does not affect the forward pass, only how far each weight is from changing its sign.

    Input (N, C, ...) with `pixels` values per sample, output (N, classes) logits.

    Source: Hubara et al. (arXiv 1602.02830); Sari, Belbahri & Partovi Nia (arXiv 1909.09139) ask the question of norm
    and initialisation.

    Raises:
        UserError: an unknown `init`.
        ValueError: `scaled` without `binary`.
    """

    def __init__(
        self,
        pixels: int,
        classes: int,
        norm: NormFactory | None = None,
        *,
        width: int = 128,
        depth: int = 8,
        init: Init = "glorot",
        binary: bool = True,
        scaled: bool = False,
    ) -> None:
        super().__init__()
        if init not in get_args(Init):
            raise unknown("init", init, get_args(Init))
        if scaled and not binary:
            raise ValueError("scaled is for binary layers, whose weights have no scale of their own")
        norm = norm or plain_batch_norm(ndim=1)
        linear: Callable[[int, int], nn.Linear] = partial(BinaryLinear, scaled=scaled) if binary else nn.Linear
        activation = Sign if binary else nn.Hardtanh
        layers: list[nn.Module] = [nn.Flatten(), nn.Linear(pixels, width), norm(width), activation()]
        for _ in range(depth):
            layers += [linear(width, width), norm(width), activation()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, classes))
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                _initialise(layer, init)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes)."""
        logits: Tensor = self.layers(x)
        return logits


def _initialise(layer: nn.Linear, init: Init) -> None:
    nn.init.zeros_(layer.bias)
    if init == "glorot":
        nn.init.xavier_normal_(layer.weight)
    elif init == "he":
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    else:
        nn.init.uniform_(layer.weight, -1, 1)
