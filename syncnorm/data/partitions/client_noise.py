"""Feature skew: every client's images have their own noise level (NIID-Bench, Li et al., arXiv 2102.02079)."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from syncnorm.config import Clients
from syncnorm.data.mapped import by_rows
from syncnorm.seeds import derive


def noise_level(world: Clients, client: int) -> float:
    """Return the standard deviation of the noise on a client's images.

    It grows linearly from 0 on client 0 to `world.noise` on client count-1; the j-th of H held-out clients has
    (j + 1/2) / H of it, a level that lies within that range.
    """
    if client >= world.count:
        return world.noise * (client - world.count + 0.5) / world.held_out
    return world.noise * (client / (world.count - 1) if world.count > 1 else 1.0)


def noisy_training(x: Tensor, parts: Mapping[int, Tensor], world: Clients, seed: int) -> Tensor:
    """Return a copy of the pool `x` (N, C, H, W) in which the images `parts[client]` have that client's noise."""
    noisy = by_rows(torch.clone, x)
    for client, part in parts.items():
        where = part.to(x.device)
        noisy[where] = add_noise(x[where], noise_level(world, client), derive("noise", seed, client, "train"))
    return noisy


def noisy_test(x: Tensor, world: Clients, client: int, seed: int) -> Tensor:
    """Return a client's test images with its noise: the same on every call."""
    return add_noise(x, noise_level(world, client), derive("noise", seed, client, "test"))


def add_noise(x: Tensor, level: float, seed: int) -> Tensor:
    """Return `x` plus Gaussian noise of standard deviation `level`, the same for every device and data type."""
    if level == 0:
        return x
    noise = np.random.default_rng(seed).standard_normal(tuple(x.shape), dtype=np.float32)
    return x + level * torch.from_numpy(noise).to(x.device, x.dtype)
