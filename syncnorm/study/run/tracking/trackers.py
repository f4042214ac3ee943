"""Experiment trackers that follow a study while it trains, without failing or delaying a run.

Each tracker is a separate process (`process.py` of this folder), which receives events over a pipe. A thread writes
to the pipe from a bounded queue: if the process is slow, the oldest events are dropped. The rows of the results
folder are the source of truth: at the end, and at the study's next start, the tracker gets the rows that it lacks.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from syncnorm.config import Progress, Run, describe, run_id
from syncnorm.files import write_file
from syncnorm.registry import environment_of_children
from syncnorm.study.rows import strict

Mode = Literal["auto", "off", "offline", "online"]
Kind = Literal["wandb", "tensorboard"]
NAMES: dict[Kind, tuple[str, str]] = {"wandb": ("W&B", "wandb"), "tensorboard": ("TensorBoard", "tensorboard")}
"""For each tracker, its name in messages, and the package that it needs."""

STALL_SECONDS = 20.0
WAITING = 1000
"""Maximum number of events waiting for a tracker."""
NEWS_SECONDS = 10.0
"""Seconds between two events of a run, except at the end of an epoch or round."""
FOLDER = ".tracking"


class Tracker:
    """One tracker's process, seen from the study.

    Args:
        directory: the results folder.
        kind: which tracker.
        mode: W&B's mode, "online" or "offline"; "auto" is online if WANDB_API_KEY is set, "off" starts nothing.
        labels: readable names of the study's runs, by id; `known` gives further ones.
    """

    def __init__(
        self, directory: Path, kind: Kind = "wandb", mode: Mode = "auto", labels: Mapping[str, str] | None = None
    ) -> None:
        self._name, package = NAMES[kind]
        self._marks = marks(directory, kind)
        self._process: subprocess.Popen[str] | None = None
        self._news: deque[dict[str, Any]] = deque(maxlen=WAITING)
        self._labels = dict(labels or {})
        self._waiting = threading.Condition()
        self._closing = False
        self._last: dict[str, float] = {}
        self.warning = ""
        """One line that says what went wrong; otherwise empty."""
        if mode == "auto":
            mode = "online" if os.environ.get("WANDB_API_KEY") else "offline"
        if mode == "off":
            return
        if find_spec(package) is None:
            self.warning = f"{self._name} is off: {package} is not installed."
            return
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "syncnorm.study.run.tracking.process", str(directory), kind, mode],
                env=environment_of_children(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )
        except OSError as error:
            self.warning = f"{self._name} is off: {error.strerror}."
            return
        threading.Thread(target=self._write, args=(self._process,), daemon=True).start()

    def known(self, labels: Mapping[str, str]) -> None:
        """Give further readable names of the study's runs, by id."""
        with self._waiting:
            self._labels.update(labels)
            self._waiting.notify()

    def started(self, run: Run) -> None:
        """Report that a run started."""
        self._tell({"started": run_id(run), "config": describe(run)})

    def advanced(self, run: Run, progress: Progress) -> None:
        """Report a run's progress, not too often."""
        name, now = run_id(run), time.monotonic()
        if progress.metrics or now - self._last.get(name, 0.0) >= NEWS_SECONDS:
            self._last[name] = now
            self._tell({"advanced": name, **strict(asdict(progress))})

    def reported(self) -> None:
        """Report a new report in the results folder."""
        self._tell({"reported": True})

    def close(self, stall: float = STALL_SECONDS) -> None:
        """Wait until the tracker has everything or has stalled for `stall` seconds; then end its process."""
        process = self._process
        if process is None or process.stdout is None:
            return
        self._process = None
        with self._waiting:
            self._closing = True
            self._waiting.notify()
        try:
            size = -1
            while size < (size := _size(self._marks)):
                with suppress(subprocess.TimeoutExpired):
                    process.wait(stall)
                    break
        finally:
            stalled = process.poll() is None
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        lines = [] if stalled else process.stdout.read().splitlines()
        if stalled or lines or process.returncode:
            why = "no answer" if stalled else lines[0] if lines else f"ended with code {process.returncode}"
            self.warning = f"{self._name}: {why}; what is missing there follows at the study's next start."

    def _tell(self, news: dict[str, Any]) -> None:
        if self._process:
            with self._waiting:
                self._news.append(news)
                self._waiting.notify()

    def _write(self, process: subprocess.Popen[str]) -> None:
        """Write events to the process as they come; the end of the study closes the pipe."""
        assert process.stdin is not None
        with suppress(OSError, ValueError):  # the process may have ended
            while True:
                with self._waiting:
                    self._waiting.wait_for(lambda: self._labels or self._news or self._closing)
                    if self._labels:
                        news, self._labels = {"labels": self._labels}, {}
                    elif self._news:
                        news = self._news.popleft()
                    else:
                        break
                process.stdin.write(json.dumps(news) + "\n")
                process.stdin.flush()
        with suppress(OSError):
            process.stdin.close()


def folder_id(directory: Path) -> str:
    """Return a results folder's unique id, drawn at random on first use."""
    path = directory / FOLDER
    if not path.exists():
        write_file(path, json.dumps({"id": secrets.token_hex(4)}) + "\n")
    name: str = json.loads(path.read_text())["id"]
    return name


def marks(directory: Path, kind: str) -> Path:
    """Return the file that lists the rows a tracker has."""
    return directory / kind / "mirrored"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
