"""Batch norm over the samples of all ranks: exact, on CPU and CUDA, twice differentiable, compiles to one graph.

model = syncnorm.convert(model, "sync_bn")          # under torchrun, before wrapping in DDP
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from syncnorm.errors import UserError
from syncnorm.moments import acc_dtype
from syncnorm.norms.core.batch_norm import BatchNormLayer, batch_norm
from syncnorm.norms.core.ranks.groups import Group
from syncnorm.norms.core.recomputation import recomputing
from syncnorm.norms.core.shapes import check_divisor
from syncnorm.norms.core.synchronised import SynchronisedBatchNorm
from syncnorm.norms.core.valid import Valid


class SyncBatchNorm(SynchronisedBatchNorm):
    """Batch norm over the joint batch of all ranks in `process_group`.

    Training normalises with the exact moments of the concatenated batch, N values per channel,

        y = (x - mean) / sqrt(M2 / N + eps) * weight + bias,

    whatever share of it each rank holds, even none. Running statistics are updated with `momentum` as in PyTorch (the
    weight of the new value; None: the mean of all batches), the running variance with the unbiased M2 / (N - 1); they
    are the same on all ranks. There is one collective in the forward and one in the backward, and none in evaluation.
    With one rank the layer is `F.batch_norm`, with its derivatives and transforms of every kind. The host
    synchronises only if this rank holds at most one value per channel. Statistics are float32 for float16, bfloat16
    and float32 input, float64 for float64.

    Gradients are those of the sum over ranks of each rank's loss. As in every synchronised batch norm, the gradients
    of weight and bias are this rank's part: DDP averages them, as for all parameters.

    Args:
        num_features: C of an input of shape (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W).
        eps: added to the variance.
        momentum: weight of the newest statistics in the running ones; None averages all batches equally.
        affine: learn weight and bias, shape (C,).
        track_running_stats: keep running_mean and running_var, shape (C,). Set to False later, it freezes them.
            Without them, evaluation normalises with this rank's own batch, without communication.
        process_group: the ranks that share statistics; None is all of them. A DeviceMesh of one dimension, such as
            mesh["shard"], means its ranks.
        device, dtype, bias: as in torch's layers.
        skip_nonfinite: keep batches whose statistics are not finite (an overflow under AMP) out of the running ones.

    Raises:
        ValueError: on every rank, if the number of channels or the type of the input differs between ranks, or if all
            ranks together hold one value per channel. (On CUDA, a rank whose input becomes wrong after the first step
            raises alone, and the launcher ends its peers: reading a flag would stall the device. In a compiled graph
            only this rank's own input is checked.) On CPUs also, on every rank, if the ranks are in different layers.
        RuntimeError: with the group's timeout, if a rank does not come to the layer: the error names layer and ranks.
        UserError: within DDP's own `join()`, which lets ranks run out of batches; `syncnorm.join` is its equal.

    Sources: Ioffe & Szegedy (arXiv 1502.03167); pairwise merge after Chan, Golub & LeVeque (1983).
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Group = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        skip_nonfinite: bool = False,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self.share(True, process_group)
        self.skip_nonfinite = skip_nonfinite

    def normalised(self, x: Tensor) -> Tensor:
        """Normalise `x` of shape (N, C, ...); N may be 0 if other ranks have samples."""
        if not self.training:
            return self.by_running(x)
        return self.by_ranks(x, None) if self.meets() else self._on_one_rank(x)

    def masked(self, x: Tensor, valid: Valid) -> Tensor:
        """Normalise `x` where `valid` by the moments there, of all ranks; a rank with none takes part."""
        return self.by_valid(x, valid) if self.training else self.by_running_where(x, valid)

    def _on_one_rank(self, x: Tensor) -> Tensor:
        """Do what PyTorch's batch norm does, with its kernel and its derivatives of every kind."""
        values = x.numel()
        if values == self.num_features:
            raise ValueError(self.too_few(x, 1))
        if values == 0:
            return self.by_batch_alone(x)
        if not (self.skip_nonfinite or self.momentum is None):
            return self.by_batch(x)
        running, _ = self.tracked()
        if running is None or recomputing():
            return self.by_batch(x)
        # The kernel's own update takes a number, for which a count has to be read from the device, and anything.
        check_divisor(self, self.num_features)
        mean, var = (torch.zeros_like(running, dtype=acc_dtype(x.dtype)) for _ in range(2))
        y = batch_norm(x, mean, var, self.weight, self.bias, True, 1.0, self.eps)  # the batch's own take their places
        self.move(mean, var, torch.ones((), dtype=torch.bool, device=x.device))
        return y

    def move(self, mean: Tensor, var: Tensor, where: Tensor | None = None) -> None:
        """Move the running statistics where `where` is true; with skip_nonfinite, only towards finite ones."""
        if self.skip_nonfinite and where is not None:
            where = where & mean.isfinite().all() & var.isfinite().all()
        super().move(mean, var, where)

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group: ProcessGroup | None = None) -> nn.Module:
        """Replace PyTorch's batch norms within `module` by this layer, and return the module, as PyTorch's method.

        Parameters and statistics stay the same tensors. `syncnorm.convert(model, "sync_bn")` does the same, and can
        be undone. Layers of syncnorm stay as they are.

        Raises:
            UserError: a batch norm with a forward of its own, which would be lost, or one that is lazy.
        """
        if isinstance(module, _BatchNorm) and not isinstance(module, BatchNormLayer):
            return cls._in_place_of(module, process_group)
        for name, child in module.named_children():
            module.add_module(name, cls.convert_sync_batchnorm(child, process_group))
        return module

    @classmethod
    def _in_place_of(cls, layer: Any, group: ProcessGroup | None) -> SyncBatchNorm:
        kind = type(layer).__name__
        if type(layer).forward not in (_BatchNorm.forward, nn.SyncBatchNorm.forward) or is_lazy(layer.weight):
            raise UserError(
                f"{kind} is not PyTorch's own batch norm, or does not know its channels yet: convert_sync_batchnorm "
                "would lose what it does. Run one batch through a lazy layer first; leave others out."
            )
        holds = layer.running_mean is not None
        new = cls(layer.num_features, layer.eps, layer.momentum, layer.affine, holds, group)
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            setattr(new, name, getattr(layer, name))
        new.track_running_stats = layer.track_running_stats
        if hasattr(layer, "qconfig"):
            new.qconfig = layer.qconfig
        return new.train(layer.training)

    def extra_repr(self) -> str:
        """Show skip_nonfinite, where it is on, after what every batch norm shows."""
        shown = BatchNormLayer.extra_repr(self)  # type: ignore[no-untyped-call]
        return f"{shown}, skip_nonfinite=True" if self.skip_nonfinite else shown
