"""The results folder of a study: append-only rows, and further data for the report.

`runs.jsonl` is the source of truth, one row per line. `study.json` describes the study, so that `syncnorm report DIR`
needs no experiment file. One process writes at a time; any number may read meanwhile.
"""

import errno
import fcntl
import json
import os
import shutil
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

from syncnorm.errors import UserError
from syncnorm.files import write_file
from syncnorm.study.plan.about import about_plan
from syncnorm.study.plan.spec import Study
from syncnorm.study.plan.trials import Plan, plan_of
from syncnorm.study.rows import ABOUT, FORMAT, ROWS, About, Row, read_rows, stored_about, strict

CHECKPOINTS = "checkpoints"


class Store:
    """A results folder opened for appending, locked against other writers; a context manager."""

    def __init__(self, directory: Path, descriptor: int, study: str, rows: dict[str, Row]) -> None:
        self.directory = directory
        self.rows = rows
        """The rows that were there when it was opened."""
        self.finished = {run for run, row in rows.items() if "metrics" in row}
        """Ids of runs with metrics, of any version of the study. Failed runs are not included: they are retried."""
        self.checkpoints = directory / CHECKPOINTS
        """Folder of the checkpoints of unfinished runs, each in a folder named after its id."""
        self._descriptor = descriptor
        self._study = study
        for run in self.finished:  # the study was killed after writing the row and before removing the checkpoint
            self._forget(run)

    @classmethod
    def open(cls, directory: str | Path, study: Study, command: str = "", plan: Plan | None = None) -> Self:
        """Open or create the results folder of `study`, with its plan, and lock it until `close`.

        An incomplete last line of a killed process is cut off. Raises `UserError`, without changing anything, if the
        folder has another study or other content, is in use by another process, cannot be written, or has a damaged
        line.
        """
        folder, plan = Path(directory), plan or plan_of(study)
        about = about_plan(plan, {}, command)
        try:
            _check_ours(folder, study.name, stored_about(folder) is None)
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / ROWS, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                _lock(descriptor, folder)
                rows = _check_ours(folder, study.name)
                os.ftruncate(descriptor, _whole_length(folder / ROWS))
                write_about(folder, about_plan(plan, rows, command) if plan.lines else about)
            except BaseException:
                os.close(descriptor)
                raise
        except OSError as error:
            raise UserError(f"cannot write results to {folder}: {error.strerror}; choose another --out.") from error
        return cls(folder, descriptor, study.name, rows)

    def append(self, row: Row, keep_checkpoint: bool = False) -> None:
        """Append a row as one line and sync it to disk; values that are not finite become null.

        If the disk is full or fails, the file does not change and `UserError` is raised. A run with a row needs no
        checkpoint, so it is removed, and a failed run starts anew the next time; with `keep_checkpoint`, it resumes
        instead.
        """
        if row["study"] != self._study or row["run_id"] in self.finished:
            raise ValueError(f"run {row['run_id']} of {row['study']} is of another study or already finished")
        line = json.dumps(strict(row), allow_nan=False, separators=(",", ":")).encode() + b"\n"
        before = os.fstat(self._descriptor).st_size
        try:
            if os.write(self._descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._descriptor)
        except OSError as error:
            os.ftruncate(self._descriptor, before)
            raise UserError(
                f"cannot append to {self.directory / ROWS}: {error.strerror}; the rows before are safe: "
                "free some space and start the study again."
            ) from error
        if "metrics" in row:
            self.finished.add(row["run_id"])
        if not keep_checkpoint:
            self._forget(row["run_id"])

    def describe(self, about: About) -> None:
        """Replace the description of the study, in which further runs are known."""
        write_about(self.directory, about)

    def close(self) -> None:
        """Release the lock."""
        os.close(self._descriptor)

    def _forget(self, run: str) -> None:
        """Remove a run's checkpoint; with the last one, remove the folder of checkpoints too."""
        shutil.rmtree(self.checkpoints / run, ignore_errors=True)
        with suppress(OSError):
            self.checkpoints.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def write_about(folder: Path, about: About) -> None:
    """Write `study.json`, with a run a line."""
    known = {name: getattr(about, name) for name in about.__dataclass_fields__}
    known["agreements"] = [asdict(agreement) for agreement in about.agreements]
    runs = ",\n  ".join(f"{json.dumps(run)}: {json.dumps(fields)}" for run, fields in known.pop("runs").items())
    first = "".join(
        f"\n {json.dumps(name)}: {json.dumps(value)}," for name, value in {"format": FORMAT, **known}.items()
    )
    write_file(folder / ABOUT, f'{{{first}\n "runs": {{\n  {runs}\n }}\n}}\n')


def _lock(descriptor: int, folder: Path) -> None:
    """Lock the file of rows, or raise `UserError` immediately."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(
            f"{folder} is in use by another `syncnorm run`: wait for it, or choose another --out."
        ) from error


def _check_ours(folder: Path, study: str, read: bool = True) -> dict[str, Row]:
    """Return the rows of a folder that holds `study` or is empty; raises `UserError` for any other folder.

    Without `read`, it goes by `study.json` alone and returns no rows.
    """
    if not folder.exists():
        return {}
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: choose another --out.")
    stored, rows = stored_about(folder), read_rows(folder) if read else {}
    names = {row["study"] for row in rows.values()} | ({stored["study"]} if stored else set())
    if others := sorted(names - {study}):
        raise UserError(f"{folder} holds the study '{others[0]}', not '{study}': choose another --out.")
    if not names and any(_is_content(entry) for entry in folder.iterdir()):
        raise UserError(f"{folder} is not empty and not a results folder: choose another --out.")
    return rows


def _is_content(entry: Path) -> bool:
    """Return whether an entry is more than the remains of an interrupted start."""
    started = entry.name == ROWS and entry.stat().st_size == 0
    return not started and not entry.name.startswith(f".{ABOUT}.")


def _whole_length(path: Path) -> int:
    """Return the length in bytes of the complete lines."""
    return path.read_bytes().rfind(b"\n") + 1
