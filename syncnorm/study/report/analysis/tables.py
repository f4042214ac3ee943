"""The tables of charts: means with intervals, differences, and parts shared by all tables."""

from collections.abc import Callable, Sequence
from typing import Any

from syncnorm.study.report.analysis.captions import SURVIVES, comparisons_words, spread_words
from syncnorm.study.report.analysis.labels import Metric, setting
from syncnorm.study.report.analysis.points import Points
from syncnorm.study.report.analysis.records import records_of
from syncnorm.study.report.inference.statistics import Estimate, Summary, overlap
from syncnorm.study.table import MINUS, NOTHING, Cell, Table

BOLD = "Bold: best of its column, with an interval apart from all others in it. "


def with_differences(points: Points) -> list[Table]:
    """Return the table of means and, if several lines compete, that of the differences to the first."""
    return [means(points), *([differences(points)] if len(points.lines) > 1 and points.chart.rivals else [])]


def means(points: Points, shown: Sequence[Any] | None = None) -> Table:
    """Return the table of means with 95 % intervals: lines by x, one block per panel.

    The best of a column is bold only if its interval does not overlap those of any other line there, and none of its
    runs diverged. `shown` are the x in the table, by default all; the records have all.
    """

    def cell(panel: Any, line: str, x: Any) -> Cell:
        summary, metric = points.summary(panel, line, x), points.metric(x)
        text = mean_text(summary, metric) if summary else _nothing(points, panel, line, x)
        note = _note(points, summary, points.marks(panel, line, x))
        return Cell(text, points.chart.rivals and _stands_out(points, panel, line, x, metric.higher_is_better), note)

    xs = list(points.xs if shown is None else shown)
    return Table(
        name=points.name,
        title=points.title,
        caption=f"Mean ± half width of the 95 % t interval over seeds; {_usual(points)}. {spread_words(points)}"
        f"{BOLD if points.chart.rivals else ''}{points.evaluation()}{_without(points)}",
        corner=points.line_label,
        span=points.across.span(points.metrics, points.kind),
        header=[points.x_text(x) for x in xs],
        blocks=blocks_of(points, points.lines, xs, cell),
        records=records_of(points),
    )


def differences(points: Points) -> Table:
    """Return the table of differences to the first line, paired by seed."""
    reference, *others = points.lines
    one = None if points.across.several else points.metric(None)

    def cell(panel: Any, line: str, x: Any) -> Cell:
        found = points.comparisons.get((panel, line, x))
        summary = found.difference if found else None
        text = mean_text(summary, points.metric(x), sign="+") if summary else _nothing(points, panel, line, x)
        text += SURVIVES if found and found.survives else ""
        own, other = points.marks(panel, line, x), points.marks(panel, reference, x)
        return Cell(text, note=_note(points, summary, own or (other and f"{reference} {other}")))

    return Table(
        name=f"{points.name}-differences",
        title=one.difference_title(reference) if one else f"Differences to {reference}",
        caption="Mean ± half width of the 95 % t interval of the differences paired by seed; "
        f"{_usual(points)}. {comparisons_words(points)}"
        f"{one.sign(reference) if one else f'Positive is more than {reference}.'} "
        f"{points.evaluation()}",
        corner=points.line_label,
        span=points.across.span(points.metrics, points.kind, difference=True),
        header=[points.x_text(x, difference=True) for x in points.xs],
        blocks=blocks_of(points, others, points.xs, cell),
    )


def few(xs: list[Any], most: int = 8) -> list[Any]:
    """Return at most `most` of the values, including the first and the last."""
    if len(xs) <= most:
        return xs
    return [xs[round(index * (len(xs) - 1) / (most - 1))] for index in range(most)]


def blocks_of(
    points: Points, lines: list[str], xs: list[Any], cell: Callable[[Any, str, Any], Cell]
) -> list[tuple[str, list[list[Cell]]]]:
    """Return a table's blocks, one per panel: a heading, and a row of cells for every line in the panel."""
    panel_field = points.chart.panel
    there = {(panel, line) for panel, line, _ in points.planned}
    return [
        (
            setting(panel_field, panel) if panel_field else "",
            [[Cell(line), *(cell(panel, line, x) for x in xs)] for line in lines if (panel, line) in there],
        )
        for panel in points.panels
    ]


def _stands_out(points: Points, panel: Any, line: str, x: Any, higher_is_better: bool | None) -> bool:
    """Return whether a line is the best at (panel, x), without overlap with any other line there."""
    own = points.summary(panel, line, x)
    others = [other for other in points.lines if other != line and (panel, other, x) in points.planned]
    rivals = [points.summary(panel, other, x) for other in others]
    if own is None or not rivals or points.marks(panel, line, x):
        return False
    return all(
        rival is not None and not overlap(own, rival) and (own.mean > rival.mean) == higher_is_better
        for rival in rivals
    )


def mean_text(summary: Summary, metric: Metric, sign: str = "") -> str:
    """Return "84.3 ± 1.2" in the metric's unit; without an interval only the mean."""
    mean = f"{summary.mean * metric.scale:{sign}z.{metric.decimals}f}".replace("-", MINUS)
    if summary.half_width is None:
        return mean
    return f"{mean} ± {summary.half_width * metric.scale:.{metric.decimals}f}"


def interval_text(estimate: Estimate, text: Callable[[float], str]) -> str:
    """Return "63.2 [51.0, 75.9]", its numbers written by `text`; without an interval only the value."""
    value, *ends = (text(one).replace("-", MINUS) for one in (estimate.value, *(estimate.interval or ())))
    return f"{value} [{', '.join(ends)}]" if ends else value


def _nothing(points: Points, panel: Any, line: str, x: Any) -> str:
    return NOTHING if (panel, line, x) in points.planned else ""


def _note(points: Points, summary: Summary | None, marks: str) -> str:
    """Return the note of a cell: its n, if it is not the usual one, and its runs that diverged or are at chance."""
    n = f"n = {summary.n}" if summary and summary.n != points.usual_n() else ""
    return "; ".join(part for part in (n, marks) if part)


def _usual(points: Points) -> str:
    n = points.usual_n()
    if n == 0:
        return points.nothing()
    uneven = any(len(values) != n for values in points.values.values())
    alone = "; one seed gives no interval" if any(len(v) == 1 for v in points.values.values()) else ""
    return f"n = {n} {'seed' if n == 1 else 'seeds'}{' unless a cell says otherwise' if uneven else ''}{alone}"


def _without(points: Points) -> str:
    return f" {points.across.lacking(points.without_value)}" if points.without_value else ""
