"""How a run is carried out. Nothing here changes what a run gives, so nothing here is part of its id."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

MODELS = "models"
"""In a results folder, the folder of the trained models, each in one of its run's id."""


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    done: int
    """Epochs or rounds that are finished."""
    total: int
    unit: str
    """"epoch" or "round"."""
    fraction: float
    """Of the whole training, from 0 to 1."""
    steps_per_second: float = 0.0
    """Optimiser steps of this process in a second; rounds where a run has rounds. 0 until it is known."""
    loss: float | None = None
    """The last step's or round's training loss, in nats."""
    seconds_left: float | None = None
    """Until the training ends at this pace; None until that is known."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What the last epoch or round gave, e.g. {"train_loss": 0.3}; empty between them."""


def silent(progress: Progress) -> None:
    """Hear of progress, and do nothing."""


@dataclass(frozen=True)
class Execution:
    """Where a run keeps its checkpoint and its trained weights, and who hears of its progress."""

    checkpoint: Path | None = None
    """Folder of the run's checkpoint: a run that was killed goes on from what it finds there, to the same bits."""
    checkpoint_every: float = 30.0
    """Seconds between two checkpoints."""
    model: Path | None = None
    """Folder for the trained weights and the config that rebuilds them."""
    report: Callable[[Progress], None] | None = None
    """Called about twice a second, and at the end of each epoch or round, by the process that trains (by rank 0 of a
    launch); what it raises ends the run. None shows a line where standard error is a terminal, `silent` nothing."""
