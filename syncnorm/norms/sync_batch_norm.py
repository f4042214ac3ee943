"""Batch norm over the samples of all ranks: exact, on CPU and CUDA, twice differentiable, compiles to one graph.

model = syncnorm.convert(model, "sync_bn")          # under torchrun, before wrapping in DDP
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.modules.batchnorm import _BatchNorm

from syncnorm._torch import COMPILES_COLLECTIVES
from syncnorm.moments import Moments, acc_dtype
from syncnorm.norms.core.collectives import agree, rank_and_size
from syncnorm.norms.core.functional import announce_error, batch_norm_native, batch_norm_plain
from syncnorm.norms.core.recomputation import recomputing
from syncnorm.norms.core.running import newest_weight, update_running
from syncnorm.norms.core.shapes import channels_problem


class SyncBatchNorm(_BatchNorm):
    """Batch norm over the joint batch of all ranks in `process_group`.

    Training normalises with the exact moments of the concatenated batch, N values per channel,

        y = (x - mean) / sqrt(M2 / N + eps) * weight + bias,

    whatever share of it each rank holds, even none. Running statistics are updated with `momentum` as in PyTorch (the
    weight of the new value; None: the mean of all batches), the running variance with the unbiased M2 / (N - 1); they
    are the same on all ranks. There is one collective in the forward and one in the backward, and none in evaluation
    or with one rank. The host synchronises only if this rank holds at most one value per channel. Statistics are
    float32 for float16, bfloat16 and float32 input, float64 for float64.

    Gradients are those of the sum over ranks of each rank's loss. As in every synchronised batch norm, the gradients
    of weight and bias are this rank's part: DDP averages them, as for all parameters.

    Args:
        num_features: C of an input of shape (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W).
        eps: added to the variance.
        momentum: weight of the newest statistics in the running ones; None averages all batches equally.
        affine: learn weight and bias, shape (C,).
        track_running_stats: keep running_mean and running_var, shape (C,). Without them, evaluation normalises with
            this rank's own batch, without communication.
        process_group: the ranks that share statistics; None is all of them.
        skip_nonfinite: keep batches whose statistics are not finite (an overflow under AMP) out of the running ones.

    Raises:
        ValueError: on every rank, if the number of channels or the type of the input differs between ranks, or if all
            ranks together hold one value per channel. (On CUDA, a rank whose input becomes wrong after the first step
            raises alone, and the launcher ends its peers: reading a flag would stall the device. In a compiled graph
            only this rank's own input is checked.)

    Sources: Ioffe & Szegedy (arXiv 1502.03167); pairwise merge after Chan, Golub & LeVeque (1983).
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: ProcessGroup | None = None,
        *,
        skip_nonfinite: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        self.process_group = process_group
        self.skip_nonfinite = skip_nonfinite
        self._agreed = False

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` of shape (N, C, ...); N may be 0 if other ranks have samples."""
        if not self.training:
            self._raise_if(channels_problem(self, self.num_features, x))
            mean, var = self.running_mean, self.running_var
            return F.batch_norm(x, mean, var, self.weight, self.bias, mean is None, 0.0, self.eps)
        compiling = torch.compiler.is_compiling()
        if compiling and COMPILES_COLLECTIVES:
            self._raise_if(channels_problem(self, self.num_features, x))
            if x.numel() == self.num_features and rank_and_size(self.process_group)[1] == 1:
                raise ValueError(self._one_value(x))
            y, moments = batch_norm_plain(x, self.weight, self.bias, self.eps, self.process_group)
        else:
            # Before torch 2.11, tracing reaches this line and must end here. (The decorator would import the
            # compiler.)
            eagerly = torch.compiler.disable(self._train_eagerly) if compiling else self._train_eagerly  # type: ignore[no-untyped-call]
            y, moments = eagerly(x)
        if self.track_running_stats and not recomputing():
            self._update_running(moments)
        return y

    def _train_eagerly(self, x: Tensor) -> tuple[Tensor, Moments]:
        self._raise_on_every_rank(channels_problem(self, self.num_features, x), x)
        y, moments = batch_norm_native(x, self.weight, self.bias, self.eps, self.process_group)
        # Reading the count stalls the device, so only a rank that may be affected does it.
        if x.numel() <= self.num_features and moments.count == 1:
            raise ValueError(self._one_value(x))
        return y, moments

    def _one_value(self, x: Tensor) -> str:
        return (
            f"SyncBatchNorm({self.num_features}) got one value per channel on all ranks together (input of shape "
            f"{tuple(x.shape)} here): a variance needs two. Give the ranks more samples, or call .eval()."
        )

    def _raise_if(self, problem: str) -> None:
        if problem:
            raise ValueError(problem)

    def _raise_on_every_rank(self, problem: str, x: Tensor) -> None:
        """Raise the problem of any rank on all: at the first step through the store, later in the peers' gather."""
        if not self._agreed and rank_and_size(self.process_group)[1] > 1:
            said = problem or f"{self.num_features} channels, statistics in {acc_dtype(x.dtype)}"
            by_rank = agree(said, self.process_group)
            if by_rank:
                listed = "; ".join(f"rank {rank}: {what.rstrip('.')}" for rank, what in by_rank.items())
                raise ValueError(f"SyncBatchNorm differs between ranks, where all need the same ({listed}).")
            self._agreed = not problem
        elif problem and x.device.type == "cpu":
            announce_error(self.num_features, x, self.process_group)
        self._raise_if(problem)

    @torch.no_grad()
    def _update_running(self, batch: Moments) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        counts = batch.count > 0
        if self.skip_nonfinite:
            counts = counts & batch.mean.isfinite().all() & batch.m2.isfinite().all()
        self.num_batches_tracked.add_(counts)
        newest = newest_weight(self.momentum, self.num_batches_tracked)
        update_running(self.running_mean, batch.mean, newest, where=counts)
        update_running(self.running_var, batch.var(correction=1), newest, where=counts)

    def __deepcopy__(self, memo: dict[int, Any]) -> SyncBatchNorm:
        """Copy everything but the process group, which the copy shares."""
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        memo[id(self.process_group)] = self.process_group
        twin.__dict__.update(copy.deepcopy({**self.__dict__, "_agreed": False}, memo))
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the process group, which cannot be pickled: a loaded layer synchronises over all ranks."""
        return {**self.__dict__, "process_group": None, "_agreed": False}
