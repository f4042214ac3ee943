"""The choice of a trial for every line: a function of the rows and the plan alone, shared by runner and report."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import inf, isfinite
from statistics import fmean
from typing import Any

from syncnorm.study.rows import About, Row, diverged
from syncnorm.study.tuning.tune import half


@dataclass(frozen=True)
class Trial:
    """One configuration of a line."""

    values: dict[str, Any]
    """Values of the tuned fields."""
    runs: tuple[tuple[str, ...], ...]
    """Ids of its runs: for each tuning seed, one for every point at which trials train."""


@dataclass(frozen=True)
class Line:
    """The points that share one choice, and their trials."""

    name: str
    fields: dict[str, Any]
    """Values of the fields that make the line."""
    ranges: dict[str, dict[str, Any]]
    """Its ranges as plain data, by field."""
    trials: tuple[Trial, ...]
    points: int
    """Number of points that are trained with the chosen values."""


@dataclass(frozen=True)
class Tuning:
    """What `study.json` holds of a study's tuning."""

    by: str
    higher_is_better: bool
    seeds: int
    halve: bool
    per: tuple[str, ...]
    shared: dict[str, Any]
    """The base's own values of the tuned fields."""
    lines: tuple[Line, ...]
    base: dict[str, Any] = field(default_factory=dict)
    """The base's values of the fields in `per`."""

    def plain(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Standing:
    """What the rows so far say about a line."""

    wanted: tuple[str, ...]
    """Ids of its trials' runs that are known to be needed, finished or not."""
    scores: tuple[float | None, ...]
    """Mean metric of every trial over its runs; None for a trial without finished runs, and for one that failed or
    diverged."""
    lost: tuple[bool, ...]
    """Whether a run of the trial failed or diverged."""
    choice: int | None
    """Number of the chosen trial; None while runs are missing."""


def tuning_of(about: About) -> Tuning | None:
    """Return the stored tuning of a study; None if it tunes nothing."""
    if not about.tuning:
        return None
    stored = dict(about.tuning)
    lines = tuple(
        Line(**{**line, "trials": tuple(_trial(trial) for trial in line["trials"])}) for line in stored.pop("lines")
    )
    return Tuning(**{**stored, "per": tuple(stored["per"]), "lines": lines})


def standing(line: Line, tuning: Tuning, rows: Mapping[str, Row]) -> Standing:
    """Return which runs of a line's trials are needed, their scores, and the choice once all of them have a row.

    A trial's score is the mean of `tuning.by` over its runs. A trial with a run that failed or diverged comes last,
    and the earlier of two equal trials first.
    """
    alive = list(range(len(line.trials)))
    wanted: dict[str, None] = {}
    choice = None
    for seed in range(tuning.seeds):
        needed = [run for trial in alive for run in line.trials[trial].runs[seed]]
        wanted |= dict.fromkeys(needed)
        last = seed == tuning.seeds - 1
        if tuning.halve or last:
            if not all(run in rows for run in wanted):
                break
            ranked = sorted(alive, key=lambda trial: _rank(line.trials[trial], tuning, rows, seed + 1))
            alive = sorted(ranked[: half(len(ranked))])
            choice = ranked[0] if last else None
    scores, lost = [], []
    for trial in line.trials:
        there = [rows[run] for runs in trial.runs for run in runs if run in rows and run in wanted]
        values = [_value(row, tuning.by) for row in there]
        lost.append(any(value is None for value in values))
        scores.append(fmean(value for value in values if value is not None) if values and not lost[-1] else None)
    return Standing(tuple(wanted), tuple(scores), tuple(lost), choice)


def at_edge(line: Line, name: str, choice: int) -> str:
    """Return `edge_of` the value that a trial has."""
    return edge_of(line, name, line.trials[choice].values[name])


def edge_of(line: Line, name: str, value: Any) -> str:
    """Say on which side of its range a value lies at the edge: "low", "high", or "" for neither.

    A value is at the edge if no trial has tried one beyond it. What was tried and failed counts as tried. A `Choice`
    has no edge.
    """
    if line.ranges[name]["kind"] == "choice":
        return ""
    values = [trial.values[name] for trial in line.trials]
    return "low" if value == min(values) else "high" if value == max(values) else ""


def _rank(trial: Trial, tuning: Tuning, rows: Mapping[str, Row], seeds: int) -> float:
    """Return a number that is smaller for a better trial, by its first `seeds` seeds."""
    values = [_value(rows[run], tuning.by) for runs in trial.runs[:seeds] for run in runs]
    if not values or any(value is None for value in values):
        return inf
    mean = fmean(value for value in values if value is not None)
    return -mean if tuning.higher_is_better else mean


def _value(row: Row, by: str) -> float | None:
    """Return a run's metric; None if the run failed, diverged, or has no such number."""
    if "metrics" not in row or diverged(row):
        return None
    value = row["metrics"].get(by)
    return value if isinstance(value, int | float) and isfinite(value) else None


def _trial(plain: Mapping[str, Any]) -> Trial:
    runs: Sequence[Sequence[str]] = plain["runs"]
    return Trial(plain["values"], tuple(map(tuple, runs)))
