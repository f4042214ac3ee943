"""Whether any thread of the process is inside a context, for what is asked at every call of a layer."""

from threading import Lock


class Opened:
    """Counts a context's openings. `any` is a plain attribute, which layers read and a compiler guards."""

    any = False

    def __init__(self) -> None:
        self._number, self._lock = 0, Lock()

    def count(self, change: int) -> None:
        """Count a context that opens (1) or closes (-1)."""
        with self._lock:
            self._number += change
            self.any = self._number > 0
