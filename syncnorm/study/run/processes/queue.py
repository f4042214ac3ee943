"""Runs that wait for a worker, in order; runs that share a training go to one worker, one after the other.

So do the runs of a stack, which are trained in one computation, as the worker gets the first of them.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from syncnorm.config import Run, run_id, stack_of, training_of

Later = Callable[[], Sequence[Run]]
"""Returns the runs that have become known since its last call."""
Place = Callable[[Run], tuple[bool, int]]
"""Returns a run's place in the order of training."""


class Taken(NamedTuple):
    """What a worker does next."""

    run: Run
    training: str
    """What this run shares with others: the id of its training, or of its stack."""
    together: tuple[Run, ...]
    """The runs of its stack, the former ones as well; empty for a run by itself."""


class Queue:
    """Pending runs.

    Args:
        runs: the first of them, in order.
        later: gives further runs.
        place: where these belong; without it, at the end.
        stack: number of trainings that may be done in one computation, where runs allow it.
    """

    def __init__(
        self, runs: Iterable[Run], later: Later | None = None, place: Place | None = None, stack: int = 1
    ) -> None:
        self._due = [_Due(run) for run in runs]
        self._later, self._place, self._stack = later, place, stack

    def __len__(self) -> int:
        return len(self._due)

    def take(self, own: str, others: set[str], workers: int = 1) -> Taken | None:
        """Remove and return what a worker does next.

        Preferably, it shares `own`, the training of the worker's last run, which the worker has kept; otherwise it is
        the first run whose training is not among `others`, which other workers have kept. None if there are only
        runs that other workers will do without training again.

        A stack takes no more of the pending runs than an equal share for each of so many workers.
        """
        due = next((due for due in self._due if due.training == own), None)
        if due is None:
            free = [due for due in self._due if due.training not in others]
            if not free:
                return None
            due = free[0]
            share = -(-len({one.own for one in self._due}) // workers)
            _stack(due, free, min(self._stack, share))
        self._due.remove(due)
        return Taken(due.run, due.training, due.together)

    def again(self, run: Run, apart: bool = True) -> None:
        """Put a run that is tried once more after all others; it is then trained by itself if `apart`."""
        self._due.append(_Due(run, again=True, apart=apart))

    def grow(self) -> None:
        """Add the runs that have become known."""
        if self._later is None or not (found := self._later()):
            return
        self._due += [_Due(run) for run in found]
        if self._place:
            places = {due: (due.again, *self._place(due.run)) for due in self._due}
            self._due.sort(key=places.__getitem__)


class _Due:
    """A pending run, the id of its training, which several runs may share, and the stack that it is in."""

    def __init__(self, run: Run, again: bool = False, apart: bool = False) -> None:
        self.run, self.again = run, again
        self.own = self.training = run_id(training_of(run))
        self.alike = "" if apart else stack_of(run)
        self.together: tuple[Run, ...] = ()


def _stack(first: _Due, free: Sequence[_Due], most: int) -> None:
    """Put a run into one stack with those that may train with it, at most so many trainings."""
    alike = [due for due in free if first.alike and due.alike == first.alike]
    trainings = list(dict.fromkeys(due.own for due in alike))[:most]
    members = [due for due in alike if due.own in trainings] if len(trainings) > 1 else [first]
    for due in members:
        due.together = tuple(one.run for one in members) if len(trainings) > 1 else ()
        due.training = f"stack of {first.own}" if due.together else due.own
