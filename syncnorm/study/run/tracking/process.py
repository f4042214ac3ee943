"""The process of one experiment tracker: `python -m syncnorm.study.run.tracking.process DIR wandb|tensorboard MODE`.

It reads events from standard input, one JSON object per line, until that is closed. `DIR/KIND/mirrored` lists the
rows that the tracker has, so that a killed study's rows follow when the study is started again. W&B's files are in
`DIR/wandb` (`wandb sync DIR/wandb/offline-run-*` sends offline ones), TensorBoard's in `DIR/tensorboard`.
"""

import json
import os
import signal
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from syncnorm.registry import extend_path
from syncnorm.study.rows import Row, rows_after, stored_about
from syncnorm.study.run.tracking.sinks import SINKS, Followed, Sink
from syncnorm.study.run.tracking.trackers import STALL_SECONDS, WAITING, folder_id, marks

PAUSE_SECONDS = 1.0


class Follower:
    """Passes a study's events and rows to a tracker.

    Events and rows come by different ways, so a run's row may be here before the word that the run started.
    """

    def __init__(self, directory: Path, sink: Sink, marks: Path) -> None:
        self._directory, self._sink, self._marks = directory, sink, marks
        self._folder = folder_id(directory)
        self._labels: dict[str, str] = {}
        self._reported = False
        self._open: dict[str, Followed] = {}
        self._ended: set[str] = set()
        self._rows = 0
        self._waiting: dict[str, Row] = {}
        self._marked = set(marks.read_text().splitlines()) if marks.exists() else set[str]()

    def hear(self, news: dict[str, Any]) -> None:
        """Process one event."""
        if "labels" in news:
            self._labels.update(news["labels"])
        elif "started" in news and news["started"] not in self._ended:
            self._start(news["started"], news["config"])
        elif "advanced" in news and (followed := self._open.get(news["advanced"])):
            followed.advance(news)
        elif "reported" in news:
            self._reported = True

    def catch_up(self) -> None:
        """Pass on every row that has no mark yet, and mark it; then the report, if there is a new one."""
        for row in rows_after(self._directory, self._rows):
            self._rows += 1
            if _mark_of(row) not in self._marked:
                self._waiting[row["run_id"]] = row
        for run, row in list(self._waiting.items()):
            self._start(run, row["config"]).end(row)
            del self._open[run], self._waiting[run]
            self._ended.add(run)
            self._mark(_mark_of(row))

        if self._reported:
            self._sink.report(self._directory, self._study, self._folder)
            self._reported = False
            self._mark("report")

    def leave(self) -> None:
        """Close the runs that have no row; they continue when the study does."""
        for followed in self._open.values():
            followed.leave()

    def forget(self) -> None:
        """Forget the open runs after a failure, since they may be broken."""
        self._open.clear()

    @cached_property
    def _study(self) -> str:
        about = stored_about(self._directory)
        assert about is not None, "a study is described before it is tracked"
        return str(about["study"])

    def _start(self, run: str, config: dict[str, Any]) -> Followed:
        if run not in self._open:
            label = self._labels.get(run) or run
            self._open[run] = self._sink.start(self._directory, self._study, f"{run}-{self._folder}", label, config)
        return self._open[run]

    def _mark(self, mark: str) -> None:
        self._marked.add(mark)
        self._marks.parent.mkdir(exist_ok=True)
        with self._marks.open("a") as file:
            file.write(f"{mark}\n")


def _mark_of(row: Row) -> str:
    """Name a row: a run that failed or whose code changed has another one later."""
    return f"{row['run_id']} {'failed' if 'error' in row else 'finished'} {row['finished']}"


def main() -> None:
    """Follow a study until standard input closes, then pass on the rest."""
    directory, kind, mode = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    os.nice(10)
    extend_path()
    closed, labels, news = threading.Event(), deque[str](), deque[str](maxlen=WAITING)
    threading.Thread(target=_watch, args=(os.getppid(), closed, labels, news), daemon=True).start()
    reports, sys.stdout = sys.stdout, sys.stderr
    follower = Follower(directory, SINKS[kind](mode), marks(directory, kind))
    failed = False
    while True:
        last = closed.is_set()
        try:
            if last or not failed:
                for waiting in (labels, news):
                    while waiting:
                        follower.hear(json.loads(waiting.popleft()))
                follower.catch_up()
                if last:
                    follower.leave()
        except BaseException as error:
            if not failed or last:
                words = " ".join(str(error).split())
                print(f"{type(error).__name__}: {words[:200]}", file=reports, flush=True)
            failed = True
            follower.forget()
        if last:
            os._exit(0)
        closed.wait(PAUSE_SECONDS)


def _watch(parent: int, closed: threading.Event, labels: deque[str], news: deque[str]) -> None:
    """Collect events, and notice the end of the study; if it was killed, allow a bounded time for the rest."""
    for line in iter(sys.stdin.readline, ""):
        (labels if line.startswith('{"labels"') else news).append(line)
    closed.set()
    time.sleep(STALL_SECONDS)
    if os.getppid() != parent:
        with suppress(ProcessLookupError):
            os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
