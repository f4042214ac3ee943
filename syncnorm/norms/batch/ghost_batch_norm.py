"""Virtual ranks: R devices that each normalise their own b samples, in one process and one kernel.

On one device, this layer computes exactly what DDP with unsynchronised batch norm computes on R devices, so a study
of hundreds of devices runs anywhere. Sample i belongs to rank i mod R, as a distributed sampler assigns them. A batch
of (b * R, C, H, W) is then (b, R * C, H, W) in the same memory: the statistics of R devices are those of R * C
channels.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from syncnorm._torch import transforming
from syncnorm.moments import Moments
from syncnorm.norms.core.affine import normalise
from syncnorm.norms.core.batch_norm import BatchNormLayer, batch_norm_by_rank
from syncnorm.norms.core.masked import check_counts
from syncnorm.norms.core.running import update_running
from syncnorm.norms.core.shapes import check_divisor
from syncnorm.norms.core.valid import Valid


class GhostBatchNorm(BatchNormLayer):
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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        virtual_ranks: int,
        buffers: Literal["rank0", "pooled"] = "rank0",
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        if virtual_ranks < 1:
            raise ValueError(f"virtual_ranks is {virtual_ranks}: it must be at least 1.")
        if buffers not in ("rank0", "pooled"):
            raise ValueError(f"buffers is {buffers!r}: write 'rank0' or 'pooled'.")
        self.virtual_ranks = virtual_ranks
        self.buffers_of = buffers
        self._channels: Tensor | None = None
        for name in ("rank_mean", "rank_var"):
            self.register_buffer(name, None, persistent=False)
        self._start_ranks()

    def check(self, x: Tensor) -> None:
        """Raise `ValueError` for an input that does not divide over the ranks, or leaves them no variance."""
        super().check(x)
        ranks, channels = self.virtual_ranks, self.num_features
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

    def normalised(self, x: Tensor) -> Tensor:
        """Normalise `x` of shape (N, C, ...), N = b * R in training."""
        if not self.training:
            return self.by_running(x)
        if self.virtual_ranks == 1:
            y = self.by_batch(x)
            self._start_ranks()
            return y
        check_divisor(self, self.num_features)
        ranks, moves = self.virtual_ranks, self.moves()
        own, index = self._parameters, self._index(x)
        weight: Tensor | None = own["weight"]
        bias: Tensor | None = own["bias"]
        if weight is not None:
            weight = _for_each_rank(weight, index, ranks)
        if bias is not None:
            bias = _for_each_rank(bias, index, ranks)
        mean, var = self.tracked()
        if mean is not None and var is not None:
            if self.buffers_of == "rank0" or not moves:  # DDP starts every step from rank 0's
                mean, var = _for_each_rank(mean, index, ranks), _for_each_rank(var, index, ranks)
            else:
                mean, var = self._each_ranks()
        newest = float(self.count()) if moves else 0.0
        y = batch_norm_by_rank(x, ranks, mean, var, weight, bias, newest, self.eps)
        if moves and mean is not None and var is not None:
            self._take_over(mean, var, index is not None)
        return y

    def _index(self, x: Tensor) -> Tensor | None:
        """Return the channel of each of R * C, to select by, where that is the fastest way and exact: on a CPU.

        On a GPU the gradient of a selection adds up in any order, and in half precision it adds up in that. Compilers
        and transforms get plain operations.
        """
        weight = self._parameters["weight"]
        exact = x.dtype is torch.float32 or x.dtype is torch.float64
        if not (x.is_cpu and exact and (weight is None or weight.dtype is x.dtype)):
            return None
        if torch.compiler.is_compiling() or transforming():
            return None
        if self._channels is None or len(self._channels) != self.virtual_ranks * self.num_features:
            with torch.inference_mode(False):
                self._channels = torch.arange(self.num_features, device="cpu").repeat(self.virtual_ranks)
        return self._channels

    def masked(self, x: Tensor, valid: Valid) -> Tensor:
        """Normalise each rank's part of `x` where `valid` by its moments there."""
        if not self.training:
            return self.by_running_where(x, valid)
        ranks, channels = self.virtual_ranks, self.num_features
        check_divisor(self, channels)
        check_counts([sum(valid.by_sample[rank::ranks]) for rank in range(ranks)], f"GhostBatchNorm({channels})")
        filled = valid.fill(x)
        of_rank, where = (v.reshape(len(x) // ranks, ranks, *v.shape[1:]) for v in (filled, valid.where))
        moments = Moments.of(of_rank, (0, *range(3, of_rank.dim())), where)
        mean, var = (values.repeat(len(of_rank), 1) for values in (moments.mean, moments.var()))
        self._move_ranks(moments)
        return valid.fill(normalise(filled, mean, var, self.eps, self.weight, self.bias))

    @torch.no_grad()
    def _move_ranks(self, moments: Moments) -> None:
        """Move the running statistics of the ranks that have values; moments are (R,) and (R, C)."""
        seen, mean, var = moments.count > 0, moments.mean, moments.var(correction=1)
        if self.buffers_of == "rank0":
            self.move(mean[0], var[0], seen[0])
        elif self.moves():
            newest = self.count(seen.any())
            if self.running_mean is not None and self.running_var is not None:
                held = self._each_ranks()
                for running, new in zip(held, (mean, var), strict=True):
                    update_running(running.view_as(new), new, newest, seen.unsqueeze(1))
                self._take_over(*held)

    def _each_ranks(self) -> tuple[Tensor, Tensor]:
        """Return the ranks' own running statistics, (R * C,) each, for the kernel to update."""
        if self.rank_mean is None or self.rank_var is None:
            self._start_ranks()
        return self.rank_mean.view(-1), self.rank_var.view(-1)  # type: ignore[union-attr]

    def _take_over(self, mean: Tensor, var: Tensor, plainly: bool = False) -> None:
        """Set the running statistics from the ranks', (R * C,) each; `plainly` says that no transform looks."""
        if self.buffers_of == "pooled":
            mean, var = pool_running_statistics(*(ranks.view(-1, self.num_features) for ranks in (mean, var)))
        held = self._buffers
        for running, new in ((held["running_mean"], mean), (held["running_var"], var)):
            if plainly and running is not None and running.dtype is new.dtype:
                torch.narrow_copy(new, 0, 0, self.num_features, out=running)  # a view would take as long as the copy
            elif running is not None:
                running.copy_(new[: self.num_features])

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        super()._load_from_state_dict(*args, **options)
        self._start_ranks()

    @torch.no_grad()
    def _start_ranks(self) -> None:
        """Let every rank start from the layer's running statistics, where those are."""
        if self.buffers_of != "pooled":
            return
        for name, running in (("rank_mean", self.running_mean), ("rank_var", self.running_var)):
            own = getattr(self, name)
            if running is not None and own is not None and (own.device, own.dtype) == (running.device, running.dtype):
                own.copy_(running.expand_as(own))
            else:  # another place or type, or a layer on the meta device that got values
                setattr(self, name, None if running is None else running.repeat(self.virtual_ranks, 1))

    def start_statistics(self) -> None:
        """Reset every rank: mean 0, variance 1."""
        super().start_statistics()
        if "rank_mean" in self._buffers:
            self._start_ranks()

    def extra_repr(self) -> str:
        """Show the virtual ranks after what every batch norm shows."""
        return f"{super().extra_repr()}, virtual_ranks={self.virtual_ranks}, buffers={self.buffers_of!r}"  # type: ignore[no-untyped-call]


def _for_each_rank(values: Tensor, index: Tensor | None, ranks: int) -> Tensor:
    """Return `values` (C,) once for each rank, (R * C,): one small operation, and in the backward one or two."""
    if index is not None:
        return values.index_select(0, index)
    return (torch.zeros(ranks, 1, dtype=torch.float32, device=values.device) + values).view(-1)


def pool_running_statistics(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Pool R ranks' running statistics, (R, C) each, with equal weights.

    mean = mean_r(mean_r),   var = mean_r(var_r) + var_r(mean_r)     (law of total variance)
    """
    pooled = Moments(torch.ones(len(mean), dtype=mean.dtype, device=mean.device), mean, var).pooled()
    return pooled.mean, pooled.var()
