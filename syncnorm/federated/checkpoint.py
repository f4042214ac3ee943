"""A federated run's state in one file: interrupted runs resume bit-identically.

Every random choice is derived from the run's seed, round and client, so no generator state is saved. Of several
ranks, rank 0 holds the file: it has what one process would write, so a run goes on with any number of ranks.
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from syncnorm.config import Clients, Run
from syncnorm.federated.server.rounds import Rounds
from syncnorm.training.checkpoints import Checkpoints
from syncnorm.training.ranks.exchange import Ranks
from syncnorm.worlds import checkpoint_id, expect

SECONDS = 30.0
"""Between two checkpoints."""


class Remembers(Protocol):
    """A network whose clients' states can be saved and restored."""

    def remember(self) -> dict[str, Any]:
        """Return the clients' states and the engine's name, as plain data and tensors."""

    def recall(self, known: Mapping[str, Any]) -> None:
        """Restore the state that `remember` returned."""


class Checkpoint:
    """Saves and restores a run in `folder`; of several ranks, every one calls each method."""

    def __init__(
        self,
        folder: Path,
        run: Run,
        rounds: Rounds,
        network: Remembers,
        seconds: float = SECONDS,
        ranks: Ranks | None = None,
    ) -> None:
        self._files = Checkpoints(folder, checkpoint_id(in_one_process(run)))
        self._rounds, self._network = rounds, network
        self._seconds, self._ranks = seconds, ranks or Ranks()
        self._began = self._last = time.monotonic()
        self.seconds_before = 0.0
        """Training time in seconds before the interruption."""

    def save_if_due(self) -> None:
        """Save if the last save was long enough ago, by the clock of rank 0."""
        if self._ranks.told(lambda: time.monotonic() - self._last >= self._seconds):
            self.save()
            self._last = time.monotonic()

    def save(self) -> None:
        """Save the state after the rounds played so far."""
        seconds = self.seconds_before + time.monotonic() - self._began
        clients = self._network.remember()
        if self._ranks.rank == 0:
            self._files.write({"seconds": seconds, "rounds": self._rounds.remember(), **clients})

    def resume(self) -> bool:
        """Resume from this run's newest readable checkpoint; return whether there was one."""
        content = self._ranks.told(self._newest)
        if content is None:
            return False
        self.seconds_before = content["seconds"]
        self._rounds.recall(content["rounds"])
        self._network.recall(content)
        return True

    def _newest(self) -> dict[str, Any] | None:
        expected = self._rounds.remember().keys()  # with others, another version wrote it
        return next((content for content in self._files.read() if content["rounds"].keys() == expected), None)


def in_one_process(run: Run) -> Run:
    """Return the run of one process that a run over ranks equals; any other run is returned unchanged."""
    world = expect(run, Clients)
    if world.engine != "torchrun":
        return run
    return replace(run, world=replace(world, engine=world.rank_engine, ranks=None, rank_engine="auto"))
