"""The rows of a results folder: their content, and how to read them.

`runs.jsonl` is the source of truth, one row per line. `study.json` describes the study, so that `syncnorm report DIR`
needs no experiment file. Reading neither locks nor changes anything.
"""

import gc
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from syncnorm.config import Result, Run, describe, run_id
from syncnorm.errors import UserError
from syncnorm.samples import ACCURACY, chance_of, details_on, metric_of
from syncnorm.study.baselines import Scored, read_scores

FORMAT = 1
ROWS = "runs.jsonl"
ABOUT = "study.json"

REPORTED, TUNED, SHARED, TUNING = "reported", "tuned", "shared", "tuning"
"""A run's role in its study: reported, where nothing is tuned; reported at the values that its line chose; trained at
the base's own values, for comparison; a trial."""

OPTIONAL = ("history", "details", "fingerprints", "ranks")
"""Fields of a result that a row leaves out where they are empty."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Agreement:
    """A claim: rows that differ only in the field `over` have the same metrics, within `tolerance`."""

    over: str = "engine"
    tolerance: float = 1e-6


@dataclass(frozen=True)
class About:
    """The content of `study.json`: the study without its runs' configurations."""

    study: str
    question: str
    command: str
    """The user's command; empty if the study was run from Python."""
    runs: dict[str, dict[str, Any]]
    """The runs by id, in the study's order: seed, kind of world, and values of the fields that plots use; the "role"
    of a run, and the "line" and "trial" of one that tunes.

    Rows of other runs stay in the folder and are not reported.
    """
    figures: tuple[dict[str, Any], ...]
    """The study's plots as plain data, each with its kind."""
    agreements: tuple[Agreement, ...]
    base: dict[str, Any] = field(default_factory=dict)
    """Values of the study's base run for the fields that share an axis."""
    tuning: dict[str, Any] = field(default_factory=dict)
    """What the study tunes, with its lines and trials (`tuning.choose.Tuning`); empty if it tunes nothing."""
    baselines: tuple[str, ...] = ()
    """Names of the pixel baselines that the report shows."""


@dataclass(frozen=True)
class Results:
    """The content of a results folder: the latest row of every run id."""

    about: About
    rows: dict[str, Row]
    baselines: tuple[Scored, ...] = ()
    """Scores of the study's pixel baselines, on the data of these rows or of former ones."""
    role: str = ""
    """The role that its runs share; empty for all runs of the study."""

    def of(self, *roles: str) -> "Results":
        """Return the results of the runs with one of these roles alone, the first of which names them."""
        runs = {
            run: fields for run, fields in self.about.runs.items() if set(roles) & set(fields.get("role", [REPORTED]))
        }
        return replace(self, about=replace(self.about, runs=runs), role=roles[0])

    @cached_property
    def reported(self) -> "Results":
        """The results that the study reports: each line's at the values that it chose, if it tunes."""
        return self.of(*((TUNED, REPORTED) if self.about.tuning else (REPORTED, TUNED)))

    @cached_property
    def finished(self) -> list[Row]:
        """The study's rows that have metrics, in the study's order."""
        return [row for row in self._present() if "metrics" in row]

    @cached_property
    def failed(self) -> list[Row]:
        """The study's rows that have an error, in the study's order."""
        return [row for row in self._present() if "metrics" not in row]

    @cached_property
    def views(self) -> dict[int, Any]:
        """What `render` has made of the study's plots, by their numbers: claims and figures share it."""
        return {}

    @property
    def missing(self) -> list[str]:
        """Ids of the study's runs without a row."""
        return [run for run in self.about.runs if run not in self.rows]

    @property
    def orphans(self) -> int:
        """Number of runs in the folder that the study no longer has."""
        return len(self.rows.keys() - self.about.runs.keys())

    def _present(self) -> list[Row]:
        return [self.rows[run] for run in self.about.runs if run in self.rows]


def read(directory: str | Path) -> Results:
    """Read a results folder without locking or changing it: a study may be running there.

    A folder without a study, from a newer version, or with a damaged line raises `UserError`.
    """
    folder = Path(directory)
    known = stored_about(folder)
    if known is None:
        raise UserError(f"{folder} has no {ABOUT}: give the --out folder of a `syncnorm run`.")
    about = About(
        known["study"],
        known["question"],
        known["command"],
        known["runs"],
        tuple(known["figures"]),
        tuple(Agreement(**agreement) for agreement in known["agreements"]),
        known.get("base", {}),
        known.get("tuning", {}),
        tuple(known.get("baselines", ())),
    )
    scores = tuple(one for one in read_scores(folder) if one.baseline in about.baselines)
    return Results(about, read_rows(folder), scores)


def finished_row(study: str, result: Result, purpose: str = REPORTED) -> Row:
    """Return the row of a run with a result; `purpose` is "tuning" or "reported"."""
    row = {"run_id": result.run_id, "study": study, "purpose": purpose, **strict(asdict(result)), "finished": _now()}
    return {name: value for name, value in row.items() if value or name not in OPTIONAL}


def diverged(row: Row) -> bool:
    """Return whether a finished run diverged: some of its numbers are not finite.

    This is in its details; in rows without that detail, a metric that could not be stored shows it.
    """
    said = row.get("details", {}).get("diverged")
    return bool(None in row["metrics"].values() if said is None else said)


def at_chance(row: Row, metric: str = ACCURACY) -> bool | None:
    """Return whether a finished run's accuracy is no better than a guess; None for a row that cannot say.

    It is so if the accuracy is not above the 99 % quantile of what always answering the most frequent class scores. A
    task without classes has no guess.
    """
    details = row.get("details", {})
    if metric_of(details) != ACCURACY:
        return False
    chance, accuracy = chance_of(details_on(details, metric) or {}), row["metrics"].get(metric)
    return None if chance is None or accuracy is None else bool(accuracy <= chance.bound + 1e-9)


def failed_row(
    study: str,
    run: Run,
    error: str,
    seconds: float,
    environment: dict[str, str],
    traceback: str = "",
    purpose: str = REPORTED,
) -> Row:
    """Return the row of a run that failed: `error` is one sentence, `traceback` is for developers."""
    row: Row = {"run_id": run_id(run), "study": study, "purpose": purpose, "config": describe(run), "error": error}
    if traceback:
        row["traceback"] = traceback
    return {**row, "seconds": seconds, "environment": environment, "finished": _now()}


def stored_about(folder: Path) -> dict[str, Any] | None:
    """Return the content of `study.json`, or None if there is none."""
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


def read_rows(folder: Path) -> dict[str, Row]:
    """Return the latest row of every run id, ignoring an incomplete last line."""
    return {row["run_id"]: row for row in _last.read(folder)}


def rows_after(folder: Path, count: int) -> Iterator[Row]:
    """Yield the rows as they were written, without the first `count` and an incomplete last line."""
    return _decoded(folder, _lines(folder), count)


class _Last:
    """The rows that were read last: several parts of a command read one file, so only new lines are decoded."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._digest = b""

    def read(self, folder: Path) -> list[Row]:
        """Return the rows of a folder."""
        lines = _lines(folder)
        known = self._rows if self._digest == _digest(lines[: len(self._rows)]) else []
        collects = gc.isenabled()
        gc.disable()  # it would look through all rows again and again while they come: a third of the time
        try:
            self._rows = [*known, *_decoded(folder, lines, len(known))]
        finally:
            if collects:
                gc.enable()
        self._digest = _digest(lines)
        return self._rows


_last = _Last()


def _digest(lines: Sequence[bytes]) -> bytes:
    return sha256(b"\n".join(lines)).digest()


def _lines(folder: Path) -> Sequence[bytes]:
    """Return the complete lines of a folder's file of rows."""
    path = folder / ROWS
    try:
        return path.read_bytes().split(b"\n")[:-1]
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from error


def _decoded(folder: Path, lines: Sequence[bytes], skip: int) -> Iterator[Row]:
    """Yield the rows of the lines after the first `skip`."""
    for number, line in enumerate(lines[skip:], start=skip + 1):
        try:
            row = json.loads(line)
            if not {"run_id", "study", "config"} <= row.keys() or ("metrics" in row) == ("error" in row):
                raise ValueError("not a row")
        except (ValueError, AttributeError) as error:
            raise UserError(
                f"{folder / ROWS} is damaged in line {number}: remove that line, and its run will be made again."
            ) from error
        yield row


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def strict(value: Any) -> Any:
    """Return plain data with None for every float that JSON cannot represent."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    return value
