"""The choice of a run's model by validation: the model after the epoch with the best validation accuracy."""

import copy
from typing import Any

from torch import nn

from syncnorm.config import Run
from syncnorm.tasks import task_named
from syncnorm.training.checkpoints import State, load_module_state, module_state


def by_validation(run: Run) -> list[str]:
    """Return the names of the metrics that a run has because of its validation samples."""
    named = task_named(run.task).named("validation_accuracy")
    measured = [named, "validation_loss"] if run.data.validation else []
    return [*measured, *([run.world.step] if run.select == "best" else [])]


class Best:
    """The best model so far, with everything that belongs to its state.

    epoch: the epoch that it comes from, counted from 1; 0 before the first.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self._accuracy = 0.0
        self._state: State | None = None

    def offer(self, epoch: int, accuracy: float, model: nn.Module) -> None:
        """Keep a copy of the model's state if no earlier one has as good an accuracy."""
        if self._state is None or accuracy > self._accuracy:
            self.epoch, self._accuracy, self._state = epoch, accuracy, copy.deepcopy(module_state(model))

    def restore(self, model: nn.Module) -> None:
        """Give the model the best state; without one, leave it as it is."""
        if self._state is not None:
            load_module_state(model, self._state)

    def remember(self) -> dict[str, Any]:
        """Return the choice so far, as plain data and tensors, for `recall`."""
        return {"epoch": self.epoch, "accuracy": self._accuracy, "state": self._state}

    def recall(self, known: dict[str, Any]) -> None:
        """Restore what `remember` returned."""
        self.epoch, self._accuracy, self._state = known["epoch"], known["accuracy"], known["state"]
