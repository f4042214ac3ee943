"""How a run is carried out. Nothing here changes a run's result, so nothing here is part of its id."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from syncnorm.config.run import Run

MODELS = "models"
"""Name of the folder of trained models in a results folder; each model is in a subfolder named after its run's id."""


@dataclass(frozen=True)
class Progress:
    """The progress of a run."""

    done: int
    """Number of finished epochs or rounds."""
    total: int
    unit: str
    """"epoch" or "round"."""
    fraction: float
    """Finished fraction of the training, from 0 to 1."""
    steps_per_second: float = 0.0
    """Optimiser steps (or federated rounds) per second in this process; 0 until known."""
    loss: float | None = None
    """The last step's or round's training loss, in nats."""
    seconds_left: float | None = None
    """Seconds until the training ends at this pace; None until known."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of the epoch or round that has just ended, e.g. {"train_loss": 0.3}; otherwise empty."""
    runs: int = 1
    """Number of runs that train in this one's computation, with it."""


def silent(progress: Progress) -> None:
    """Ignore progress."""


@dataclass(frozen=True)
class Execution:
    """Where a run keeps its checkpoint and its trained weights, and what receives its progress."""

    checkpoint: Path | None = None
    """Folder of the run's checkpoint; an interrupted run resumes from it bit-identically."""
    checkpoint_every: float = 30.0
    """Seconds between two checkpoints."""
    model: Path | None = None
    """Folder for the trained weights and the config that rebuilds the model."""
    report: Callable[[Progress], None] | None = None
    """Called about twice a second, and at the end of each epoch or round, by the training process (rank 0 under
    torchrun); an exception from it ends the run. None shows a progress line if standard error is a terminal; `silent`
    shows nothing."""
    together: tuple[tuple[Run, Path | None], ...] = ()
    """Runs of one `config.stack_of`, this one among them, each with the folder of its checkpoint: those after it are
    trained with it in one computation where that is possible, and kept for when they are asked for."""
    if_faster: bool = False
    """Train them so only where a few steps show that it is faster than one run after another."""
