"""Collectives in which a rank that is out of batches stands in with nothing, so that the others finish.

Before each collective, the ranks that train say which one comes; a rank that is out of batches listens, from a thread
of its own, and takes part with a count of 0, or with zeros. All of it runs over gloo, in a group beside that of the
layers: so it keeps no order with the collectives of DistributedDataParallel, and a thread touches no GPU.
"""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from syncnorm.norms.core.ranks.collectives import gather_objects, gather_rows, sum_over_ranks

GATHER, SUM, MEET = 1, 2, 3
LOOKS = timedelta(seconds=0.2)
"""How long a rank that listens waits before it looks whether Python ends."""
ENDED = 5.0
"""Seconds for its thread to end then."""
_TYPES = (torch.float32, torch.float64)
DIFFERENT = "the ranks that still have batches came to different layers"
_NOBODY = torch.iinfo(torch.int64).min


@dataclass
class Joins:
    """Whether any layer of this process is in a join: a compiled graph is then left, for its collectives are not."""

    any: bool = False


JOINS = Joins()


class Relay:
    """The collectives of one group of layers while its ranks may run out of batches.

    layers: those of the model in this group, by name.
    served: how many collectives this rank has stood in for.
    """

    def __init__(self, group: ProcessGroup, layers: Mapping[str, nn.Module], timeout: float) -> None:
        self.group = _beside(group, timeout)
        self.layers = weakref.WeakValueDictionary(layers)
        self.names = weakref.WeakKeyDictionary({layer: name for name, layer in layers.items()})
        self.served = 0
        self.problem: Exception | None = None
        self._thread: threading.Thread | None = None
        self._ends = threading.Event()

    def gather(self, row: Tensor, number: int) -> Tensor:
        """Return every rank's row, stacked, as `gather_rows`; `number` is that of the layer."""
        self._say(GATHER, row.numel(), _TYPES.index(row.dtype), number)
        return gather_rows(row.cpu(), self.group).to(row.device)

    def sum(self, x: Tensor) -> Tensor:
        """Sum `x` over the ranks, in place."""
        self._say(SUM, x.numel(), _TYPES.index(x.dtype), 0)
        return x.copy_(sum_over_ranks(x.cpu(), self.group))

    def call(self, layer: nn.Module, *said: Any) -> None:
        """Call the other ranks to the first meeting of `layer`, with what this one says there."""
        self._say(MEET, 0, 0, 0)
        self._hear((self.names[layer], *said))

    def _hear(self, mine: tuple[Any, ...] | None = None) -> tuple[Any, ...]:
        """Return what the ranks that still have batches say of a layer."""
        said: list[tuple[Any, ...]] = [told for told in gather_objects(mine, self.group) if told is not None]
        if len({name for name, *_ in said}) > 1:
            raise RuntimeError(DIFFERENT)
        return said[0]

    @property
    def stands_in(self) -> bool:
        """Whether this rank is out of batches."""
        return self._thread is not None

    def stand_in(self, note: Callable[[int], None], meet: Callable[..., None], failed: Callable[[], None]) -> None:
        """From now on, take part in what the others do, in a thread of its own.

        `note(number)` is told of each gather, `meet(layer, *said)` of each first meeting, `failed()` of the end.
        """
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._serve, args=(note, meet, failed), daemon=True, name="syncnorm-join"
            )
            self._thread.start()
            atexit.register(self._end)
        if self.problem is not None:
            raise self.problem

    def finish(self) -> None:
        """Wait until no rank trains any more. Raises what has ended the thread, if anything has."""
        if self._thread is not None:
            self._thread.join()
            atexit.unregister(self._end)
        if self.problem is not None:
            raise self.problem

    def _end(self) -> None:
        """Let the thread end before Python does, which would abort a process with a thread inside of a collective."""
        self._ends.set()
        if self._thread is not None:
            self._thread.join(ENDED)

    def _serve(self, note: Callable[[int], None], meet: Callable[..., None], failed: Callable[[], None]) -> None:
        try:
            while not self._ends.is_set() and (what := self._say()) is not None:
                kind, values, dtype, number = what
                nothing = torch.zeros(values, dtype=_TYPES[dtype])
                if kind == GATHER:
                    note(number)
                    nothing[-1] = number  # in the place of a layer's number, or of what a count of 0 leaves out
                    gather_rows(nothing, self.group)
                elif kind == SUM:
                    sum_over_ranks(nothing, self.group)
                else:
                    name, *said = self._hear()
                    meet(self.layers[name], *said)
                self.served += 1
        except Exception as error:  # the main thread raises it
            self.problem = error
            with suppress(RuntimeError):  # the ranks' store may have left with a rank
                failed()

    def _say(self, *mine: int) -> list[int] | None:
        """Return what comes next, which this rank says, or the others if it says nothing; None if none says anything.

        Raises `RuntimeError` if ranks say different things.
        """
        said = [*mine, *(-value for value in mine)] if mine else [_NOBODY] * 8
        highest = torch.tensor(said)
        work = dist.all_reduce(highest, dist.ReduceOp.MAX, group=self.group, async_op=True)
        if mine:
            work.wait()
        elif not self._came(work):
            return None
        most, least = highest.tolist()[:4], [-value for value in highest.tolist()[4:]]
        if most[0] == _NOBODY:
            return None
        if most != least:
            raise RuntimeError(DIFFERENT)
        return most

    def _came(self, work: dist.Work) -> bool:
        """Wait for what the others say, looking up now and then; return False if Python ends before."""
        while not self._ends.is_set():
            try:
                work.wait(LOOKS)
                return True
            except RuntimeError:
                if work.is_completed():  # it failed, and did not only take longer than a look
                    raise
        return False


_BESIDE: weakref.WeakKeyDictionary[ProcessGroup, ProcessGroup] = weakref.WeakKeyDictionary()


def _beside(group: ProcessGroup, timeout: float) -> ProcessGroup:
    """Return a gloo group of the same ranks, the same one at every call; at the first, all of them have to call."""
    if group not in _BESIDE:
        _BESIDE[group] = dist.new_group(
            dist.get_process_group_ranks(group),
            timeout=timedelta(seconds=timeout),
            backend="gloo",
            use_local_synchronization=True,
        )
    return _BESIDE[group]
