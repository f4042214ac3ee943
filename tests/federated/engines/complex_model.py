"""A model with complex parameters, a mask of infinities and an unsigned buffer."""

import torch
from torch import Tensor, nn


class Spectral(nn.Module):
    """Magnitudes of a complex product, normalised by a batch norm."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.spectrum = nn.Parameter(torch.randn(8, 64, dtype=torch.cfloat) * 0.1)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, classes)
        self.register_buffer("mask", torch.tensor([-torch.inf, 0.0]))
        self.register_buffer("version", torch.tensor(3, dtype=torch.uint16))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes) for images (N, C, H, W) of at least 64 pixels."""
        flat = x.mean(1).flatten(1)[:, :64].to(self.spectrum.dtype)
        logits: Tensor = self.head(self.norm((flat @ self.spectrum.T).abs()))
        return logits


def make(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Build the model."""
    return Spectral(classes)
