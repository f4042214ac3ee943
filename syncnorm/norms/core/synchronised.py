"""Layers whose batch may be that of all ranks of a group: how they meet, and the statistics that they then share.

layer = syncnorm.make_norm("brn", 64, sync=True)            # over all ranks; process_group=g: over those of a group
"""

from __future__ import annotations

import copy
from typing import Any, NoReturn, Self

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from syncnorm._torch import COMPILES_COLLECTIVES, joining_unevenly, transforming
from syncnorm.errors import UserError
from syncnorm.moments import Moments, acc_dtype
from syncnorm.norms.core.batch_norm import BatchNormLayer
from syncnorm.norms.core.functional import batch_norm_native, batch_norm_plain, pooled_moments
from syncnorm.norms.core.layer import NormLayer
from syncnorm.norms.core.ranks.collectives import gather_moments_differentiably, rank_and_size
from syncnorm.norms.core.ranks.groups import Group, as_group
from syncnorm.norms.core.ranks.meeting import Place, joining
from syncnorm.norms.core.ranks.parting import names_of, title, without_common
from syncnorm.norms.core.ranks.relay import JOINS
from syncnorm.norms.core.shapes import channels_problem, check_divisor, check_values
from syncnorm.norms.core.valid import Valid

JOIN = (
    "a rank that has run out of batches leaves the others waiting. Write `with syncnorm.join(model):`, in which it "
    "does not, or join(throw_on_early_termination=True), which ends all ranks with the first"
)
TRANSFORMS = "transforms of torch.func"


class Synchronised(NormLayer):
    """A norm layer that may take a batch's statistics over the ranks of a group, in one collective.

    sync: whether it does. process_group: those ranks; None is all of them. Gradients through the statistics are those
    of the sum over ranks of each rank's loss; parameters get this rank's part, which DDP averages. A rank may have no
    sample, but has to come to each layer as often as the others. With one process, `sync` changes nothing.
    """

    sync = False
    process_group: ProcessGroup | None = None
    _place: Place | None = None

    def share(self, sync: bool | None, process_group: Group) -> None:
        """Set whether statistics are shared (None: if a group is given), and between whom."""
        name = f"{type(self).__name__}({self.num_features})"
        group = as_group(process_group, name)
        if sync is False and group is not None:
            raise ValueError(f"{name} got a process_group and sync=False: give one of them.")
        self.sync = group is not None if sync is None else sync
        self.process_group = group

    def shares(self) -> bool:
        """Return whether the layer shares statistics with other ranks."""
        return self.sync and rank_and_size(self.process_group)[1] > 1

    def shape_shared(self) -> tuple[int, ...]:
        """Return the shape of the means that the layer shares: (C,), or (D, C) of D moments."""
        return (self.num_features,)

    def meets(self) -> bool:
        """Return whether this forward does."""
        return self.training and self.shares()

    def check(self, x: Tensor) -> None:
        """Raise `ValueError` for an input that the layer cannot take: on every rank that it would meet."""
        if problem := channels_problem(self, self.num_features, x):
            self.refuse(problem, x)

    def refuse(self, problem: str, x: Tensor) -> NoReturn:
        """Raise `ValueError` of a problem with the input `x`: on every rank that the layer would meet."""
        if self.meets() and not torch.compiler.is_compiling():
            self.among_ranks(x, problem)
        raise ValueError(problem)

    def moments(self, x: Tensor, *, empty: bool = False) -> Moments:
        """Return the moments of the batch `x` (N, C, ...): of all ranks' parts of it, where this forward meets them.

        Raises `ValueError` for a single value per channel, and for none unless `empty`.
        """
        local = Moments.of(x, (0, *range(2, x.dim())))
        if not self.meets():
            if x.numel() or not empty:
                check_values(self, self.num_features, x)
            return local
        moments = self.over_ranks(local, x)
        self.check_count(x, x.numel() // self.num_features, moments.count, empty)
        return moments

    def over_ranks(self, local: Moments, x: Tensor) -> Moments:
        """Return the `local` moments of all ranks together, with gradients through every rank's; `x` is the input."""
        compiling = torch.compiler.is_compiling()
        if compiling and COMPILES_COLLECTIVES and not JOINS.any:
            return gather_moments_differentiably(local, self.process_group).pooled()
        eagerly = torch.compiler.disable(self._pooled) if compiling else self._pooled  # type: ignore[no-untyped-call]
        pooled: Moments = eagerly(local, x)
        return pooled

    def _pooled(self, local: Moments, x: Tensor) -> Moments:
        place = self.among_ranks(x)
        if transforming():
            place.refuse_in_join(TRANSFORMS)
            return gather_moments_differentiably(local, self.process_group).pooled()
        return pooled_moments(local, place)

    def samples(self, x: Tensor) -> float:
        """Return how many samples the batch `x` (N, C, ...) has, over the ranks where this forward meets them."""
        if not self.meets():
            return len(x)
        nothing = x.new_zeros(0, dtype=acc_dtype(x.dtype))
        own = Moments(nothing.new_tensor(float(len(x))), nothing, nothing)
        return float(self.among_ranks(x).gather(own).count.sum())

    def check_count(self, x: Tensor, own: int, count: Tensor, empty: bool = True) -> None:
        """Raise `ValueError` if all ranks together have `count` 1 or, unless `empty`, 0; this one has `own`.

        Reading the count stalls the device, so only a rank that may be affected does it.
        """
        if own > 1 or torch.compiler.is_compiling():
            return
        few = int(count)
        if few == 1 or (few == 0 and not empty):
            raise ValueError(self.too_few(x, few))

    def too_few(self, x: Tensor, few: int) -> str:
        """Return what is said of the input `x` where all ranks together have so few values per channel."""
        return (
            f"{type(self).__name__}({self.num_features}) got {'one' if few else 'no'} value per channel on all ranks "
            f"together (input of shape {tuple(x.shape)} here): a variance needs two. Give the ranks more samples, or "
            "call .eval()."
        )

    def among_ranks(self, x: Tensor, problem: str = "") -> Place:
        """Return the layer's place among the ranks, which all of them agree on before the first collective.

        A problem of any rank is raised on all: at the first step through the store, later in the peers' gather.
        """
        if joining_unevenly() and not joining(self.process_group):
            raise UserError(f"{title(names_of([self])[id(self)])} cannot train within DDP's join(): {JOIN}.")
        place = self._place
        if place is not None and place.serves(self.process_group):
            if problem and x.device.type == "cpu":
                place.announce_error(x, self.shape_shared())
            return place
        place = Place(self, self.process_group, x.device)
        shape, statistics = self.shape_shared(), acc_dtype(x.dtype)
        said = problem.rstrip(".") or (
            f"{' x '.join(map(str, shape))} channels, statistics in {statistics}, {type(self).__name__}, "
            f"{self.extra_repr().partition(', ')[2]}"
        )
        by_rank = place.agree(said, shape, statistics)
        if by_rank:
            listed = "; ".join(f"rank {rank}: {what}" for rank, what in without_common(by_rank).items())
            kind = type(self).__name__
            raise ValueError(f"{kind} differs between ranks, where all need the same ({listed}).")
        if not problem:
            self._place = place
        return place

    def extra_repr(self) -> str:
        """Show that statistics are shared, where they are, after what the layer shows."""
        return f"{super().extra_repr()}, sync=True" if self.sync else super().extra_repr()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy everything but the process group, which the copy shares."""
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        memo[id(self.process_group)] = self.process_group
        twin.__dict__.update(copy.deepcopy({**self.__dict__, "_place": None}, memo))
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the process group, which cannot be pickled: a loaded layer synchronises over all ranks."""
        return {**self.__dict__, "process_group": None, "_place": None}


class SynchronisedBatchNorm(Synchronised, BatchNormLayer):
    """A batch norm that may share its statistics: `by_batch` and `by_valid` then go by the batch of all ranks."""

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
        sync: bool | None = None,
        process_group: Group = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self.share(sync, process_group)

    def by_batch(self, x: Tensor) -> Tensor:
        """Normalise `x` by the batch's moments, and move the running statistics."""
        return self.by_ranks(x, None) if self.meets() else super().by_batch(x)

    def by_valid(self, x: Tensor, valid: Valid) -> Tensor:
        """Normalise `x` where `valid` by the batch's moments there, and move the running statistics."""
        return valid.fill(self.by_ranks(valid.fill(x), valid)) if self.meets() else super().by_valid(x, valid)

    def by_ranks(self, x: Tensor, valid: Valid | None) -> Tensor:
        """Normalise `x` by the moments of all ranks, where `valid` if given, and move the statistics."""
        compiling = torch.compiler.is_compiling()
        if compiling and COMPILES_COLLECTIVES and not JOINS.any:
            where = None if valid is None else valid.where
            y, moments = batch_norm_plain(x, self.weight, self.bias, self.eps, self.process_group, where)
        else:
            # Before torch 2.11, tracing reaches this line and must end here. (The decorator would import the
            # compiler.)
            eagerly = torch.compiler.disable(self._by_ranks) if compiling else self._by_ranks  # type: ignore[no-untyped-call]
            y, moments = eagerly(x, valid)
        self.move(moments.mean, moments.var(correction=1), moments.count > 0)
        return y

    def _by_ranks(self, x: Tensor, valid: Valid | None) -> tuple[Tensor, Moments]:
        place = self.among_ranks(x)
        check_divisor(self, self.num_features)
        where = None if valid is None else valid.where
        if transforming():
            place.refuse_in_join(TRANSFORMS)
            y, moments = batch_norm_plain(x, self.weight, self.bias, self.eps, self.process_group, where)
        else:
            y, moments = batch_norm_native(x, self.weight, self.bias, self.eps, place, where)
        own = x.numel() // self.num_features if valid is None else valid.count
        self.check_count(x, own, moments.count)
        return y, moments
