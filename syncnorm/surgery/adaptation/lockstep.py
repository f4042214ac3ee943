"""Batches of ranks that have to run a model together, because it is sharded: as many forwards on each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch.distributed import ProcessGroup

from syncnorm.errors import UserError
from syncnorm.norms.core.ranks.collectives import gather_objects
from syncnorm.surgery.layers.preconditions import in_a_line

_END = object()


class ApartError(UserError):
    """A rank has failed in a forward in which the others wait for it: nothing can be told to them any more."""


def together(batches: Iterable[Any], group: ProcessGroup) -> Iterator[tuple[Any, bool]]:
    """Yield this rank's batches, and whether each counts; a rank that has run out repeats its last, which does not.

    Ranks ask each other before each batch. So an error of one rank's data is raised on all of them.

    Raises:
        UserError: a rank without any batch while others have some; an error of another rank's data.
    """
    mine, last = iter(batches), _END
    while True:
        batch, problem, cause = _END, "", None
        try:
            batch = next(mine, _END)
        except Exception as error:  # the others must learn of any error
            cause, problem = error, in_a_line(error)
        ranks = gather_objects((batch is not _END, last is not _END, problem), group)
        if cause is not None:
            raise cause
        _check(ranks)
        if not any(has for has, _, _ in ranks):
            return
        counts = batch is not _END
        last = batch if counts else last
        yield last, counts


def run_with_others(run: Callable[[], Any]) -> None:
    """Call `run`, a forward of all ranks; an error there becomes an `ApartError`."""
    try:
        run()
    except Exception as error:
        raise ApartError(
            f"this rank failed where the others of a sharded model wait for it: {in_a_line(error)}."
        ) from error


def _check(ranks: list[tuple[bool, bool, str]]) -> None:
    for rank, (has, had, problem) in enumerate(ranks):
        if problem:
            raise UserError(f"rank {rank} of the model's ranks has no next batch: {problem}.")
        if not has and not had and any(others for others, _, _ in ranks):
            raise UserError(
                f"rank {rank} of the model's ranks has no batch: the ranks of a sharded model run it together, so "
                "give each of them at least one."
            )
