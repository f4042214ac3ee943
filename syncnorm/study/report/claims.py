"""The table of claims: what may be said of every comparison that a study's tables make."""

from collections.abc import Iterator
from typing import Any

from syncnorm.study.report.analysis.baselines import METRIC, baseline_marks
from syncnorm.study.report.analysis.evidence import evidence
from syncnorm.study.report.analysis.labels import setting
from syncnorm.study.report.analysis.lines import Place
from syncnorm.study.report.analysis.points import Chart, ChartView, Points
from syncnorm.study.report.analysis.tables import mean_text
from syncnorm.study.report.inference.verdict import Record, Verdict, verdicts
from syncnorm.study.report.render import LeftOut, render, stored_plots
from syncnorm.study.rows import Results
from syncnorm.study.table import Cell, Table

RULE = (
    "A difference is found if both lines are tuned with equal budgets; p < 0.05 after Holm's correction for all "
    "comparisons of its table; the 95 % intervals over seeds, and over seeds and test samples, leave out zero; at "
    "least 5 seeds are shared, all runs have finite numbers, and none of the better line's is at chance; no choice "
    "of the worse line lies at the edge of its range; and the better line is not below the pixel baseline. What is "
    "not recorded fails."
)


def claims_table(results: Results) -> Table | None:
    """Return the verdicts on all comparisons with a reference; None if the study's plots make none."""
    blocks: list[tuple[str, list[list[Cell]]]] = []
    records: list[dict[str, Any]] = []
    found = 0
    for number, points, judged in judgements(results):
        found += sum(said.found for _, said in judged)
        lines = [_cells(points, record, said) for record, said in judged]
        blocks.append((f"{number}: {points.title}", lines))
        records += [_record(number, record, said) for record, said in judged]
    if not blocks:
        return None
    return Table(
        name="verdicts",
        title="Claims",
        caption=f"{found or 'None'} of {len(records)} differences {'is' if found == 1 else 'are'} found. {RULE}",
        corner="difference",
        span="",
        header=["size", "verdict", "why not, or with what"],
        blocks=blocks,
        records=records,
    )


def charts(results: Results) -> Iterator[tuple[int, Points]]:
    """Yield the points of the plots whose lines have numbers to compare, with the plots' numbers."""
    for one in stored_plots(results):
        if isinstance(one, LeftOut) or not isinstance(one[1], Chart) or not one[1].compares:
            continue
        rendered = render(*one, results)
        if not isinstance(rendered, LeftOut) and isinstance(rendered[0], ChartView):
            yield one[0], rendered[0].points


def judgements(results: Results) -> Iterator[tuple[int, Points, list[tuple[Record, Verdict]]]]:
    """Yield the plots whose lines compete: number, points, and the verdicts on comparisons with the first line."""
    for number, points in charts(results):
        judged = verdicts(evidence(points, results, _baselines(points, results))) if points.chart.rivals else []
        if judged:
            yield number, points, judged


def place_words(points: Points, at: Place) -> str:
    """Return a place in words, without its line: "samples per device 2"."""
    panel, _, x = at
    where = [setting(points.chart.panel, panel)] if points.chart.panel else []
    metric = points.metric(x)
    where.append(metric.short if points.across.several else f"{points.x_label} {points.x_text(x)}")
    return ", ".join(where)


def _baselines(points: Points, results: Results) -> dict[tuple[Any, Any], float]:
    """Return the best pixel baseline by panel and x.

    Clients have none here: a baseline sees the data of all clients together, which no federated method does. The
    `centralised` line is what has to reach it.
    """
    if points.kind == "clients":
        return {}
    marks = baseline_marks(points.chart, results, METRIC).at
    return {at: max(found.values()) for at, found in marks.items() if found}


def _cells(points: Points, record: Record, said: Verdict) -> list[Cell]:
    panel, line, x = record["place"]
    metric = points.metric(x)
    size = points.comparisons[panel, line, x].difference
    unit = f" {metric.difference_unit}" if metric.difference_unit else ""
    ahead = {"line": "better than", "reference": "worse than"}.get(said.better if said.found else "", "against")
    words = f"{line} {ahead} {record['reference']}"
    return [
        Cell(f"{words}, {place_words(points, record['place'])}"),
        Cell(mean_text(size, metric, sign="+") + unit),
        Cell(said.word, bold=said.found),
        Cell("; ".join([*said.reasons, *said.notes])),
    ]


def _record(number: int, record: Record, said: Verdict) -> dict[str, Any]:
    plain = {name: value for name, value in record.items() if name != "place"}
    return {
        "plot": number,
        "verdict": said.word,
        "better": said.better,
        "reasons": "; ".join(said.reasons),
        "notes": "; ".join(said.notes),
        **plain,
    }
