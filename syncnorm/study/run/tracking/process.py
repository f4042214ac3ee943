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
from pathlib import Path
from typing import Any

from syncnorm.registry import extend_path
from syncnorm.study.rows import read
from syncnorm.study.run.tracking.sinks import SINKS, Followed, Sink
from syncnorm.study.run.tracking.trackers import STALL_SECONDS, WAITING, folder_id, marks

PAUSE_SECONDS = 1.0


class Follower:
    """Passes a study's events and rows to a tracker."""

    def __init__(self, directory: Path, sink: Sink, marks: Path, labels: dict[str, str]) -> None:
        self._directory, self._sink, self._marks, self._labels = directory, sink, marks, labels
        self._folder = folder_id(directory)
        self._reported = False
        self._open: dict[str, Followed] = {}

    def hear(self, news: dict[str, Any]) -> None:
        """Process one event."""
        if "labels" in news:
            self._labels.update(news["labels"])
        elif "started" in news:
            self._start(news["started"], news["config"])
        elif "advanced" in news and (followed := self._open.get(news["advanced"])):
            followed.advance(news)
        elif "reported" in news:
            self._reported = True

    def catch_up(self) -> None:
        """Pass on every row that has no mark yet, and mark it; then the report, if there is a new one."""
        marked = set(self._marks.read_text().splitlines()) if self._marks.exists() else set()
        for run, row in read(self._directory).rows.items():
            mark = f"{run} {'failed' if 'error' in row else 'finished'}"
            if mark not in marked:
                self._start(run, row["config"]).end(row)
                del self._open[run]
                self._mark(mark)

        if self._reported:
            self._reported = False
            self._sink.report(self._directory, read(self._directory).about.study, self._folder)
            self._mark("report")

    def leave(self) -> None:
        """Close the runs that have no row; they continue when the study does."""
        for followed in self._open.values():
            followed.leave()

    def _start(self, run: str, config: dict[str, Any]) -> Followed:
        if run not in self._open:
            study = read(self._directory).about.study
            label = self._labels.get(run) or run
            self._open[run] = self._sink.start(self._directory, study, f"{run}-{self._folder}", label, config)
        return self._open[run]

    def _mark(self, mark: str) -> None:
        self._marks.parent.mkdir(exist_ok=True)
        with self._marks.open("a") as file:
            file.write(f"{mark}\n")


def main() -> None:
    """Follow a study until standard input closes, then pass on the rest."""
    directory, kind, mode = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    os.nice(10)
    extend_path()
    closed, news = threading.Event(), deque[str](maxlen=WAITING)
    threading.Thread(target=_watch, args=(os.getppid(), closed, news), daemon=True).start()
    reports, sys.stdout = sys.stdout, sys.stderr
    follower: Follower | None = None
    labels: dict[str, str] = {}
    failed = False
    while True:
        last = closed.is_set()
        try:
            if last or not failed:
                # Reopened after a failure: what was open may be broken.
                follower = follower or Follower(directory, SINKS[kind](mode), marks(directory, kind), labels)
                while news:
                    follower.hear(json.loads(news.popleft()))
                follower.catch_up()
                if last:
                    follower.leave()
        except BaseException as error:
            if not failed or last:
                words = " ".join(str(error).split())
                print(f"{type(error).__name__}: {words[:200]}", file=reports, flush=True)
            failed, follower = True, None
        if last:
            os._exit(0)
        closed.wait(PAUSE_SECONDS)


def _watch(parent: int, closed: threading.Event, news: deque[str]) -> None:
    """Collect events, and notice the end of the study; if it was killed, allow a bounded time for the rest."""
    news.extend(iter(sys.stdin.readline, ""))
    closed.set()
    time.sleep(STALL_SECONDS)
    if os.getppid() != parent:
        with suppress(ProcessLookupError):
            os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
