"""Samples that a process has read, kept for its next run: another seed splits the same samples."""

from collections.abc import Callable

from syncnorm.data.raw import Pixels, Signals

LIMIT = 1 << 30
"""Bytes that are kept; the newest samples are kept whatever their size."""


class Memory:
    """The samples that were used last, by key."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._kept: dict[str, Pixels | Signals] = {}

    def get(self, key: str, read: Callable[[], Pixels | Signals]) -> Pixels | Signals:
        """Return the samples of `key`, which `read` reads if they are not kept; those unused longest are dropped."""
        found = self._kept.pop(key) if key in self._kept else read()
        self._kept[key] = found
        while len(self._kept) > 1 and sum(map(_bytes, self._kept.values())) > self._limit:
            del self._kept[next(iter(self._kept))]
        return found

    def clear(self) -> None:
        """Drop everything."""
        self._kept.clear()


def _bytes(samples: Pixels | Signals) -> int:
    return samples.train_x.nbytes + samples.test_x.nbytes
