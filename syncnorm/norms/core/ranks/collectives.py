"""Collectives for moments and sums, and a check before the first that all ranks agree on shapes.

Collectives here are differentiable or plain, eager or compiled; every function is the identity for one rank.
"""

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from syncnorm._torch import key_value_store, sum_in_graph
from syncnorm.errors import UserError
from syncnorm.moments import Moments
from syncnorm.norms.core.ranks.alone import is_alone
from syncnorm.waiting import waiting

LOOK = 2.0
"""Seconds between two looks, of a rank that waits for the others, at whether they are still there."""
GONE = "gives no sign of life any more"


def rank_and_size(group: ProcessGroup | None) -> tuple[int, int]:
    """Return this process's rank in `group` (None: all processes) and the group's size; (0, 1) without a group.

    Inside `alone`, it is (0, 1) as well. A process outside the group raises `UserError`.
    """
    if not dist.is_available() or not dist.is_initialized() or is_alone():
        return 0, 1
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    if rank < 0:
        raise UserError("this rank is not in the process_group: give each rank the group it belongs to.")
    return rank, size


def gather_rows(row: Tensor, group: ProcessGroup | None) -> Tensor:
    """Return every rank's row of n numbers, stacked: (R, n). One all-gather, no gradient."""
    size = rank_and_size(group)[1]
    if size == 1:
        return row.unsqueeze(0)
    rows = row.new_empty(size * row.numel())
    all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    with waiting():
        all_gather(rows, row, group=group)
    return rows.view(size, -1)


def gather_moments_differentiably(local: Moments, group: ProcessGroup | None) -> Moments:
    """Return every rank's moments, stacked: count (R,), mean (R, C), m2 (R, C), with gradients through every rank.

    Of D moments a rank, count (D,) and mean (D, C), they are (R, D) and (R, D, C): one row, and one collective.

    Each rank puts its moments into its own row of a zero matrix, and the matrices are summed. An all-reduce is its
    own adjoint, so one collective in the forward needs one in the backward, on every backend.
    """
    row = pack(local)
    rank, size = rank_and_size(group)
    rows = row.unsqueeze(0)
    if size > 1:
        mine = torch.arange(size, device=row.device).unsqueeze(1) == rank
        rows = sum_differentiably(torch.where(mine, row, 0.0), group)
    return unpack(rows, local.mean.shape)[0]


def sum_over_ranks(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """Sum `x` over the ranks, in place and without a gradient."""
    if rank_and_size(group)[1] > 1:
        with waiting():
            dist.all_reduce(x, group=group)
    return x


def gather_objects(mine: Any, group: ProcessGroup | None) -> list[Any]:
    """Return every rank's object, in rank order; objects may be of any size but must be picklable."""
    rank, size = rank_and_size(group)
    given = [mine] * size
    if size > 1:
        dist.all_gather_object(given, mine, group=group)
        given[rank] = mine
    return given


def agree(
    said: str,
    name: Callable[[], str],
    group: ProcessGroup | None,
    timeout: timedelta,
    silent: Callable[[], Sequence[int]] = tuple,
) -> tuple[int, dict[int, str]]:
    """Compare the texts of all ranks: return the number of the comparison, and {rank: text} if they differ, else {}.

    Each text of those that differ ends with the `name` of what it is about. This uses the group's key-value store:
    tensors of different sizes would hang or corrupt a collective, and the store needs no collective and no device
    synchronisation. All ranks of the group must call this equally often; else it raises after the timeout, or once
    `silent` returns ranks that are gone.
    """
    rank, size = rank_and_size(group)
    store = key_value_store()
    key = (group or dist.group.WORLD).group_name  # type: ignore[union-attr]
    turn = store.add(f"syncnorm/{key}/turn/{rank}", 1)
    prefix = f"syncnorm/{key}/{turn}"
    store.set(f"{prefix}/{rank}", said)
    until = time.monotonic() + timeout.total_seconds()
    if _told(store, f"{prefix}/0", until, silent) != said:
        store.set(f"{prefix}/differs", "yes")
    if store.add(f"{prefix}/arrived", 1) == size:
        store.set(f"{prefix}/complete", "yes")
    _told(store, f"{prefix}/complete", until, silent)
    if not store.check([f"{prefix}/differs"]):
        return turn, {}
    store.set(f"{prefix}/{rank}/in full", f"{said}, in {name()}")
    return turn, {peer: _told(store, f"{prefix}/{peer}/in full", until, silent) for peer in range(size)}


def _told(store: Any, key: str, until: float, silent: Callable[[], Sequence[int]]) -> str:
    """Return what a store has under a key, once it does: `get` would wait for as long as the store's own timeout.

    Raises `RuntimeError` after `until`, in seconds of the monotonic clock, or once ranks are `silent`.
    """
    while True:
        left = until - time.monotonic()
        try:
            store.wait([key], timedelta(seconds=max(min(LOOK, left), 0.001)))
            return str(store.get(key).decode())
        except dist.DistNetworkError:
            raise
        except RuntimeError as error:
            if gone := silent():
                numbers = ", ".join(map(str, gone))
                raise RuntimeError(f"rank {numbers} {GONE}") from error
            if left <= LOOK:
                raise


def sum_differentiably(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """Return the sum of `x` over the ranks, with a gradient, to any order: the sum of the ranks' gradients."""
    if torch.compiler.is_compiling():
        return sum_in_graph(x, group)
    summed: Tensor = _AllReduceSum.apply(x, group)  # type: ignore[no-untyped-call]
    return summed


class _AllReduceSum(torch.autograd.Function):
    """A sum over ranks, which is linear: so are its derivatives, to any order, and torch.func has them too."""

    @staticmethod
    def forward(x: Tensor, group: ProcessGroup | None) -> Tensor:
        return sum_over_ranks(x.clone(memory_format=torch.contiguous_format), group)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _AllReduceSum.apply(grads[0], ctx.group), None  # type: ignore[no-untyped-call]

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return _AllReduceSum.apply(tangents[0], ctx.group)  # type: ignore[no-untyped-call]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, group: ProcessGroup | None) -> Any:
        return _AllReduceSum.apply(x, group), in_dims[0]  # type: ignore[no-untyped-call]


def pack(moments: Moments, tail: Tensor | None = None) -> Tensor:
    """Return moments of C channels, or D of them, as one row of numbers, and after them what a `tail` adds."""
    parts = [part.flatten() for part in (moments.count.to(moments.mean.dtype), moments.mean, moments.m2)]
    return torch.cat(parts if tail is None else [*parts, tail])


def unpack(rows: Tensor, shape: torch.Size) -> tuple[Moments, Tensor | None]:
    """Return the moments that rows hold, stacked, and the last value of each row's tail, (R,), if there is one.

    `shape` is that of the means of a row: (C,), or (D, C) of D moments.
    """
    counts, values = shape[:-1].numel(), shape.numel()
    count, mean, m2, tail = rows.split([counts, values, values, rows.shape[1] - counts - 2 * values], dim=1)  # type: ignore[no-untyped-call]
    moments = Moments(
        *(part.reshape(len(rows), *dims) for part, dims in ((count, shape[:-1]), (mean, shape), (m2, shape)))
    )
    return moments, tail.select(1, -1) if tail.shape[1] else None
