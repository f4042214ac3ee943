"""The last training of this process, kept for the next run: runs that differ in their evaluation alone share it."""

from collections.abc import Callable
from typing import Generic, TypeVar

from syncnorm.config import Run, run_id, training_of
from syncnorm.worlds import checkpoint_id

Trained = TypeVar("Trained")


class LastTraining(Generic[Trained]):
    """Keeps one training, named by the run without what concerns its evaluation alone (`config.training_of`).

    The same run again is trained again, and so is a run whose model or files have changed.
    """

    def __init__(self) -> None:
        self._key = ""
        self._kept: list[Trained] = []
        self._served: set[str] = set()

    def of(
        self, run: Run, place: str, train: Callable[[], Trained], anywhere: Callable[[bool], bool] = bool
    ) -> tuple[Trained, bool]:
        """Return a run's training at a place (a device, a rank), and whether `train` has made it now.

        Ranks that train together all train if one has to: `anywhere` says whether its argument is true on any rank.
        """
        key = f"{checkpoint_id(training_of(run))} {run.data.path} {place}"
        fresh = anywhere(key != self._key or run_id(run) in self._served)
        if fresh:
            self.forget()  # before the next one takes memory
            self._kept = [train()]
            self._key = key
        self._served.add(run_id(run))
        return self._kept[0], fresh

    def forget(self) -> None:
        """Drop the training."""
        self._key, self._kept, self._served = "", [], set()
