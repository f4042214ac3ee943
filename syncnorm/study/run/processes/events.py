"""What happens to the runs of a study while they are trained, and where they write."""

from dataclasses import dataclass
from pathlib import Path

from syncnorm.config import Execution, Progress, Result, Run, run_id
from syncnorm.study.run.processes.attempt import Failure


@dataclass(frozen=True)
class Placement:
    """Where the runs of a study write, each in a folder named after its id."""

    checkpoints: Path | None = None
    checkpoint_every: float = Execution.checkpoint_every
    models: Path | None = None

    def of(self, run: Run) -> Execution:
        """Return the execution settings of a run; its folders are absolute, for workers elsewhere."""
        checkpoint, model = (folder and folder.absolute() / run_id(run) for folder in (self.checkpoints, self.models))
        return Execution(checkpoint, self.checkpoint_every, model)


@dataclass(frozen=True)
class Started:
    """A worker started a run."""

    run: Run


@dataclass(frozen=True)
class Advanced:
    """A run reported progress."""

    run: Run
    progress: Progress


@dataclass(frozen=True)
class Moved:
    """A run lost its place, such as a machine, and is trained elsewhere, from its checkpoint if that can be read."""

    run: Run
    why: str


@dataclass(frozen=True)
class Ended:
    """A run gave a result, or failed finally."""

    run: Run
    outcome: Result | Failure
    seconds: float
    environment: dict[str, str]


Event = Started | Advanced | Moved | Ended
