"""What happens to the runs of a study while they are trained, where they write, and which train together."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from syncnorm.config import Execution, Progress, Result, Run, run_id
from syncnorm.study.run.processes.attempt import Failure


@dataclass(frozen=True)
class Placement:
    """Where the runs of a study write, each in a folder named after its id, and how many train together."""

    checkpoints: Path | None = None
    checkpoint_every: float = Execution.checkpoint_every
    models: Path | None = None
    stack: int = 1
    """Number of runs that may train in one computation."""
    if_faster: bool = False
    """Whether they do so only where it is faster."""

    def of(self, run: Run, together: Sequence[Run] = ()) -> Execution:
        """Return the execution settings of a run, in a stack; its folders are absolute, for workers elsewhere."""
        named = tuple((one, self._folder(self.checkpoints, one)) for one in together)
        checkpoint, model = (self._folder(folder, run) for folder in (self.checkpoints, self.models))
        return Execution(checkpoint, self.checkpoint_every, model, together=named, if_faster=self.if_faster)

    @staticmethod
    def _folder(folder: Path | None, run: Run) -> Path | None:
        return folder and folder.absolute() / run_id(run)


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
