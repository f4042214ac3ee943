"""Start a worker process on the machine where this is called, and wait for it.

Executors send these functions to other machines by value. So they import Python's own modules alone, and nothing here
depends on what is installed there; the worker process says what it misses.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from tempfile import TemporaryFile
from typing import IO, Any

TAIL_BYTES = 4000
END_SECONDS = 15


def start(
    arguments: Sequence[str], environment: Mapping[str, str], folder: str | None, log: IO[bytes]
) -> "subprocess.Popen[bytes]":
    """Start Python with `arguments`, and with `environment` beside this process's own; its output goes to `log`."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C must reach only the study
    )


def tail(log: IO[bytes]) -> str:
    """Return the end of what was written to `log`."""
    log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL_BYTES))
    return log.read().decode(errors="replace").strip()


def serve(arguments: Sequence[str], environment: Mapping[str, str], folder: str) -> tuple[int, str]:
    """Run a worker process until it ends; return its exit code and its last output.

    It starts in `folder` if this machine has it. An exception in here, as from a signal, ends it.
    """
    with TemporaryFile() as log:
        process = start(arguments, environment, folder if os.path.isdir(folder) else None, log)
        try:
            code = process.wait()
        finally:
            process.terminate()
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
        return code, tail(log)


class Served:
    """`serve` for submitit: a job that is cut off by its time limit, or preempted, is queued again."""

    def __call__(self, *order: Any) -> tuple[int, str]:
        """Run a worker process until it ends."""
        return serve(*order)

    def checkpoint(self, *order: Any) -> Any:
        """Return what the job does when it starts again."""
        from submitit.helpers import DelayedSubmission  # type: ignore[import-not-found,unused-ignore]

        return DelayedSubmission(self, *order)
