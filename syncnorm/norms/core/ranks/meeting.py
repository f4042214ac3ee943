"""A synchronised layer among the ranks of its group: what it sends, and what names it if its peers do not come.

Each row of moments carries the number of its layer, and a process notes the layers that it runs. Both cost no
collective. Ranks that stand still tell one another where, through the group's store, from a thread of their own.
"""

from __future__ import annotations

import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from datetime import timedelta
from math import prod
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from syncnorm._torch import group_timeout, key_value_store
from syncnorm.errors import UserError
from syncnorm.moments import Moments, acc_dtype
from syncnorm.norms.core.ranks.collectives import agree, gather_rows, pack, sum_over_ranks, unpack
from syncnorm.norms.core.ranks.parting import Whereabouts, difference, listed, names_of, sentence, title
from syncnorm.norms.core.ranks.pulse import BEAT, Pulse
from syncnorm.norms.core.ranks.relay import Relay

REMEMBERED = 512  # calls: some steps of a deep network
LOOKS = 8  # how often a process looks whether it stands still, per timeout of its group
ANSWER = 2.0  # seconds that a failed rank waits for what its peers say


class Meeting:
    """What this process notes of its synchronised layers in one group, and tells the others when it stands still."""

    def __init__(self, group: ProcessGroup, device: torch.device) -> None:
        self.group = weakref.ref(group)
        self.ranks = dist.get_process_group_ranks(group)
        self.rank = dist.get_rank()
        self.timeout = group_timeout(group, device)
        self.calls = 0
        self.last: deque[Place] = deque(maxlen=REMEMBERED)
        self.waits: Place | None = None
        self.backward = False
        self.places: weakref.WeakValueDictionary[int, Place] = weakref.WeakValueDictionary()
        self.width = 0  # bytes of the longest row
        self.relay: Relay | None = None  # while ranks may run out of batches
        self.prefix = f"syncnorm/{group.group_name}/apart"
        self.store = _own_connection()
        self.pulse = None
        if self.store is not None:
            self.pulse = Pulse(self.store, self.prefix, self.rank, self.ranks)
            threading.Thread(target=self._watch, daemon=True, name="syncnorm-ranks").start()

    def here(self) -> Whereabouts:
        """Return where this rank is now."""
        waits, backward, last = self.waits, self.backward, list(self.last)
        names = names_of({layer for place in [*last, *([waits] if waits else [])] if (layer := place.layer())})
        called = [_name(place, names) for place in last]
        within = f"{'the backward pass of ' * backward}{_name(waits, names)}" if waits else ""
        if self.relay is not None and self.relay.stands_in:
            within = "syncnorm.join, out of batches"
        return Whereabouts(self.calls, called, within)

    def come(self, place: Place) -> None:
        """Note that this rank has come to a layer, or stands in there."""
        self.calls += 1
        self.last.append(place)

    def gather(self, row: Tensor, number: int) -> Tensor:
        """Return every rank's row of the layer of this number, stacked."""
        return gather_rows(row, self.group()) if self.relay is None else self.relay.gather(row, number)

    def sum(self, x: Tensor) -> Tensor:
        """Sum `x` over the ranks, in place."""
        return sum_over_ranks(x, self.group()) if self.relay is None else self.relay.sum(x)

    def stand_in(self) -> None:
        """Let this rank, which is out of batches, take part with nothing until no other has any."""

        def meet(layer: nn.Module, said: str, shape: tuple[int, ...], statistics: torch.dtype) -> None:
            place = Place(layer, self.group(), torch.device("cpu"))
            if not place.meet(said, shape, statistics):
                layer._place = place  # type: ignore[assignment]

        if self.relay is not None:
            self.relay.stand_in(lambda number: self.come(self.places[number]), meet, lambda: self.tell(self.here()))

    def leave(self) -> None:
        """Take back that this rank has come to a layer, which it has yet to run."""
        self.calls -= 1
        self.last.pop()
        self.waits = None

    def tell(self, here: Whereabouts | None) -> None:
        """Tell the others where this rank stands; None: it runs on."""
        if self.store is not None:
            self.store.set(f"{self.prefix}/{self.rank}", here.dumps() if here else "")

    def hear(self, mine: Whereabouts, seconds: float = 0.0) -> dict[int, Whereabouts | None]:
        """Return where every rank stands; None for one that has not told within so many seconds."""
        told: dict[int, Whereabouts | None] = dict.fromkeys(self.ranks)
        told[self.rank] = mine
        until = time.monotonic() + seconds
        while self.store is not None:
            for rank in (rank for rank, here in told.items() if here is None):
                key = f"{self.prefix}/{rank}"
                if self.store.check([key]):
                    told[rank] = Whereabouts.loads(self.store.get(key))
            if None not in told.values() or time.monotonic() >= until:
                break
            time.sleep(0.05)
        return told

    def parted(self, place: Place, error: Exception) -> Exception:
        """Return the error that names the layer and the ranks for `error`, with which a collective ended."""
        mine = self.here()
        name = place.name()
        told: dict[int, Whereabouts | None] = {self.rank: mine}
        try:
            self.tell(mine)
            told = self.hear(mine, min(ANSWER, self.timeout))
        except RuntimeError:  # a rank that has left has taken the store along
            told.update({rank: None for rank in self.ranks if rank != self.rank})
        details = difference(told)
        if details:
            return RuntimeError(f"{sentence(name, details)} ({_first_line(error)})")
        return RuntimeError(f"{title(name)}: every rank came to it, but its collective failed: {_first_line(error)}")

    def _watch(self) -> None:
        """Tell where this process is whenever it stands still, and warn once if others stand elsewhere."""
        seen, looks, told = -1, 0, False
        look, looked = min(self.timeout / LOOKS, 60.0), time.monotonic()
        while self.group() is not None:
            try:
                if self.pulse:
                    self.pulse.beat()
                time.sleep(min(look, BEAT))
                if time.monotonic() - looked < look:
                    continue
                looked = time.monotonic()
                if self.calls != seen:
                    seen, looks = self.calls, 0
                    if told:
                        self.tell(None)
                        told = False
                    continue
                looks += 1
                if looks == 2:
                    self.tell(self.here())
                    told = True
                elif looks == LOOKS // 2:
                    self._warn()
            except RuntimeError:  # the store is gone, and with it whoever could hear
                return

    def _warn(self) -> None:
        told = self.hear(self.here())
        standing = {rank: here for rank, here in told.items() if here is not None}
        details = difference(standing)
        if details:
            furthest = max(standing.values(), key=lambda here: here.calls)
            warnings.warn(sentence(furthest.last[-1], details), RuntimeWarning, stacklevel=1)


_meetings: weakref.WeakKeyDictionary[ProcessGroup, Meeting] = weakref.WeakKeyDictionary()


class Place:
    """One layer's place in the meeting of its group's ranks: it runs the layer's collectives."""

    def __init__(self, layer: nn.Module, group: ProcessGroup | None, device: torch.device) -> None:
        self.layer = weakref.ref(layer)
        self.meeting = meeting_of(group, device)
        self.number = 0
        self._tail: Tensor | None = None
        self._width = 0

    @property
    def group(self) -> ProcessGroup | None:
        """The group, which nothing here keeps alive."""
        return self.meeting.group()

    def serves(self, group: ProcessGroup | None) -> bool:
        """Return whether this is still the place for a layer of `group`."""
        return self.meeting.group() is _resolved(group)

    def name(self) -> str:
        """Return the layer's name, for a sentence."""
        layer = self.layer()
        return _name(self, names_of([layer]) if layer is not None else {})

    def agree(self, said: str, shape: tuple[int, ...], statistics: torch.dtype) -> dict[int, str]:
        """Compare what all ranks say of the layer that each has come to: {rank: text} if they differ, else {}.

        `shape` is that of the means that it shares: (C,), or (D, C) of D moments.
        """
        layer, relay = self.layer(), self.meeting.relay
        if relay is not None:
            if layer is None or layer not in relay.names:
                raise UserError(
                    f"{title(self.name())} comes first within syncnorm.join, and is not in the model that it was "
                    "given: a rank that is out of batches could not find it."
                )
            self._arrive()
            try:
                relay.call(layer, said, shape, statistics)
            except RuntimeError as error:
                raise self.meeting.parted(self, error) from error
            self.meeting.leave()
        return self.meet(said, shape, statistics)

    def meet(self, said: str, shape: tuple[int, ...], statistics: torch.dtype) -> dict[int, str]:
        """Do what `agree` does, once all ranks are here."""
        meeting = self.meeting
        self._arrive()
        try:
            limit, silent = timedelta(seconds=meeting.timeout), meeting.pulse.silent if meeting.pulse else tuple
            self.number, differ = agree(said, self.name, self.group, limit, silent)
        except RuntimeError as error:
            raise meeting.parted(self, error) from error
        meeting.leave()
        meeting.places[self.number] = self
        meeting.width = max(meeting.width, _length(shape) * statistics.itemsize)
        return {meeting.ranks[peer]: what for peer, what in differ.items()}

    def gather(self, local: Moments) -> Moments:
        """Return the moments of all ranks, stacked; on CPUs, raise `ValueError` if a rank has run another layer."""
        row = pack(local, self._tail_for(local.mean))
        self._arrive()
        try:
            rows = self.meeting.gather(row, self.number)
        except RuntimeError as error:
            raise self.meeting.parted(self, error) from error
        self.meeting.waits = None
        moments, numbers = unpack(rows, local.mean.shape)
        if numbers is not None:
            self._compare(moments.count.view(len(rows), -1)[:, 0].tolist(), numbers.tolist())
        return moments

    def sum(self, x: Tensor, backward: bool = True) -> Tensor:
        """Sum `x` over the ranks, in place; `backward` says in which pass."""
        meeting = self.meeting
        meeting.waits, meeting.backward = self, backward
        try:
            meeting.sum(x)
        except RuntimeError as error:
            raise meeting.parted(self, error) from error
        meeting.waits = None
        return x

    def refuse_in_join(self, what: str) -> None:
        """Raise `UserError` of `what` within `syncnorm.join`: a rank that is out of batches cannot stand in there."""
        if self.meeting.relay is not None:
            raise UserError(
                f"{title(self.name())} does not take {what} within syncnorm.join, where nothing can stand in for a "
                "rank that is out of batches: deal every rank equally many batches."
            )

    def announce_error(self, like: Tensor, shape: tuple[int, ...]) -> None:
        """Join the peers' gather with a count of -1, so that they raise instead of waiting for this rank.

        `shape` is that of the means that the layer shares.
        """
        nothing = like.new_zeros(shape, dtype=acc_dtype(like.dtype))
        announced = Moments(nothing.new_full(shape[:-1], -1.0), nothing, nothing)
        self.meeting.gather(pack(announced, self._tail_for(nothing)), self.number)

    def _arrive(self) -> None:
        meeting = self.meeting
        meeting.come(self)
        meeting.waits, meeting.backward = self, False

    def _tail_for(self, mean: Tensor) -> Tensor | None:
        """Return what follows the moments in this rank's row: zeros up to a common length, and the layer's number.

        gloo ends a process that receives more than it expects, so rows of all layers have one length there, and the
        number stands where another layer reads it too. Reading it would stall a GPU: there a row ends with its
        moments.
        """
        if mean.device.type != "cpu":
            return None
        tail, width = self._tail, self.meeting.width
        if tail is None or self._width != width or tail.dtype is not mean.dtype:
            zeros = max(width // mean.element_size() - _length(mean.shape), 0)
            tail = self._tail = F.pad(mean.new_tensor([self.number]), (zeros, 0))
            self._width = width
        return tail

    def _compare(self, counts: list[float], numbers: list[float]) -> None:
        mine = self.number
        for count, number in zip(counts, numbers, strict=True):
            if count < 0 or number != mine:
                break
        else:
            return
        meeting = self.meeting
        ended = [rank for rank, count in zip(meeting.ranks, counts, strict=True) if count < 0]
        if ended:
            raise ValueError(
                f"{title(self.name())} stopped: {listed(ended)} got an input it cannot take (its own error says why)."
            )
        ran = {}
        for rank, number in zip(meeting.ranks, numbers, strict=True):
            place = meeting.places.get(int(number))
            ran[rank] = Whereabouts(1, [place.name() if place else f"the layer that came as number {int(number)}"])
        raise ValueError(sentence(self.name(), difference(ran) or "other layers of the same name"))


def meeting_of(group: ProcessGroup | None, device: torch.device) -> Meeting:
    """Return the meeting of the ranks of `group` (None: all)."""
    whole = _resolved(group)
    if whole not in _meetings:
        _meetings[whole] = Meeting(whole, device)
    return _meetings[whole]


def joining(group: ProcessGroup | None) -> bool:
    """Return whether the ranks of `group` are in `syncnorm.join`, and may run out of batches."""
    if not (dist.is_available() and dist.is_initialized()):
        return False
    meeting = _meetings.get(_resolved(group))
    return meeting is not None and meeting.relay is not None


def _resolved(group: ProcessGroup | None) -> ProcessGroup:
    whole = group or dist.group.WORLD
    assert whole is not None
    return whole


def _length(shape: Sequence[int]) -> int:
    """Return how many values a row holds: counts, means, sums of squared deviations, and the layer's number."""
    return prod(shape[:-1]) + 2 * prod(shape) + 1


def _name(place: Place, names: dict[int, str]) -> str:
    layer = place.layer()
    return "a layer that is gone" if layer is None else names.get(id(layer), type(layer).__name__)


def _own_connection() -> Any:
    """Return a second connection to the ranks' store, as a waiting rank holds the first; None if there is none."""
    clone: Callable[[], Any] | None = getattr(key_value_store(), "clone", None)
    return clone() if clone is not None else None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")
