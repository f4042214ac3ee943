"""Results of one study from several machines, in one folder: `syncnorm merge DIR DIR ... --out DIR`."""

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

from syncnorm.config import MODELS
from syncnorm.errors import UserError
from syncnorm.files import write_file
from syncnorm.progress import counted
from syncnorm.study.baselines import problem_of, read_scores, write_scores
from syncnorm.study.rows import ROWS, About, Results, Row, read
from syncnorm.study.run.store import write_about
from syncnorm.worlds import SAMPLES

TOLERANCE = 1e-6
"""How far the metrics of one run may be apart, unless the user says otherwise: `apart`."""
MACHINE = ("cpu", "device", "torch", "python", "commit")
"""What of the environment is said where the folders differ in it."""


@dataclass(frozen=True)
class Merged:
    """What a merge has made."""

    folder: Path
    notes: tuple[str, ...]
    """Sentences on what came from where."""


@dataclass(frozen=True)
class _Part:
    folder: Path
    results: Results

    @property
    def finished(self) -> list[Row]:
        return [row for row in self.results.rows.values() if "metrics" in row]


def merge(folders: Sequence[str | Path], out: str | Path, tolerance: float = TOLERANCE) -> Merged:
    """Write the rows of several results folders of one study into the new folder `out`.

    Of a run that several folders have finished, the first one's row is taken, if all metrics agree within `tolerance`
    (`apart`). A finished run comes before a failed one. Saved models and scores of baselines come along, checkpoints
    do not. `syncnorm run STUDY.py --out OUT` then trains what is still missing.

    Raises:
        UserError: folders of several studies, or whose plots or tuning differ; rows made of other source or other
            data; a run whose metrics do not agree; a folder `out` that is there already. Nothing is written then.
    """
    parts = [_Part(Path(folder), read(folder)) for folder in folders]
    target = Path(out)
    if len({part.folder.resolve() for part in parts}) < len(parts):
        raise UserError("a results folder is there twice: give each once.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} is there already: write a new folder as --out.")
    if not (isfinite(tolerance) and tolerance >= 0):
        raise UserError(f"tolerance is {tolerance:g}: it must be a number, at least 0.")
    about = _about(parts)
    _check_sources(parts)
    twice = _check_same_runs(parts, tolerance)
    rows = _rows(parts)
    _write(target, about, rows, parts)
    return Merged(target, tuple(_notes(parts, rows, twice, tolerance)))


def apart(first: float | None, second: float | None) -> float:
    """Return |a - b| / max(1, |a|, |b|): absolute for shares and losses, relative for large numbers.

    Numbers that are not finite are None in rows; two of them agree, one alone is infinitely far.
    """
    if first is None or second is None:
        return 0.0 if first is second else float("inf")
    return abs(first - second) / max(1.0, abs(first), abs(second))


def _about(parts: Sequence[_Part]) -> About:
    """Return the description of the study with the runs and lines of all folders."""
    first, *others = (part.results.about for part in parts)
    runs, tuning = dict(first.runs), dict(first.tuning)
    for part, other in zip(parts[1:], others, strict=True):
        names = f"{parts[0].folder} and {part.folder}"
        if other.study != first.study:
            raise UserError(f"{names} hold two studies, '{first.study}' and '{other.study}': give folders of one.")
        if other.figures != first.figures or other.agreements != first.agreements or other.base != first.base:
            raise UserError(f"{names} were made by two versions of the study's file: its base or its plots differ.")
        mine, theirs = ({**one, "lines": None} for one in (tuning, other.tuning))
        if mine != theirs:
            raise UserError(f"{names} tune differently (trials, seeds or ranges): give folders that tune alike.")
        if tuning:
            lines = {line["name"]: line for line in [*other.tuning["lines"], *tuning["lines"]]}
            tuning["lines"] = [*lines.values()]
        for run, fields in other.runs.items():
            role = [*dict.fromkeys([*runs.get(run, {}).get("role", []), *fields.get("role", [])])]
            runs[run] = {**fields, **runs.get(run, {}), **({"role": role} if role else {})}
    return replace(first, runs=runs, tuning=tuning)


def _check_sources(parts: Sequence[_Part]) -> None:
    """Raise `UserError` if rows were made of other source, or on other samples of the same data."""
    seen: dict[tuple[str, ...], tuple[str, Path]] = {}
    for part in parts:
        for row in part.finished:
            for what, value in row.get("fingerprints", {}).items():
                key = (what, problem_of(row["config"])) if what == SAMPLES else (what,)
                was, where = seen.setdefault(key, (value, part.folder))
                if was != value:
                    named = "the samples of the same data" if what == SAMPLES else what
                    raise UserError(
                        f"{named} differ between {where} ({was}) and {part.folder} ({value}): rows of two versions "
                        "are no one study. Train one of them again."
                    )


def _check_same_runs(parts: Sequence[_Part], tolerance: float) -> int:
    """Return the number of runs that several folders have finished.

    Raises:
        UserError: some of them do not agree.
    """
    finished: defaultdict[str, list[tuple[Path, Row]]] = defaultdict(list)
    for part in parts:
        for row in part.finished:
            finished[row["run_id"]].append((part.folder, row))
    twice = {run: found for run, found in finished.items() if len(found) > 1}
    worst: list[tuple[float, str, str, Path, Path]] = []
    for run, ((home, row), *others) in twice.items():
        gaps = [(gap, run, name, home, there) for there, other in others for name, gap in _gaps(row, other)]
        worst += [max(gaps)] if gaps and max(gaps)[0] > tolerance else []
    if worst:
        gap, run, name, home, there = max(worst)
        raise UserError(
            f"{len(worst)} of {counted(len(twice), 'run')} that several folders have do not agree within "
            f"{tolerance:g}: {name} of run {run} is {gap:.2g} apart between {home} and {there}. "
            f"`syncnorm compare {home} {there}` shows all; a larger --tolerance takes the first folder's rows."
        )
    return len(twice)


def _gaps(row: Row, other: Row) -> Iterable[tuple[str, float]]:
    """Return how far each metric of two rows is apart; one that only one row has is infinitely far."""
    ours, theirs = row["metrics"], other["metrics"]
    for name in ours | theirs:
        yield name, apart(ours[name], theirs[name]) if name in ours and name in theirs else float("inf")


def _rows(parts: Sequence[_Part]) -> dict[str, tuple[Row, Path]]:
    """Return the row that counts of each run, with the folder that has it."""
    rows: dict[str, tuple[Row, Path]] = {}
    for part in parts:
        for run, row in part.results.rows.items():
            if run not in rows or ("metrics" in row and "metrics" not in rows[run][0]):
                rows[run] = row, part.folder
    return rows


def _write(target: Path, about: About, rows: dict[str, tuple[Row, Path]], parts: Sequence[_Part]) -> None:
    """Write the folder under another name, and rename it once it is whole."""
    half = target.with_name(f".{target.name}.{os.getpid()}.merging")
    try:
        text = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row, _ in rows.values())
        write_file(half / ROWS, text)
        scores = {one.key: one for part in reversed(parts) for one in read_scores(part.folder)}
        if scores:
            write_scores(half, scores.values())
        for run, (_, folder) in rows.items():
            if (folder / MODELS / run).is_dir():
                shutil.copytree(folder / MODELS / run, half / MODELS / run)
        write_about(half, about)
        if target.exists():
            target.rmdir()
        os.replace(half, target)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}; choose another --out.") from error
    finally:
        shutil.rmtree(half, ignore_errors=True)


def _notes(parts: Sequence[_Part], rows: dict[str, tuple[Row, Path]], twice: int, tolerance: float) -> Iterable[str]:
    """Say what came from where, and in what the machines differ."""
    for part in parts:
        taken = [row for row, folder in rows.values() if folder == part.folder]
        failed = sum("metrics" not in row for row in taken)
        yield f"{part.folder}: {counted(len(taken), 'row')} taken" + (f", {failed} of failed runs" if failed else "")
    if twice:
        yield f"{counted(twice, 'run')} in several folders, which agree within {tolerance:g}"
    for name in MACHINE:
        values: dict[str, list[Any]] = {}
        for part in parts:
            for row in part.finished:
                values.setdefault(str(row["environment"].get(name) or "none"), []).append(part.folder)
        if len(values) > 1:
            found = "; ".join(f"{value} in {', '.join(map(str, dict.fromkeys(at)))}" for value, at in values.items())
            yield f"{name} differs: {found}"
