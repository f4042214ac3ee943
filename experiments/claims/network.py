"""A deep network of linear layers in which a norm can sit, and be disturbed, wherever a claim asks for it."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from syncnorm import register_model

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid}


class Disturbed(nn.Module):
    """A norm whose output gets another scale and offset per channel at each training step.

    y = s x + m with s uniform in [1 - noise, 1 + noise] and m uniform in [-noise, noise], drawn anew at each step, so
    that the distribution of what the next layer gets shifts at every step. Evaluation leaves x as it is. Input
    (N, C), output (N, C).
    """

    def __init__(self, norm: nn.Module, noise: float) -> None:
        super().__init__()
        self.norm, self.noise = norm, noise

    def forward(self, x: Tensor) -> Tensor:
        """Return the disturbed output of the norm."""
        y: Tensor = self.norm(x)
        if not self.training:
            return y
        scale, offset = torch.rand(2, y.shape[1], dtype=y.dtype, device=y.device) * 2 - 1
        return (1 + self.noise * scale) * y + self.noise * offset


class Block(nn.Module):
    """Two linear layers beside a shortcut, with norms inside the branch or after the sum.

    inside: y = relu(x + norm(W2 relu(norm(W1 x)))). after_sum: y = relu(norm(x + W2 relu(norm(W1 x)))).
    Input and output (N, width).
    """

    def __init__(self, width: int, norm: Callable[[int], nn.Module], place: str) -> None:
        super().__init__()
        first = [nn.Linear(width, width), norm(width), nn.ReLU(), nn.Linear(width, width)]
        self.branch = nn.Sequential(*first, norm(width)) if place == "inside" else nn.Sequential(*first)
        self.after = nn.Identity() if place == "inside" else norm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output (N, width)."""
        return torch.relu(self.after(x + self.branch(x)))


@register_model("claims_mlp", positions=0)
class ClaimsMLP(nn.Module):
    """Flattened pixels, `depth` hidden layers of `width`, and a linear classifier. Output (N, classes) logits.

    Args:
        activation: "relu" or "sigmoid".
        place: the norm "before" or "after" the activation; or, in blocks of two layers with a shortcut, "inside" the
            branch or "after_sum".
        dropout: probability of dropout after each activation.
        noise: strength of the disturbance after each norm (`Disturbed`).
    """

    def __init__(
        self,
        pixels: int,
        classes: int,
        norm: Callable[[int], nn.Module],
        *,
        depth: int = 6,
        width: int = 64,
        activation: str = "relu",
        place: str = "before",
        dropout: float = 0.0,
        noise: float = 0.0,
    ) -> None:
        super().__init__()

        def make(channels: int) -> nn.Module:
            layer = norm(channels)
            return Disturbed(layer, noise) if noise else layer

        if place in ("inside", "after_sum"):
            hidden: list[nn.Module] = [nn.Linear(pixels, width), make(width), nn.ReLU()]
            hidden += [Block(width, make, place) for _ in range((depth - 1) // 2)]
        else:
            hidden = []
            for before, after in pairwise([pixels, *[width] * depth]):
                pair = [make(after), ACTIVATIONS[activation]()]
                hidden += [nn.Linear(before, after), *(pair if place == "before" else pair[::-1])]
                hidden += [nn.Dropout(dropout)] if dropout else []
        self.layers = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes)."""
        logits: Tensor = self.layers(x)
        return logits
