"""How a claim's values are taken from rows: its own experiment's, or a study's."""

from collections.abc import Callable
from typing import Any

from experiments.claims.claim import Kind, Measured
from experiments.claims.evidence import Evidence, StudyRows

Measure = Callable[[Evidence], Measured | None]
Side = dict[str, Any]
"""Values of fields of a study's rows: {"norm": "bn", "per_device_batch": 2}."""


def exact(experiment: str, *names: str) -> Measure:
    """Return what takes exact values: one for each row and name."""

    def measure(evidence: Evidence) -> Measured | None:
        values = [value for row in evidence.series(experiment, *names) for value in row]
        return Measured(tuple(values), "exact") if values else None

    return measure


def of_rows(
    experiment: str, *names: str, of: Callable[..., float] = float, kind: Kind = "seeds", log: bool = False
) -> Measure:
    """Return what takes one value for each row: `of` its values of these names."""

    def measure(evidence: Evidence) -> Measured | None:
        values = [of(*row) for row in evidence.series(experiment, *names)]
        return Measured(tuple(values), kind, log) if values else None

    return measure


def level(study: str, side: Side, metric: str = "accuracy") -> Measure:
    """Return what takes a metric in percent, by seed, of the rows of a study that `side` selects."""

    def measure(evidence: Evidence) -> Measured | None:
        rows = evidence.study(study)
        values = rows.values(metric, **side) if rows else {}
        return (
            Measured(tuple(100 * values[seed] for seed in sorted(values)), note=remarks(rows, side))
            if values
            else None
        )

    return measure


def difference(study: str, a: Side, b: Side, metric: str = "accuracy") -> Measure:
    """Return what takes the difference of a to b in points, paired by seed, in the rows of a study."""

    def measure(evidence: Evidence) -> Measured | None:
        rows = evidence.study(study)
        if rows is None:
            return None
        ours, theirs = rows.values(metric, **a), rows.values(metric, **b)
        seeds = sorted(ours.keys() & theirs.keys())
        note = remarks(rows, a, b)
        return Measured(tuple(100 * (ours[seed] - theirs[seed]) for seed in seeds), note=note) if seeds else None

    return measure


def share_closed(study: str, line: Side, low: Side, high: Side) -> Measure:
    """Return what takes the share of the gap from low to high that a line closes, in percent, by seed."""

    def measure(evidence: Evidence) -> Measured | None:
        rows = evidence.study(study)
        if rows is None:
            return None
        ours, bottom, top = (rows.values(**side) for side in (line, low, high))
        seeds = sorted(ours.keys() & bottom.keys() & top.keys())
        shares = [100 * (ours[seed] - bottom[seed]) / (top[seed] - bottom[seed]) for seed in seeds]
        return Measured(tuple(shares), note=remarks(rows, line, low, high)) if shares else None

    return measure


def remarks(rows: StudyRows | None, *sides: Side) -> str:
    """Say how many runs of these sides diverged and are left out, and whose rate lies at the edge of its range."""
    if rows is None:
        return ""
    count = sum(len(rows.rows(**side)) - len(rows.values(**side)) for side in sides)
    said = [f"{count} diverged {'run is' if count == 1 else 'runs are'} left out"] if count else []
    for number, side in enumerate(sides, start=1):
        if edge := rows.edge(**side):
            said.append(f"the rate chosen for side {number} of {len(sides)} lies at the {edge} edge of its range")
    return "; ".join(said)
