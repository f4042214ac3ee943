"""How a run is carried out. Nothing here changes what a run gives, so nothing here is part of its id."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


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
    metrics: dict[str, float] = field(default_factory=dict)
    """What the last epoch or round gave, e.g. {"train_loss": 0.3}; empty between them."""


def _nobody(progress: Progress) -> None:
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
    report: Callable[[Progress], None] = _nobody
    """Called now and then while the run trains; what it raises ends the run."""
