"""The last training of this process, kept for the next run: runs that differ in their evaluation alone share it."""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from syncnorm.config import Run, run_id, training_of
from syncnorm.worlds import checkpoint_id

Trained = TypeVar("Trained")


class LastTraining(Generic[Trained]):
    """Keeps one training, or those of several runs that were trained together, for the runs that are asked for next.

    A training is named by its run without what concerns the evaluation alone (`config.training_of`). The same run
    again is trained again, and so is a run whose model or files have changed.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Trained] = {}
        self._used: set[str] = set()
        self._served: set[str] = set()

    def of(
        self, run: Run, place: str, train: Callable[[], Trained], anywhere: Callable[[bool], bool] = bool
    ) -> tuple[Trained, bool]:
        """Return a run's training at a place (a device, a rank), and whether no other run has had it.

        Ranks that train together all train if one has to: `anywhere` says whether its argument is true on any rank.
        """
        return self.among(run, place, lambda: [(run, train())], anywhere)

    def among(
        self,
        run: Run,
        place: str,
        train: Callable[[], Sequence[tuple[Run, Trained]]],
        anywhere: Callable[[bool], bool] = bool,
    ) -> tuple[Trained, bool]:
        """Do the same with a `train` that may train further runs together with this one; all of them are kept."""
        key = _key(run, place)
        if anywhere(key not in self._kept or run_id(run) in self._served):
            self.forget()  # before the next one takes memory
            self._kept = {_key(one, place): trained for one, trained in train()}
        fresh = key not in self._used
        self._used.add(key)
        self._served.add(run_id(run))
        return self._kept[key], fresh

    def waiting(self, run: Run, place: str) -> Trained | None:
        """Return a run's training that was made with others and that nobody has asked for yet; None without one."""
        key = _key(run, place) if self._kept else ""
        return None if key in self._used else self._kept.get(key)

    def drop(self, trained: Trained) -> None:
        """Drop one training, which is then shared with no further run."""
        self._kept = {key: one for key, one in self._kept.items() if one is not trained}

    def forget(self) -> None:
        """Drop all trainings."""
        self._kept, self._used, self._served = {}, set(), set()


def _key(run: Run, place: str) -> str:
    return f"{checkpoint_id(training_of(run))} {run.data.path} {place}"
