"""The results folder of a study: rows that are only ever appended, and what a report needs beside them.

`runs.jsonl` is the truth, one row a line. `study.json` says which study it is, so that `syncnorm report DIR`
needs no experiment file. One process writes at a time; any number may read meanwhile.
"""

import errno
import fcntl
import json
import math
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from syncnorm.config import Result, Run, describe, run_id
from syncnorm.errors import UserError
from syncnorm.study.exhibits import Exhibit, as_plain, fields_of, from_plain, names_of, references_of
from syncnorm.study.files import write_file
from syncnorm.study.spec import KIND, Agreement, Study, expand, field_path, has, value_at, values_at

FORMAT = 1
ROWS = "runs.jsonl"
ABOUT = "study.json"
CHECKPOINTS = "checkpoints"

Row = dict[str, Any]


@dataclass(frozen=True)
class About:
    """What `study.json` holds: the study without its runs' configurations."""

    study: str
    question: str
    command: str
    """What the user typed; empty when the study was run from Python."""
    runs: dict[str, dict[str, Any]]
    """By run id, in the study's order: the seed, the kind of world and those fields that figures name and it has.

    Rows of runs that are not (or no longer) among these stay in the folder and are not reported.
    """
    figures: tuple[Exhibit, ...]
    agreements: tuple[Agreement, ...]
    base: dict[str, Any] = field(default_factory=dict)
    """What the study's base has in the fields that share an axis."""


@dataclass(frozen=True)
class Results:
    """What a results folder holds: the latest row of every run id."""

    about: About
    rows: dict[str, Row]

    @property
    def finished(self) -> list[Row]:
        """The study's rows that have metrics, in the study's order."""
        return [row for row in self._present() if "metrics" in row]

    @property
    def failed(self) -> list[Row]:
        """The study's rows that have an error, in the study's order."""
        return [row for row in self._present() if "metrics" not in row]

    @property
    def missing(self) -> list[str]:
        """Ids of the study's runs without a row."""
        return [run for run in self.about.runs if run not in self.rows]

    @property
    def strangers(self) -> int:
        """Number of runs in the folder that the study no longer has."""
        return len(self.rows.keys() - self.about.runs.keys())

    def _present(self) -> list[Row]:
        return [self.rows[run] for run in self.about.runs if run in self.rows]


class Store:
    """A results folder opened for appending, locked against other writers; a context manager."""

    def __init__(self, directory: Path, descriptor: int, study: str, finished: set[str]) -> None:
        self.directory = directory
        self.finished = finished
        """Ids of runs with metrics, of any version of the study. A failed run is not one: it is retried."""
        self.checkpoints = directory / CHECKPOINTS
        """Where runs that have not ended keep their checkpoints, each in a folder named by its id."""
        self._descriptor = descriptor
        self._study = study
        for run in finished:  # a study was killed between such a run's row and the end of its checkpoint
            self._forget(run)

    @classmethod
    def open(cls, directory: str | Path, study: Study, command: str = "") -> Self:
        """Open or create the results folder of `study` and lock it until `close`.

        A last line that a killed process left half written is cut off. `UserError`: the folder holds another
        study or something else, is in use by another process, cannot be written, or has a damaged line; then
        nothing in it is changed.
        """
        folder, about = Path(directory), about_study(study, command)
        try:
            _check_ours(folder, study.name)
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / ROWS, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                _lock(descriptor, folder)
                rows = _check_ours(folder, study.name)
                os.ftruncate(descriptor, _whole_length(folder / ROWS))
                write_file(folder / ABOUT, json.dumps(_plain(about), indent=1) + "\n")
            except BaseException:
                os.close(descriptor)
                raise
        except OSError as error:
            raise UserError(f"cannot write results to {folder}: {error.strerror}; choose another --out.") from error
        return cls(folder, descriptor, study.name, {run for run, row in rows.items() if "metrics" in row})

    def append(self, row: Row) -> None:
        """Append a row as one line and wait until it is on the disk; values that are not finite become null.

        When the disk is full or fails, the file is as it was before and `UserError` says so. A run that has its row
        needs no checkpoint: it is removed, and what failed starts afresh the next time.
        """
        if row["study"] != self._study or row["run_id"] in self.finished:
            raise ValueError(f"run {row['run_id']} of {row['study']} is of another study or already finished")
        line = json.dumps(_strict(row), allow_nan=False, separators=(",", ":")).encode() + b"\n"
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
        self._forget(row["run_id"])

    def close(self) -> None:
        """Give the folder free."""
        os.close(self._descriptor)

    def _forget(self, run: str) -> None:
        """Remove a run's checkpoint, and the folder of all checkpoints with the last."""
        shutil.rmtree(self.checkpoints / run, ignore_errors=True)
        with suppress(OSError):
            self.checkpoints.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read(directory: str | Path) -> Results:
    """Read a results folder without locking or changing it: a study may be running there.

    A folder without a study, of a newer version, or with a damaged line raises `UserError`.
    """
    folder = Path(directory)
    known = _stored_about(folder)
    if known is None:
        raise UserError(f"{folder} has no {ABOUT}: give the --out folder of a `syncnorm run`.")
    about = About(
        known["study"],
        known["question"],
        known["command"],
        known["runs"],
        tuple(from_plain(figure) for figure in known["figures"]),
        tuple(Agreement(**agreement) for agreement in known["agreements"]),
        known.get("base", {}),
    )
    return Results(about, _read_rows(folder))


def about_study(study: Study, command: str = "") -> About:
    """Return what a report needs to know of a study; a field of a figure or an agreement that no run has raises
    `UserError`."""
    for agreement in study.agreements:
        field_path(study.base, agreement.over)
    named = (name for figure in study.figures for name in (*fields_of(figure), *references_of(figure)))
    names = [KIND, "seed", *dict.fromkeys(named)]
    runs = {run_id(run): describe(run) for run in expand(study)}
    points = dict(zip(runs, values_at(list(runs.values()), names), strict=True))
    axes = (getattr(figure, axis, None) for figure in study.figures for axis in ("x", "line", "panel"))
    shared = {name for axis in axes if not isinstance(axis, str) for name in names_of(axis)}
    config = describe(study.base)
    base = {name: value_at(config, name) for name in sorted(shared) if has(config, name)}
    return About(study.name, study.question, command, points, study.figures, study.agreements, base)


def _plain(about: About) -> dict[str, Any]:
    return {"format": FORMAT, **asdict(about), "figures": [as_plain(figure) for figure in about.figures]}


def finished_row(study: str, result: Result) -> Row:
    """Return the row of a run that gave a result."""
    row = {"run_id": result.run_id, "study": study, **_strict(asdict(result)), "finished": _now()}
    return {name: value for name, value in row.items() if value or name not in ("history", "details")}


def failed_row(
    study: str, run: Run, error: str, seconds: float, environment: dict[str, str], traceback: str = ""
) -> Row:
    """Return the row of a run that failed: `error` is one sentence, `traceback` what a developer wants."""
    row: Row = {"run_id": run_id(run), "study": study, "config": describe(run), "error": error}
    if traceback:
        row["traceback"] = traceback
    return {**row, "seconds": seconds, "environment": environment, "finished": _now()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _strict(value: Any) -> Any:
    """Return plain data with None for every float that JSON cannot hold."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return value


def _lock(descriptor: int, folder: Path) -> None:
    """Take the lock of the file of rows, or raise `UserError` at once."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(
            f"{folder} is in use by another `syncnorm run`: wait for it, or choose another --out."
        ) from error


def _check_ours(folder: Path, study: str) -> dict[str, Row]:
    """Return the rows of a folder that holds `study` or nothing; `UserError` for any other folder."""
    if not folder.exists():
        return {}
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: choose another --out.")
    stored, rows = _stored_about(folder), _read_rows(folder)
    names = {row["study"] for row in rows.values()} | ({stored["study"]} if stored else set())
    if others := sorted(names - {study}):
        raise UserError(f"{folder} holds the study '{others[0]}', not '{study}': choose another --out.")
    if not names and any(_is_content(entry) for entry in folder.iterdir()):
        raise UserError(f"{folder} is not empty and not a results folder: choose another --out.")
    return rows


def _is_content(entry: Path) -> bool:
    """Return whether an entry is more than what a start that was cut short leaves behind."""
    started = entry.name == ROWS and entry.stat().st_size == 0
    return not started and not entry.name.startswith(f".{ABOUT}.")


def _stored_about(folder: Path) -> dict[str, Any] | None:
    """Return what `study.json` holds, or None when there is none."""
    try:
        stored = json.loads((folder / ABOUT).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {folder / ABOUT}: {error}; choose another folder.") from error
    if not isinstance(stored, dict) or not isinstance(stored.get("study"), str) or "format" not in stored:
        raise UserError(f"{folder / ABOUT} was not written by syncnorm: choose another folder.")
    if stored["format"] != FORMAT:
        found = stored["format"]
        raise UserError(f"{folder} has results of format {found}, not {FORMAT}: use syncnorm's newest version.")
    return stored


def _read_rows(folder: Path) -> dict[str, Row]:
    """Return the latest row of every run id, ignoring a last line that has no end."""
    path = folder / ROWS
    try:
        lines: Sequence[bytes] = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from error
    rows: dict[str, Row] = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not {"run_id", "study", "config"} <= row.keys() or ("metrics" in row) == ("error" in row):
                raise ValueError("not a row")
        except (ValueError, AttributeError) as error:
            raise UserError(
                f"{path} is damaged in line {number}: remove that line, and its run will be made again."
            ) from error
        rows[row["run_id"]] = row
    return rows


def _whole_length(path: Path) -> int:
    """Return the length in bytes of the lines that have an end."""
    return path.read_bytes().rfind(b"\n") + 1
