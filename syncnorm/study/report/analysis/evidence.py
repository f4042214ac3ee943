"""What a study knows of its lines besides their numbers: tuning, budgets, edges, baselines. The verdicts need it."""

from collections.abc import Mapping
from typing import Any

from syncnorm.study.plan.spec import value_at
from syncnorm.study.report.analysis.lines import Place
from syncnorm.study.report.analysis.points import Points
from syncnorm.study.report.analysis.records import records_of
from syncnorm.study.rows import Results, Row
from syncnorm.study.tuning.choose import Line, edge_of, tuning_of

Baselines = Mapping[tuple[Any, Any], float]
"""The accuracy of the best pixel baseline, by panel and x; x is None if a run has several."""


def evidence(points: Points, results: Results, baselines: Baselines | None = None) -> list[dict[str, Any]]:
    """Return the records of a chart that have a reference, with the columns that `verdict` reads.

    For the line, and with the prefix "reference_" for the reference: "tuned", whether all its runs have values that
    tuning chose; "budget", the number of trials times their seeds; "edge", the fields whose chosen value is the
    lowest or highest that was tried, as text. Besides these, "reference_mean", "baseline", and "place", the record's
    place in the chart.
    """
    found = []
    for at, record in zip(_places(points), records_of(points), strict=True):
        if record["reference"] is None:
            continue
        panel, _, x = at
        reference: Place = panel, points.lines[0], x
        mean = points.summary(*reference)
        best = (baselines or {}).get((panel, x), (baselines or {}).get((panel, None)))
        found.append(
            {
                "place": at,
                **record,
                **_tuning("", points, at, results),
                **_tuning("reference_", points, reference, results),
                "reference_mean": mean.mean if mean else None,
                "baseline": best if points.across.metric(x) == "accuracy" else None,
            }
        )
    return found


def _places(points: Points) -> list[Place]:
    """Return the places of the records, in their order."""
    every = ((panel, line, x) for panel in points.panels for line in points.lines for x in points.xs)
    return [at for at in every if points.values.get(at)]


def _tuning(prefix: str, points: Points, at: Place, results: Results) -> dict[str, Any]:
    ids = points.ran.get(at) or points.ran.get((*at[:2], None)) or ()
    runs = {run: results.about.runs[run] for run in ids}
    roles = [fields.get("role") for fields in runs.values()]
    tuned = None if not roles or None in roles else all("tuned" in role for role in roles if role)
    tuning = tuning_of(results.about)
    lines = {one.name: one for one in tuning.lines} if tuning else {}
    names = {str(fields["line"]) for fields in runs.values() if "line" in fields}
    own = [lines[name] for name in sorted(names) if name in lines]
    budgets = {sum(len(trial.runs) for trial in one.trials) for one in own}
    edges = {edge for one in own for run in runs for edge in _edges(one, results.rows[run])}
    return {
        f"{prefix}tuned": tuned,
        f"{prefix}budget": budgets.pop() if len(budgets) == 1 else None,
        f"{prefix}edge": ", ".join(sorted(edges)) if own else None,
    }


def _edges(line: Line, row: Row) -> list[str]:
    """Return the fields whose value in a row is the lowest or highest that the line's trials tried."""
    found = []
    for name in line.ranges:
        chosen = value_at(row["config"], name)
        if edge_of(line, name, chosen):
            found.append(f"{name} {chosen:g}")
    return found
