"""A federated run's state in one file: interrupted runs resume bit-identically.

Every random choice is derived from the run's seed, round and client, so no generator state is saved.
"""

import time
from pathlib import Path

from syncnorm.config import Run
from syncnorm.federated.client.states import kept_by
from syncnorm.federated.server.network import InProcess
from syncnorm.federated.server.rounds import Rounds
from syncnorm.training.checkpoints import Checkpoints
from syncnorm.worlds import checkpoint_id

SECONDS = 30.0
"""Between two checkpoints."""


class Checkpoint:
    """Saves and restores a run in `folder`."""

    def __init__(self, folder: Path, run: Run, rounds: Rounds, network: InProcess, seconds: float = SECONDS) -> None:
        self._files, self._rounds, self._network = Checkpoints(folder, checkpoint_id(run)), rounds, network
        self._seconds = seconds
        self._began = self._last = time.monotonic()
        self.seconds_before = 0.0
        """Training time in seconds before the interruption."""

    def save_if_due(self) -> None:
        """Save if the last save was long enough ago."""
        if time.monotonic() - self._last >= self._seconds:
            self.save()
            self._last = time.monotonic()

    def save(self) -> None:
        """Save the state after the rounds played so far."""
        self._files.write(
            {
                "seconds": self.seconds_before + time.monotonic() - self._began,
                "engine": self._network.engine.name,
                "rounds": self._rounds.remember(),
                "clients": dict(kept_by(self._network.states)),
            }
        )

    def resume(self) -> bool:
        """Resume from this run's newest readable checkpoint; return whether there was one."""
        for content in self._files.read():
            if content["rounds"].keys() == self._rounds.remember().keys():  # otherwise another version wrote it
                self.seconds_before = content["seconds"]
                self._network.engine.name = content["engine"]
                self._rounds.recall(content["rounds"])
                for client, own in content["clients"].items():
                    self._network.states.put(client, own)
                return True
        return False
