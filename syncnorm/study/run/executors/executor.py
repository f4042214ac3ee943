"""What an executor is: it starts worker processes somewhere, and says how they ended.

The processes themselves are the same everywhere (`processes/ranks.py`): they connect to the study, receive runs, and
send progress and results over the connection. So rows, resuming and progress do not depend on the executor.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Wish:
    """What the user asked for."""

    address: str = ""
    """The text after the executor's name and a colon."""
    jobs: int | None = None
    """Number of processes at once; None for the executor's own choice."""
    gpus_per_run: float | None = None
    """Share of a GPU for each run of one process, from 0 to 1; None for the executor's own choice."""
    folder: Path = field(default_factory=Path)
    """The results folder, in which an executor may make a folder for its own files."""


@dataclass(frozen=True)
class Order:
    """A worker process to start, or a torchrun launch whose ranks share runs."""

    arguments: tuple[str, ...]
    """What comes after the Python interpreter on the command line."""
    environment: dict[str, str]
    """Environment variables that it needs, besides those of the machine on which it starts."""
    folder: str
    """Its working directory, where the machine has it."""
    ranks: int = 1
    """The number of processes that train, each of which needs a core, and a GPU where there are any."""
    number: int = 0
    """Counts the workers of a study."""


@dataclass(frozen=True)
class Exit:
    """How a worker process ended."""

    code: int | None
    """Its exit code, minus the signal that ended it; None if it went with its machine, or with its job."""
    log: str = ""
    """Its last output, or where it went, in words."""


class Process(Protocol):
    """A worker process that an executor has started, or is about to start."""

    def exit(self) -> Exit | None:
        """Return how it ended, without waiting; None as long as it runs, or waits for its start."""

    def end(self) -> None:
        """Ask it to end, and give up its start if it has not started."""

    def join(self) -> None:
        """Wait until it has ended, which it was asked to; kill it if that takes more than some seconds."""


class Executor(Protocol):
    """A place where worker processes run."""

    hosts: Sequence[str]
    """Names or addresses of this machine, under one of which the processes reach it. They listen and speak on this
    machine alone if it is only "127.0.0.1"."""
    restarts: bool
    """Whether a lost process is started again by itself, as a job is that Slurm requeues."""

    def slots(self, ranks: int) -> int:
        """Return how many processes of so many ranks may run at once, at least 1.

        Raises:
            UserError: there is no room for a single one.
        """

    def start(self, orders: Sequence[Order]) -> list[Process]:
        """Start worker processes, or have them wait for their start."""

    def words(self) -> str:
        """Say where runs are trained, for the first lines of the output; empty if that goes without saying."""

    def close(self) -> None:
        """Let the place go, after all processes have been asked to end."""
