"""A federated run's state in one file: interrupted runs resume bit-identically.

Every random choice is derived from the run's seed, round and client, so no generator's state is among it.
"""

import os
import time
from pathlib import Path
from typing import Any

import torch

from syncnorm.config import Run, run_id
from syncnorm.federated.client.states import kept_by
from syncnorm.federated.server.network import InProcess
from syncnorm.federated.server.rounds import Rounds

SECONDS = 30.0
"""Between two checkpoints."""


class Checkpoint:
    """Saves and restores a run in `folder`: the newest two, written to a temporary file, synced, renamed."""

    def __init__(self, folder: Path, run: Run, rounds: Rounds, network: InProcess, seconds: float = SECONDS) -> None:
        self._folder, self._id, self._rounds, self._network = folder, run_id(run), rounds, network
        self._seconds = seconds
        self._began = self._last = time.monotonic()
        self.seconds_before = 0.0
        """Seconds that the run took before it was interrupted."""

    def save_if_due(self) -> None:
        """Save if the last save was long enough ago."""
        if time.monotonic() - self._last >= self._seconds:
            self.save()
            self._last = time.monotonic()

    def save(self) -> None:
        """Save the state after the rounds played so far."""
        self._folder.mkdir(parents=True, exist_ok=True)
        content = {
            "run_id": self._id,
            "seconds": self.seconds_before + time.monotonic() - self._began,
            "engine": self._network.engine.name,
            "rounds": self._rounds.remember(),
            "clients": dict(kept_by(self._network.states)),
        }
        newest = self._folder / "newest.pt"
        temporary = self._folder / "unfinished.pt"
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        if newest.exists():
            newest.replace(self._folder / "previous.pt")
        temporary.replace(newest)

    def resume(self) -> bool:
        """Resume from the newest readable checkpoint; return whether there was one of this run."""
        for name in ("newest.pt", "previous.pt"):
            content = _read(self._folder / name)
            if content is not None and self._fits(content):
                self.seconds_before = content["seconds"]
                self._network.engine.name = content["engine"]
                self._rounds.recall(content["rounds"])
                for client, own in content["clients"].items():
                    self._network.states.put(client, own)
                return True
        return False

    def _fits(self, content: dict[str, Any]) -> bool:
        """Return whether a checkpoint is of this run, and written by a version that keeps the same parts."""
        same_parts = content.get("rounds", {}).keys() == self._rounds.remember().keys()
        return bool(same_parts) and content.get("run_id") == self._id


def _read(path: Path) -> dict[str, Any] | None:
    """Return the content of a checkpoint; None where there is none, or where it is damaged."""
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = torch.load(path, weights_only=True)
    except Exception:  # a damaged file may raise anything; the one before it is whole
        return None
    return content
