"""Progress of a run while it trains: for a callback, and as a line on a terminal."""

import math
import sys
import time
from collections.abc import Callable
from typing import TextIO

from syncnorm.config import Execution, Progress, silent

REPORT_SECONDS = 0.5
"""Seconds between two reports, except at the end of an epoch or round."""


class Pace:
    """Reports progress at most twice a second, and always at the end of each epoch or round.

    Args:
        execution: holds the callback.
        unit: "epoch" or "round".
        total: number of units.
        steps: steps per unit.
        begin: the step at which this process starts.
        runs: number of runs that train in one computation.
    """

    def __init__(
        self, execution: Execution, unit: str, total: int, steps: int = 1, begin: int = 0, runs: int = 1
    ) -> None:
        self._listener = execution.report or line_on(sys.stderr)
        self._unit, self._total, self._steps, self._begin, self._runs = unit, total, steps, begin, runs
        self._started = self._last = time.monotonic()

    @property
    def heard(self) -> bool:
        """Whether anybody listens."""
        return self._listener is not silent

    def due(self) -> bool:
        """Return whether it is time for the next report."""
        return self.heard and time.monotonic() - self._last >= REPORT_SECONDS

    def tell(self, step: int, loss: float | None = None, metrics: dict[str, float] | None = None) -> None:
        """Report that `step` steps are done; `metrics` are those of the last unit, if it has just ended."""
        if not self.heard:
            return
        self._last = time.monotonic()
        rate = (step - self._begin) / max(self._last - self._started, 1e-9)
        all_steps = self._steps * self._total
        left = (all_steps - step) / rate if rate else None
        done, fraction = step // self._steps, step / all_steps
        self._listener(Progress(done, self._total, self._unit, fraction, rate, loss, left, metrics or {}, self._runs))


def line_on(stream: TextIO) -> Callable[[Progress], None]:
    """Return a callback that shows progress as one updated line; `silent` if `stream` is not a terminal."""
    if not stream.isatty():
        return silent
    shown = 0

    def show(progress: Progress) -> None:
        nonlocal shown
        text = words(progress)
        end = "\n" if progress.done == progress.total else ""
        stream.write(f"\r{text.ljust(shown)}{end}")
        stream.flush()
        shown = len(text)

    return show


def words(progress: Progress) -> str:
    """Return e.g. "epoch 3/10, 120 steps/s, loss 0.31, 1 min 20 s left"."""
    now = min(progress.done + 1, progress.total)
    together = f" of {progress.runs} runs at once" if progress.runs > 1 else ""
    parts = [f"{progress.unit} {now}/{progress.total}{together}"]
    if progress.steps_per_second:
        each = "rounds" if progress.unit == "round" else "steps"
        parts.append(f"{progress.steps_per_second:.3g} {each}/s")
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.3g}")
    if progress.seconds_left is not None and math.isfinite(progress.seconds_left):
        parts.append(f"{span(progress.seconds_left)} left")
    return ", ".join(parts)


def span(seconds: float) -> str:
    """Return a length of time in its two largest units: "45 s", "1 min 20 s", "2 h 5 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def counted(number: int, noun: str) -> str:
    """Return "1 run" or "2 runs"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
