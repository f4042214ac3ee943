"""What the tests of folding share: trained models, inputs, and a fold that must not warn."""

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syncnorm import batch_norms, fold


def trained(model: nn.Module) -> nn.Module:
    """Give every batch norm statistics and an affine map of its own, far from the neutral ones."""
    g = torch.Generator().manual_seed(5)
    for layer in batch_norms(model).values():
        with torch.no_grad():
            for tensor in (layer.weight, layer.running_var):
                if tensor is not None:
                    tensor.copy_(torch.rand(tensor.shape, generator=g) + 0.3)
            for tensor in (layer.bias, layer.running_mean):
                if tensor is not None:
                    tensor.copy_(torch.randn(tensor.shape, generator=g))
    return model.eval()


def noise(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(6))


def quietly(model: nn.Module, **options: Any) -> nn.Module:
    """Fold, and fail on any warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return fold(model, **options)


def pair(conv: nn.Module, norm: nn.Module) -> nn.Module:
    return trained(nn.Sequential(conv, norm)).double()


class Uses(nn.Module):
    """Batch norms in places of every kind; `kind` says which one the forward has."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv, self.other = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        conv, other, norm = self.conv, self.other, self.norm
        forms = {
            "after": lambda: norm(conv(x)),
            "before": lambda: conv(norm(x)),
            "twice": lambda: norm(conv(conv(x))),
            "two consumers": lambda: (y := conv(x)) + norm(y),
            "changed in place": lambda: norm(conv(x).relu_()),
            "unused": lambda: conv(x),
            "function": lambda: norm(F.relu(conv(x))),
            "shared": lambda: norm(other(norm(conv(x)).relu())),
            "shared, not after a convolution": lambda: norm(norm(conv(x))),
            "same convolution again": lambda: norm(conv(norm(conv(x)))),
            "weight read": lambda: norm(conv(x)) + conv.weight.mean(),
            "statistics read": lambda: norm(conv(x)) + norm.running_mean.view(1, -1, 1, 1),
        }
        return forms[self.kind]()
