"""Norms that need no batch: each sample is normalised by its own moments, over groups of channels.

One formula with another number of groups G, and a weight and bias per channel, for input of any rank:

    y = (x - mean_g) / sqrt(var_g + eps) * weight_c + bias_c,   moments over (C / G, H, W) of one sample
"""

import torch
from torch import nn


def default_groups(channels: int) -> int:
    """Return the largest divisor of `channels` that is at most 32 and leaves at least two channels a group, or 1."""
    return max(g for g in range(1, 33) if channels % g == 0 and (g == 1 or 2 * g <= channels))


class GroupNorm(nn.GroupNorm):
    """Group norm (Wu & He, arXiv 1803.08494), input (N, C, ...), C = num_features.

    `groups` defaults to 32 as in the paper where the layer is wide enough: it is the largest divisor of C that is
    at most 32 and leaves at least two channels a group.
    """

    def __init__(
        self,
        num_features: int,
        groups: int | None = None,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if groups is None:
            groups = default_groups(num_features)
        if groups < 1 or num_features % groups:
            raise ValueError(f"{num_features} channels do not divide into {groups} groups: choose a divisor.")
        super().__init__(groups, num_features, eps, affine, device=device, dtype=dtype)


class LayerNorm(nn.GroupNorm):
    """Layer norm over (C, H, W) with a weight and bias per channel (Ba, Kiros & Hinton, arXiv 1607.06450): G = 1."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(1, num_features, eps, affine, device=device, dtype=dtype)


class InstanceNorm(nn.GroupNorm):
    """Instance norm over (H, W) (Ulyanov, Vedaldi & Lempitsky, arXiv 1607.08022): G = C.

    Input of shape (N, C) has one value to normalise and raises `ValueError`.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, num_features, eps, affine, device=device, dtype=dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise each channel of each sample by its own moments."""
        if input[0:1, 0:1].numel() == 1:
            raise ValueError(
                f"InstanceNorm({self.num_channels}) got one value per channel and sample (input "
                f"{tuple(input.shape)}): a variance needs two, so use it before the spatial dimensions are gone."
            )
        return super().forward(input)
