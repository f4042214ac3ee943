"""Work with a timeout."""

from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar

import torch

Value = TypeVar("Value")
Task = tuple[Callable[[], Any], SimpleQueue[tuple[Any, BaseException | None]]]


class TimedOut(Exception):
    """The work took too long."""


class TimeoutRunner:
    """Runs work in a separate thread, and stops waiting for it after a timeout.

    Python cannot stop a thread: work that timed out runs until it or the process ends. The next work gets a new
    thread.
    """

    def __init__(self) -> None:
        self._tasks: SimpleQueue[Task] | None = None

    def run(self, work: Callable[[], Value], seconds: float) -> Value:
        """Return what `work()` returns, or raise what it raises; `TimedOut` if it takes longer than `seconds`."""
        if self._tasks is None:
            self._tasks = SimpleQueue()
            Thread(target=_serve, args=(self._tasks, torch.get_num_threads()), daemon=True).start()
        outcome: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._tasks.put((work, outcome))
        try:
            value, error = outcome.get(timeout=max(seconds, 0.0))
        except Empty:
            self._tasks = None
            raise TimedOut from None
        if error is not None:
            raise error
        return value  # type: ignore[no-any-return]


def _serve(tasks: SimpleQueue[Task], threads: int) -> None:
    torch.set_num_threads(threads)  # a setting of each thread
    while True:
        work, outcome = tasks.get()
        try:
            outcome.put((work(), None))
        except BaseException as error:  # passed on, including SystemExit
            outcome.put((None, error))
