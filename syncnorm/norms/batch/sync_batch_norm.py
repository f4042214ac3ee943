"""Batch norm over the samples of all ranks: exact, on CPU and CUDA, twice differentiable, compiles to one graph.

model = syncnorm.convert(model, "sync_bn")          # under torchrun, before wrapping in DDP
"""

from __future__ import annotations

import copy
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from syncnorm._torch import COMPILES_COLLECTIVES, joining_unevenly, transforming
from syncnorm.errors import UserError
from syncnorm.moments import Moments, acc_dtype
from syncnorm.norms.core.batch_norm import BatchNormLayer, batch_norm
from syncnorm.norms.core.collectives import rank_and_size
from syncnorm.norms.core.functional import batch_norm_native, batch_norm_plain
from syncnorm.norms.core.groups import Group, as_group
from syncnorm.norms.core.meeting import Place, joining
from syncnorm.norms.core.parting import names_of, title
from syncnorm.norms.core.recomputation import recomputing
from syncnorm.norms.core.relay import JOINS
from syncnorm.norms.core.shapes import channels_problem, check_divisor
from syncnorm.norms.core.valid import Valid

JOIN = (
    "a rank that has run out of batches leaves the others waiting. Write `with syncnorm.join(model):`, in which it "
    "does not, or join(throw_on_early_termination=True), which ends all ranks with the first"
)


class SyncBatchNorm(BatchNormLayer):
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
        self.process_group = as_group(process_group, f"SyncBatchNorm({num_features})")
        self.skip_nonfinite = skip_nonfinite
        self._place: Place | None = None

    def check(self, x: Tensor) -> None:
        """Raise `ValueError` for an input that the layer cannot take: in training, on every rank."""
        problem = channels_problem(self, self.num_features, x)
        if problem:
            self.refuse(problem, x)

    def refuse(self, problem: str, x: Tensor) -> NoReturn:
        """Raise `ValueError` of a problem with the input `x`: in training, on every rank."""
        several = self.training and rank_and_size(self.process_group)[1] > 1
        if several and not torch.compiler.is_compiling():
            self.among_ranks(x, problem)
        raise ValueError(problem)

    def normalised(self, x: Tensor) -> Tensor:
        """Normalise `x` of shape (N, C, ...); N may be 0 if other ranks have samples."""
        if not self.training:
            return self.by_running(x)
        if rank_and_size(self.process_group)[1] == 1:
            return self._on_one_rank(x)
        return self._over_ranks(x, None)

    def masked(self, x: Tensor, valid: Valid) -> Tensor:
        """Normalise `x` where `valid` by the moments there, of all ranks; a rank with none takes part."""
        if not self.training:
            return self.by_running_where(x, valid)
        if rank_and_size(self.process_group)[1] == 1:
            return self.by_valid(x, valid)
        return valid.fill(self._over_ranks(valid.fill(x), valid))

    def _over_ranks(self, x: Tensor, valid: Valid | None) -> Tensor:
        compiling = torch.compiler.is_compiling()
        if compiling and COMPILES_COLLECTIVES and not JOINS.any:
            where = None if valid is None else valid.where
            y, moments = batch_norm_plain(x, self.weight, self.bias, self.eps, self.process_group, where)
        else:
            # Before torch 2.11, tracing reaches this line and must end here. (The decorator would import the
            # compiler.)
            eagerly = torch.compiler.disable(self._train_eagerly) if compiling else self._train_eagerly  # type: ignore[no-untyped-call]
            y, moments = eagerly(x, valid)
        self.move(moments.mean, moments.var(correction=1), moments.count > 0)
        return y

    def _on_one_rank(self, x: Tensor) -> Tensor:
        """Do what PyTorch's batch norm does, with its kernel and its derivatives of every kind."""
        values = x.numel()
        if values == self.num_features:
            raise ValueError(self._one_value(x))
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

    def _train_eagerly(self, x: Tensor, valid: Valid | None) -> tuple[Tensor, Moments]:
        if joining_unevenly() and not joining(self.process_group):
            raise UserError(f"{title(names_of([self])[id(self)])} cannot train within DDP's join(): {JOIN}.")
        place = self.among_ranks(x)
        check_divisor(self, self.num_features)
        where = None if valid is None else valid.where
        if transforming():
            place.refuse_in_join("transforms of torch.func")
            y, moments = batch_norm_plain(x, self.weight, self.bias, self.eps, self.process_group, where)
        else:
            y, moments = batch_norm_native(x, self.weight, self.bias, self.eps, place, where)
        # Reading the count stalls the device, so only a rank that may be affected does it.
        few = x.numel() <= self.num_features if valid is None else valid.count <= 1
        if few and moments.count == 1:
            raise ValueError(self._one_value(x))
        return y, moments

    def _one_value(self, x: Tensor) -> str:
        return (
            f"SyncBatchNorm({self.num_features}) got one value per channel on all ranks together (input of shape "
            f"{tuple(x.shape)} here): a variance needs two. Give the ranks more samples, or call .eval()."
        )

    def among_ranks(self, x: Tensor, problem: str = "") -> Place:
        """Return the layer's place among the ranks, which all of them agree on before the first collective.

        A problem of any rank is raised on all: at the first step through the store, later in the peers' gather.
        """
        place = self._place
        if place is not None and place.serves(self.process_group):
            if problem and x.device.type == "cpu":
                place.announce_error(x, self.num_features)
            return place
        place = Place(self, self.process_group, x.device)
        statistics = acc_dtype(x.dtype)
        said = problem.rstrip(".") or f"{self.num_features} channels, statistics in {statistics}"
        by_rank = place.agree(said, self.num_features, statistics)
        if by_rank:
            listed = "; ".join(f"rank {rank}: {what}" for rank, what in by_rank.items())
            raise ValueError(f"SyncBatchNorm differs between ranks, where all need the same ({listed}).")
        if not problem:
            self._place = place
        return place

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
        shown: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{shown}, skip_nonfinite=True" if self.skip_nonfinite else shown

    def __deepcopy__(self, memo: dict[int, Any]) -> SyncBatchNorm:
        """Copy everything but the process group, which the copy shares."""
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        memo[id(self.process_group)] = self.process_group
        twin.__dict__.update(copy.deepcopy({**self.__dict__, "_place": None}, memo))
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the process group, which cannot be pickled: a loaded layer synchronises over all ranks."""
        return {**self.__dict__, "process_group": None, "_place": None}
