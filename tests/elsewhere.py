"""Data, domains, a model, a partition, a policy and an algorithm that the package does not have.

What holds for ranks has to hold on these, too: the model uses a norm twice in a step and has a branch, the partition
deals unequal shares with labels sorted in part, and the domains differ in offset, scale and noise.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

import syncnorm
from syncnorm.federated import Algorithm, Option, Policy

DOMAINS = {"rings": (0.0, 1.0), "rings-bright": (1.5, 0.5), "rings-loud": (-0.5, 2.0), "rings-far": (3.0, 1.0)}
"""Offset and scale by domain."""
SIZE, CLASSES, SAMPLES = 6, 3, 90


def rings(offset: float, scale: float) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return images (N, 1, 6, 6) of rings whose radius is the class, in noise: for training, and for the test."""
    rng = np.random.default_rng(round(100 * (offset + scale)) % 2**32)
    y = rng.integers(0, CLASSES, SAMPLES)
    across = np.arange(SIZE) - (SIZE - 1) / 2
    radius = np.hypot(across[:, None], across[None, :])
    clean = np.exp(-((radius[None] - y[:, None, None] - 0.5) ** 2))
    x = (offset + scale * (clean + 0.3 * rng.standard_normal(clean.shape)))[:, None].astype("float32")
    return {"train": (x[:70], y[:70]), "test": (x[70:], y[70:])}


class Net(nn.Module):
    """Two convolutions after the same norm, a branch with a norm of its own, and logits."""

    def __init__(self, channels: int, classes: int, norm: Callable[[int], nn.Module], width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.norm = norm(width)
        self.body = nn.Conv2d(width, width, 3, padding=1, groups=2)
        self.branch = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), norm(width))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.stem(x)))
        x = torch.relu(self.norm(self.body(x)) + self.branch(x))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def net(shape: tuple[int, ...], classes: int, norm: Callable[[int], nn.Module], width: int = 4) -> nn.Module:
    return Net(shape[0], classes, norm, width)


def stairs(labels: np.ndarray, clients: int, seed: int) -> list[np.ndarray]:
    """Client k gets k + 2 shares; half of the samples lie sorted by label."""
    order = np.random.default_rng(seed).permutation(len(labels))
    half = len(order) // 2
    order[:half] = order[:half][np.argsort(labels[order[:half]], kind="stable")]
    shares = np.cumsum(np.arange(2, clients + 2))
    return np.split(order, len(order) * shares[:-1] // shares[-1])


class HalfStep(Algorithm):
    """Move the shared parameters by a part of the clients' mean change."""

    OPTIONS: Mapping[str, Option] = {"part": Option(0.5)}

    def server_step(self, round_, memory):  # type: ignore[no-untyped-def]
        part = self.options["part"]
        return {name: round_.state[name].lerp(round_.average[name], part) for name in round_.shared}, memory


def register() -> None:
    """Add all of them to the registries of this process."""
    for name, kind in DOMAINS.items():
        syncnorm.register_data(name)(lambda kind=kind: rings(*kind))
    syncnorm.register_model("net")(net)
    syncnorm.register_partition("stairs")(stairs)
    syncnorm.register_policy("affine_home", Policy("local", "pooled", "gamma and beta stay at home"))
    syncnorm.register_algorithm("half_step")(HalfStep)
