"""A study's rows in Weights & Biases: a mirror of the results folder that can neither fail nor delay a run.

    python -m syncnorm.study.run.tracking DIR online|offline

follows `runs.jsonl` in a process of its own until its standard input closes. Which rows it has mirrored
stands in `DIR/wandb/mirrored`, so that a killed study's rows follow when the study is started again. Files
lie under `DIR/wandb`; `wandb sync DIR/wandb/offline-run-*` sends offline ones.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from syncnorm.study.rows import read

Mode = Literal["auto", "off", "offline", "online"]

STALL_SECONDS = 20.0
PAUSE_SECONDS = 1.0


class Mirror:
    """The mirror process of a results folder, seen from the study."""

    def __init__(self, directory: Path, mode: Mode) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._marks = _marks(directory)
        self.warning = ""
        """One line that says what went wrong, or empty."""
        if mode == "auto":
            mode = "online" if os.environ.get("WANDB_API_KEY") else "offline"
        if mode == "off":
            return
        if find_spec("wandb") is None:
            self.warning = "W&B mirror is off: wandb is not installed."
            return
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "syncnorm.study.run.tracking", str(directory), mode],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )
        except OSError as error:
            self.warning = f"W&B mirror is off: {error.strerror}."

    def close(self, stall: float = STALL_SECONDS) -> None:
        """Wait until all rows are mirrored, or none was for `stall` seconds; then end the process."""
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            return
        self._process = None
        with suppress(OSError):
            process.stdin.close()
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
            self.warning = f"W&B mirror: {why}; what is missing there follows at the study's next start."


def main() -> None:
    """Mirror rows as they come until standard input closes, then those that are left."""
    directory = Path(sys.argv[1])
    mode: Literal["online", "offline"] = "online" if sys.argv[2] == "online" else "offline"
    os.nice(10)
    closed = threading.Event()
    threading.Thread(target=_watch, args=(os.getppid(), closed), daemon=True).start()
    reports, sys.stdout = sys.stdout, sys.stderr
    failed = False
    while True:
        last = closed.is_set()
        try:
            if last or not failed:
                _mirror_missing(directory, mode)
        except BaseException as error:
            if not failed or last:
                words = " ".join(str(error).split())
                print(f"{type(error).__name__}: {words[:200]}", file=reports, flush=True)
            failed = True
        if last:
            os._exit(0)
        closed.wait(PAUSE_SECONDS)


def _watch(parent: int, closed: threading.Event) -> None:
    """Notice the end of the study; when it was killed, allow a bounded time for what is left."""
    sys.stdin.read()
    closed.set()
    time.sleep(STALL_SECONDS)
    if os.getppid() != parent:
        os.killpg(0, signal.SIGKILL)


def _mirror_missing(directory: Path, mode: Literal["online", "offline"]) -> None:
    """Send every row that has no mark yet, and mark it."""
    marks = _marks(directory)
    marks.parent.mkdir(exist_ok=True)
    marked = set(marks.read_text().splitlines()) if marks.exists() else set()
    for run_id, row in read(directory).rows.items():
        mark = f"{run_id} {'failed' if 'error' in row else 'finished'}"
        if mark not in marked:
            _send(row, directory, mode)
            with marks.open("a") as file:
                file.write(f"{mark}\n")


def _send(row: dict[str, Any], directory: Path, mode: Literal["online", "offline"]) -> None:
    """Write one row as one W&B run: grouped by study, named by its run id."""
    import wandb

    quiet = wandb.Settings(silent=True, console="off", save_code=False, disable_git=True, x_disable_stats=True)
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "syncnorm"),
        group=row["study"],
        id=row["run_id"],
        name=row["run_id"],
        config=row["config"],
        dir=str(directory),
        mode=mode,
        resume="allow",
        settings=quiet,
    )
    history = row.get("history", {})
    step_name = "round" if row["config"]["world"]["kind"] == "clients" else "epoch"
    for step in range(max(map(len, history.values()), default=0)):
        values = {name: series[step] for name, series in history.items() if step < len(series)}
        run.log({step_name: step + 1, **values}, step=step + 1)
    run.summary.update(row.get("metrics", {"error": row.get("error", "")}))
    run.finish(exit_code=1 if "error" in row else 0)


def _marks(directory: Path) -> Path:
    return directory / "wandb" / "mirrored"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


if __name__ == "__main__":
    main()
