"""Virtual ranks: R devices that each normalise their own b samples, in one process and one kernel.

On one device, this layer computes exactly what DDP with unsynchronised batch norm computes on R devices, so a study
of hundreds of devices runs anywhere. Sample i belongs to rank i mod R, as a distributed sampler assigns them. A batch
of (b * R, C, H, W) is then (b, R * C, H, W) in the same memory: the statistics of R devices are those of R * C
channels.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from syncnorm.moments import Moments
from syncnorm.norms.core.recomputation import recomputing
from syncnorm.norms.core.shapes import check_channels, in_layout_of


class GhostBatchNorm(_BatchNorm):
    """Batch norm over virtual devices: rank r normalises samples r, r + R, r + 2R, ... with their own moments.

        y_r = (x_r - mean(x_r)) / sqrt(var(x_r) + eps) * weight + bias,   r = 0 .. R-1

    Running statistics are updated with `momentum` as in PyTorch, each rank's variance unbiased by its own count.
    Evaluation normalises with running_mean and running_var; `buffers` says which they are:

        "rank0"   those of rank 0, as DDP broadcasts and saves them;
        "pooled"  those of all ranks pooled: the mean of their means, and the mean of their variances plus the
                  variance of their means (law of total variance). The layer also keeps each rank's own.

    Sources: Hoffer, Hubara & Soudry (Ghost Batch Norm, arXiv 1705.08741). Running statistics are those of DDP; the
    source updates them with one ghost batch after another (from memory, not confirmed).

    Args:
        num_features: C of an input of shape (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W).
        virtual_ranks: R; in training, N must be a multiple of it.
        buffers: "rank0" or "pooled", as above.

    Raises:
        ValueError: N is not a multiple of R, or a virtual rank has one value per channel.
    """

    rank_mean: Tensor | None
    rank_var: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        virtual_ranks: int,
        buffers: Literal["rank0", "pooled"] = "rank0",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        if virtual_ranks < 1:
            raise ValueError(f"virtual_ranks is {virtual_ranks}: it must be at least 1.")
        if buffers not in ("rank0", "pooled"):
            raise ValueError(f"buffers is {buffers!r}: write 'rank0' or 'pooled'.")
        self.virtual_ranks = virtual_ranks
        self.buffers_of = buffers
        keep = track_running_stats and buffers == "pooled"
        for name in ("rank_mean", "rank_var"):
            empty = torch.empty(virtual_ranks, num_features, device=device, dtype=dtype) if keep else None
            self.register_buffer(name, empty, persistent=False)
        self._start_ranks()

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` of shape (N, C, ...), N = b * R in training."""
        self._check(x)
        if not self.training:
            mean, var = self.running_mean, self.running_var
            return F.batch_norm(x, mean, var, self.weight, self.bias, mean is None, 0.0, self.eps)
        per_rank = x.reshape(x.shape[0] // self.virtual_ranks, self.virtual_ranks * self.num_features, *x.shape[2:])
        mean, var, newest = self._ranks_statistics()
        weight, bias = (None if p is None else p.repeat(self.virtual_ranks) for p in (self.weight, self.bias))
        y = F.batch_norm(per_rank, mean, var, weight, bias, True, newest, self.eps)
        if mean is not None and var is not None and not recomputing():
            self._update_running(mean, var)
        return in_layout_of(y.reshape(x.shape), x)

    def _check(self, x: Tensor) -> None:
        ranks, channels = self.virtual_ranks, self.num_features
        check_channels(self, channels, x)
        if self.training and x.shape[0] % ranks:
            raise ValueError(
                f"GhostBatchNorm got {x.shape[0]} samples for {ranks} virtual ranks: give each rank as many, for "
                "example by dropping the last incomplete batch."
            )
        if self.training and x.numel() == ranks * channels:
            raise ValueError(
                f"GhostBatchNorm got one value per channel on each of {ranks} virtual ranks (input "
                f"{tuple(x.shape)}): a variance needs two. Give the ranks more samples, or use fewer ranks."
            )

    def _ranks_statistics(self) -> tuple[Tensor | None, Tensor | None, float]:
        """Return the ranks' running statistics, (R * C,) each, to update in place, and the weight of the newest."""
        if self.running_mean is None or self.running_var is None:
            return None, None, 0.0
        assert self.num_batches_tracked is not None
        if not recomputing():
            self.num_batches_tracked.add_(1)
        newest = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        if self.rank_mean is None or self.rank_var is None or recomputing():  # DDP starts every step from rank 0's
            return (
                self.running_mean.repeat(self.virtual_ranks),
                self.running_var.repeat(self.virtual_ranks),
                newest,
            )
        return self.rank_mean.view(-1), self.rank_var.view(-1), newest

    @torch.no_grad()
    def _update_running(self, mean: Tensor, var: Tensor) -> None:
        """Set the running statistics from the ranks', (R * C,) each."""
        assert self.running_mean is not None
        assert self.running_var is not None
        by_rank = mean.view(-1, self.num_features), var.view(-1, self.num_features)
        chosen = (rows[0] for rows in by_rank) if self.rank_mean is None else pool_running_statistics(*by_rank)
        for running, new in zip((self.running_mean, self.running_var), chosen, strict=True):
            running.copy_(new)

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        super()._load_from_state_dict(*args, **options)
        self._start_ranks()

    def _start_ranks(self) -> None:
        """Let every rank start from the layer's running statistics."""
        for by_rank, running in ((self.rank_mean, self.running_mean), (self.rank_var, self.running_var)):
            if by_rank is not None and running is not None:
                by_rank.copy_(running.expand_as(by_rank))

    def reset_running_stats(self) -> None:
        """Reset every rank: mean 0, variance 1."""
        super().reset_running_stats()
        if "rank_mean" in self._buffers:
            self._start_ranks()

    def extra_repr(self) -> str:
        """Show the virtual ranks after what every batch norm shows."""
        return f"{super().extra_repr()}, virtual_ranks={self.virtual_ranks}, buffers={self.buffers_of!r}"  # type: ignore[no-untyped-call]


def pool_running_statistics(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Pool R ranks' running statistics, (R, C) each, with equal weights.

    mean = mean_r(mean_r),   var = mean_r(var_r) + var_r(mean_r)     (law of total variance)
    """
    pooled = Moments(torch.ones(len(mean), dtype=mean.dtype, device=mean.device), mean, var).pooled()
    return pooled.mean, pooled.var()
