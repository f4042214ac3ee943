"""What the parts share: draws that follow from names, and processes that must end in time."""

import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from syncnorm.seeds import derive

HANGS = 150.0
"""Seconds in which processes have to end that have nothing to wait for."""


class Fate:
    """Draws for one case; the same name draws the same."""

    def __init__(self, *name: object) -> None:
        self._name, self._drawn = [str(part) for part in name], 0

    def whole(self, low: int, high: int) -> int:
        """Return a whole number from `low` to `high`."""
        self._drawn += 1
        return low + derive("faults", self._drawn, *self._name) % (high - low + 1)

    def share(self) -> float:
        """Return a number in [0, 1)."""
        return self.whole(0, 2**40 - 1) / 2**40

    def one(self, among: Iterable[Any]) -> Any:
        """Return one of several things."""
        things = list(among)
        return things[self.whole(0, len(things) - 1)]


def until(true: Callable[[], Any], seconds: float = HANGS, what: str = "") -> None:
    """Wait until something is true; it hangs if that takes longer."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"hung: {what or 'waited in vain'} for {seconds:.0f} s")
        time.sleep(0.002)


def codes_of(children: Iterable[int], seconds: float = HANGS) -> list[int]:
    """Wait for forked processes, and return their exit codes; those that hang say where, and are killed."""
    codes: dict[int, int] = {}
    order = list(children)

    def over() -> bool:
        for child in set(order) - codes.keys():
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                codes[child] = os.waitstatus_to_exitcode(status)
        return len(codes) == len(order)

    try:
        until(over, seconds, "a process did not end")
    except TimeoutError:
        for number in (signal.SIGUSR1, signal.SIGKILL):  # the first has a process say where it stands
            for child in set(order) - codes.keys():
                os.kill(child, number)
            time.sleep(0.5)
        until(over, seconds)
        raise
    return [codes[child] for child in order]


def below(pid: int) -> list[int]:
    """Return the processes that a process has started, and those that they have."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(entry.name))
    found, new = [], [pid]
    while new:
        new = [child for one in new for child in parents.get(one, [])]
        found += new
    return sorted(found)


def alive(pid: int) -> bool:
    """Return whether a process runs; one that has ended and that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
