"""Signs of life of the ranks of a group, by which one that waits in their store notices that another is gone.

A collective fails when a rank's connection closes. The store does not: without this, the others would wait there for
the group's whole timeout, half an hour.
"""

import time
from collections.abc import Sequence
from typing import Any

BEAT = 5.0
"""Seconds between two signs of life."""
SILENT = 60.0
"""Seconds without one after which a rank counts as gone; a process that computes gives them from another thread."""


class Pulse:
    """The signs that this rank gives, and those that it has seen of the others."""

    def __init__(self, store: Any, prefix: str, rank: int, ranks: Sequence[int]) -> None:
        self._store, self._prefix, self._rank = store, prefix, rank
        self._others = [other for other in ranks if other != rank]
        self._beats = 0
        self._seen: dict[int, tuple[bytes, float]] = {}
        self._looked = -BEAT

    def beat(self) -> None:
        """Give a sign of life."""
        self._beats += 1
        self._store.set(f"{self._prefix}/beat/{self._rank}", str(self._beats))

    def silent(self) -> list[int]:
        """Return the ranks that have given signs of life, and none in the last `SILENT` seconds."""
        now = time.monotonic()
        if now - self._looked >= BEAT:
            self._looked = now
            for rank in self._others:
                key = f"{self._prefix}/beat/{rank}"
                if self._store.check([key]) and (beat := self._store.get(key)) != self._seen.get(rank, (b"",))[0]:
                    self._seen[rank] = (beat, now)
        return [rank for rank, (_, since) in self._seen.items() if now - since > SILENT]
