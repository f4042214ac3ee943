"""Progress of a study: bars on a terminal, occasional lines elsewhere."""

import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from syncnorm.config import Progress
from syncnorm.progress import span, words

BAR_WIDTH = 20
SHOWN = 8
"""Maximum number of runs with a bar; the first ones have one."""
LINE_SECONDS = 10.0
LINE_SHARE = 0.05
LINE_SECONDS_AT_MOST = 300.0


class Meter:
    """Counts finished runs and shows them on `stream`, with each run's progress; a context manager.

    Without a terminal, it prints a line every 5 %, but at least 10 seconds apart, and every 5 minutes with news. An
    error is shown once, however many runs it ends.
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
        self._before, self._done, self._total = done, done, total
        self._failed = self._diverged = 0
        self._running: dict[str, str] = {}
        """Progress of each run, by label."""
        self._errors: set[str] = set()
        self._line_done, self._line_at = done, self._begin
        self._bars: Bars | None = None
        self._study = TaskID(0)
        self._tasks: dict[str, TaskID] = {}
        if self._stream.isatty():
            columns = TextColumn("{task.description}"), BarColumn(BAR_WIDTH), TextColumn("{task.fields[text]}")
            self._bars = Bars(*columns, console=Console(file=self._stream), refresh_per_second=2)
            self._study = self._bars.add_task("", total=total, completed=done, text="")

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
        self._show()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for label in list(self._running):
            self._leave(label)
        self._show()
        if self._bars:
            self._bars.stop()
        elif self._line_done < self._done:
            self._line()

    def expect(self, total: int, done: int) -> None:
        """Count so many runs from now on, of which so many have ended: some of them before this study started."""
        self._before += done - self._done
        self._total, self._done = total, done
        if self._bars:
            self._bars.update(self._study, total=total)

    def started(self, label: str) -> None:
        """A run started."""
        self._running[label] = ""
        if self._bars and len(self._tasks) < SHOWN:
            shown = textwrap.shorten(label, max(20, self._bars.console.width // 2 - BAR_WIDTH), placeholder=" ...")
            self._tasks[label] = self._bars.add_task(f"  {shown}", total=1.0, text="")
        self._show()

    def advanced(self, label: str, progress: Progress) -> None:
        """A run reported progress."""
        if label not in self._running:
            return
        self._running[label] = words(progress)
        if self._bars and label in self._tasks:
            self._bars.update(self._tasks[label], completed=progress.fraction, text=self._running[label])
        if not self._bars and self._clock() - self._line_at >= LINE_SECONDS_AT_MOST:
            self._line()

    def moved(self, label: str, why: str) -> None:
        """A run lost its place, and will be started again."""
        self._leave(label)
        self.say(f"note: {label}: {why} It goes on elsewhere, from its checkpoint if that can be read there.")
        self._show()

    def ended(self, label: str, error: str = "", diverged: bool = False) -> None:
        """A run ended, with `error` if it failed; `diverged` says that some of its numbers are not finite."""
        self._leave(label)
        self._done += 1
        self._failed += bool(error)
        self._diverged += diverged
        if error and error not in self._errors:
            self._errors.add(error)
            self.say(f"failed: {label}: {error}")
        self._show()
        since = self._clock() - self._line_at
        step = (self._done - self._line_done) / max(self._total, 1)
        due = (since >= LINE_SECONDS and step >= LINE_SHARE) or since >= LINE_SECONDS_AT_MOST
        if due and not self._bars:
            self._line()

    def say(self, text: str) -> None:
        """Print a line, above the bars if there are any; a closed stream is ignored."""
        if self._bars:
            self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)
            self._bars.refresh()
        else:
            with suppress(OSError):
                print(text, file=self._stream, flush=True)

    def text(self) -> str:
        """Return e.g. "12/48 runs, 0 failed, 1 diverged, 1 min 20 s left"; diverged runs appear only if there are
        any."""
        counts = f"{self._done}/{self._total} runs, {self._failed} failed"
        counts += f", {self._diverged} diverged" if self._diverged else ""
        elapsed, new = self._clock() - self._begin, self._done - self._before
        if self._done == self._total:
            return f"{counts}, {span(elapsed)}"
        return f"{counts}, {span(elapsed / new * (self._total - self._done))} left" if new else counts

    def _leave(self, label: str) -> None:
        self._running.pop(label, None)
        if self._bars and label in self._tasks:
            self._bars.remove_task(self._tasks.pop(label))

    def _line(self) -> None:
        self._line_done, self._line_at = self._done, self._clock()
        running = [f"{label}: {text}" for label, text in self._running.items() if text]
        self.say("; ".join([self.text(), *running[:SHOWN]]))

    def _show(self) -> None:
        if self._bars:
            self._bars.update(self._study, description=self.text(), completed=self._done)
