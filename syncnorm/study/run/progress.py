"""How far a study is: a bar on a terminal, a line now and then elsewhere."""

import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

BAR_WIDTH = 20
LINE_SECONDS = 10.0
LINE_SHARE = 0.05
LINE_SECONDS_AT_MOST = 300.0


class Meter:
    """Counts the ends of runs and shows them on `stream`; a context manager.

    Without a terminal a line comes every 5 % but not within 10 seconds of the last, and at least every 5
    minutes in which a run ended. An error is shown once, however many runs it ends.
    """

    def __init__(
        self,
        total: int,
        done: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream or sys.stderr
        self._clock = clock
        self._begin = clock()
        self._before, self._done, self._total, self._failed = done, done, total, 0
        self._running: list[str] = []
        self._errors: set[str] = set()
        self._line_done, self._line_at = done, self._begin
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if self._stream.isatty():
            columns = TextColumn("{task.description}"), BarColumn(BAR_WIDTH), TextColumn("{task.fields[running]}")
            self._bar = Progress(*columns, console=Console(file=self._stream), refresh_per_second=2)
            self._task = self._bar.add_task("", total=total, completed=done, running="")

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        self._show()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.clear()
        self._show()
        if self._bar:
            self._bar.stop()
        elif self._line_done < self._done:
            self._line()

    def started(self, label: str) -> None:
        """A run started."""
        self._running.append(label)
        self._show()

    def ended(self, label: str, error: str = "") -> None:
        """A run ended, with `error` if it failed."""
        if label in self._running:
            self._running.remove(label)
        self._done += 1
        self._failed += bool(error)
        if error and error not in self._errors:
            self._errors.add(error)
            self.say(f"failed: {label}: {error}")
        self._show()
        since = self._clock() - self._line_at
        step = (self._done - self._line_done) / max(self._total, 1)
        due = (since >= LINE_SECONDS and step >= LINE_SHARE) or since >= LINE_SECONDS_AT_MOST
        if due and not self._bar:
            self._line()

    def say(self, text: str) -> None:
        """Print a line, above the bar if there is one; where nobody reads it any more, go on."""
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            with suppress(OSError):
                print(text, file=self._stream, flush=True)

    def text(self) -> str:
        """Return e.g. "12/48 runs, 0 failed, 1 min 20 s left"."""
        counts = f"{self._done}/{self._total} runs, {self._failed} failed"
        elapsed, new = self._clock() - self._begin, self._done - self._before
        if self._done == self._total:
            return f"{counts}, {span(elapsed)}"
        return f"{counts}, {span(elapsed / new * (self._total - self._done))} left" if new else counts

    def _line(self) -> None:
        self._line_done, self._line_at = self._done, self._clock()
        self.say(self.text())

    def _show(self) -> None:
        if self._bar:
            text = self.text()
            room = max(0, self._bar.console.width - len(text) - BAR_WIDTH - 3)
            running = textwrap.shorten("; ".join(self._running), room, placeholder=" ...") if room > 4 else ""
            self._bar.update(self._task, description=text, completed=self._done, running=running)


def span(seconds: float) -> str:
    """Return a length of time in its two largest units: "45 s", "1 min 20 s", "2 h 5 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
