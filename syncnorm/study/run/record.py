"""What receives a run's events: the results folder, the progress display, the trackers."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from syncnorm.config import ALONE, Progress, Result, Run, run_id
from syncnorm.errors import UserError
from syncnorm.study.plan.about import about_plan
from syncnorm.study.rows import REPORTED, TUNING, Results, failed_row, finished_row, read
from syncnorm.study.run.label import Label
from syncnorm.study.run.processes.attempt import Failure
from syncnorm.study.run.processes.events import Ended
from syncnorm.study.run.progress import Meter
from syncnorm.study.run.schedule import Schedule
from syncnorm.study.run.store import Store
from syncnorm.study.run.tracking.trackers import STALL_SECONDS, Kind, Mode, Tracker

INTERRUPTED_SECONDS = 3.0


class Record:
    """All receivers of a run's events."""

    def __init__(
        self,
        schedule: Schedule,
        store: Store,
        trackers: Sequence[Tracker],
        label: Label,
        command: str = "",
    ) -> None:
        self.schedule = schedule
        self.meter = Meter(schedule.total, schedule.done)
        self.results: Results | None = None
        """What the last report was made from."""
        self._store, self._trackers, self._label, self._command = store, trackers, label, command
        self._apart: set[str] = set()
        self._grown()

    def started(self, run: Run) -> None:
        """A run started."""
        self.meter.started(self._label(run))
        for tracker in self._trackers:
            tracker.started(run)

    def advanced(self, run: Run, progress: Progress) -> None:
        """A run reported progress."""
        self.meter.advanced(self._label(run), progress)
        for tracker in self._trackers:
            tracker.advanced(run, progress)

    def moved(self, run: Run, why: str) -> None:
        """A run lost its place, and goes on elsewhere."""
        self.meter.moved(self._label(run), why)

    def ended(self, end: Ended) -> None:
        """A run gave a result, or failed."""
        outcome, study = end.outcome, self.schedule.plan.study.name
        purpose = TUNING if TUNING in self.schedule.known[run_id(end.run)].roles else REPORTED
        if isinstance(outcome, Result):
            row = finished_row(study, outcome, purpose)
            self._say_apart(outcome)
        else:
            error, detail = outcome.error, outcome.detail
            row = failed_row(study, end.run, error, end.seconds, end.environment, detail, purpose)
        self._store.append(row, keep_checkpoint=isinstance(outcome, Failure) and outcome.lost)
        error = outcome.error if isinstance(outcome, Failure) else ""
        self.meter.ended(self._label(end.run), error, diverged="diverged" in row.get("details", {}))
        if self.schedule.ended(row):
            self._grown()

    def _say_apart(self, result: Result) -> None:
        """Say once for each reason why a run that was to be stacked has trained by itself."""
        how, _, why = result.environment.get("stack", "").partition(": ")
        if how == ALONE and why and why not in self._apart:
            self._apart.add(why)
            self.meter.say(f"note: runs are trained one by one, not stacked: {why}.")

    def close(self, stall: float = STALL_SECONDS) -> None:
        """Write the report of the finished runs, and let the trackers catch up unless they stall."""
        from syncnorm.study.report.report import write_report  # imports plotting, which is slow to start

        try:
            self.results = read(self._store.directory)
            write_report(self._store.directory, results=self.results)
            for tracker in self._trackers:
                tracker.reported()
        except UserError:
            raise
        except Exception as error:  # rows are the source of truth: a failing figure must not fail the study
            again = f"all rows are kept, try `syncnorm report {self._store.directory}`"
            self.meter.say(f"warning: there is no new report ({type(error).__name__}: {error}): {again}.")
        for tracker in self._trackers:
            tracker.close(stall)
            if tracker.warning:
                self.meter.say(f"warning: {tracker.warning}")

    def _grown(self) -> None:
        """Store the runs that are known now, and tell who counts and names them."""
        schedule = self.schedule
        if schedule.plan.lines:  # without tuning all runs were known as the folder was opened
            self._store.describe(about_plan(schedule.plan, schedule.rows, self._command))
        self.meter.expect(schedule.total, schedule.done)
        labels = {name: self._label(one.run) for name, one in schedule.known.items()} if self._trackers else {}
        for tracker in self._trackers:
            tracker.known(labels)


@contextmanager
def recording(record: Record, notes: Sequence[str]) -> Iterator[None]:
    """Show progress inside the context, and close the record at its end or after an interrupt."""
    try:
        with _terminable(), record.meter:
            for note in notes:
                record.meter.say(note)
            yield
    except KeyboardInterrupt:
        record.close(INTERRUPTED_SECONDS)
        raise
    record.close()


def start_trackers(directory: Path, wandb: Mode, track: Sequence[Kind]) -> list[Tracker]:
    """Start W&B's tracker according to its mode, and the other named trackers."""
    others: list[Kind] = [kind for kind in dict.fromkeys(track) if kind != "wandb"]
    return [Tracker(directory, "wandb", wandb), *(Tracker(directory, kind) for kind in others)]


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM interrupt the study like Ctrl-C; schedulers send it before they kill."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set a handler
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
