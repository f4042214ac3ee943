"""Samples, a loss and a model's start that the tests of `accumulate` share."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import syncnorm

CLOSE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}


def batch(size: int = 12, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return 3 + 2 * torch.randn(size, 3, 8, 8, dtype=torch.float64, generator=g)


def loss(model: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = model(x)
    y = y.mean((2, 3)) if y.dim() == 4 else y
    return (y.sin() * torch.arange(1.0, y.shape[1] + 1, dtype=y.dtype)).sum()


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(1)
    model = build().double()
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            nn.init.normal_(parameter, 0.5, 0.5)
    return model


def masked_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, valid = batch
    with syncnorm.mask(valid):
        return loss(model, torch.where(valid.unsqueeze(1), x, torch.nan if model.training else x))


def masked_batch(size: int = 12) -> tuple[Tensor, Tensor]:
    valid = torch.rand(size, 8, 8, generator=torch.Generator().manual_seed(7)) < 0.6
    valid[1] = False
    return batch(size), valid
