"""Runs that wait for a worker, in order; runs that share a training go to one worker, one after the other."""

from collections.abc import Callable, Iterable, Sequence

from syncnorm.config import Run, run_id, training_of

Later = Callable[[], Sequence[Run]]
"""Returns the runs that have become known since its last call."""
Place = Callable[[Run], tuple[bool, int]]
"""Returns a run's place in the order of training."""


class Queue:
    """Pending runs.

    Args:
        runs: the first of them, in order.
        later: gives further runs.
        place: where these belong; without it, at the end.
    """

    def __init__(self, runs: Iterable[Run], later: Later | None = None, place: Place | None = None) -> None:
        self._due = [_Due(run) for run in runs]
        self._later, self._place = later, place

    def __len__(self) -> int:
        return len(self._due)

    def take(self, own: str, others: set[str]) -> tuple[Run, str] | None:
        """Remove and return the run that a worker does next, and the id of its training.

        Preferably, it shares `own`, the training of the worker's last run, which the worker has kept; otherwise it is
        the first run whose training is not among `others`, which other workers have kept. None if there are only
        runs that other workers will do without training again.
        """
        mine = (due for due in self._due if due.training == own)
        free = (due for due in self._due if due.training not in others)
        due = next(mine, None) or next(free, None)
        if due is None:
            return None
        self._due.remove(due)
        return due.run, due.training

    def again(self, run: Run) -> None:
        """Put a run that is tried once more after all others."""
        self._due.append(_Due(run, again=True))

    def grow(self) -> None:
        """Add the runs that have become known."""
        if self._later is None or not (found := self._later()):
            return
        self._due += [_Due(run) for run in found]
        if self._place:
            places = {due: (due.again, *self._place(due.run)) for due in self._due}
            self._due.sort(key=places.__getitem__)


class _Due:
    """A pending run, and the id of its training, which several runs may share."""

    def __init__(self, run: Run, again: bool = False) -> None:
        self.run, self.training, self.again = run, run_id(training_of(run)), again
