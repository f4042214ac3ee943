"""The tables of a report: what is in them. `table_formats` writes them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from syncnorm.study.exhibits import Axis, Columns, Curve, Gap, History, Trade, names_of
from syncnorm.study.plan.spec import flatten, value_at
from syncnorm.study.report.agreement import Comparison, compare
from syncnorm.study.report.labels import Metric, field_label, listing, setting, value_label
from syncnorm.study.report.points import Points
from syncnorm.study.report.statistics import Estimate, Summary, overlap
from syncnorm.study.rows import Results, Row

MAIN = (
    "method",
    "algorithm",
    "count",
    "participation",
    "ranks",
    "per_device_batch",
    "skew",
    "alpha",
    "domains",
    "unseen",
    "batches",
    "adapt",
)
"""The fields of a world that tell most about a run."""
NOTHING = "—"
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Cell:
    """A table's cell: its text, whether it stands out, and a note in smaller type ("n = 3")."""

    text: str
    bold: bool = False
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table in blocks. The first cell of a line names it; the others are below `header`."""

    name: str
    """Of its files, without a suffix."""
    title: str
    caption: str
    corner: str
    """What the first column holds."""
    span: str
    """What the header's other columns are values of; may be empty."""
    header: list[str]
    blocks: list[tuple[str, list[list[Cell]]]]
    """A heading (may be empty) and the lines below it."""
    records: list[dict[str, Any]] = field(default_factory=list)
    """The same in full precision, one statistic a column."""


def tables_of(points: Points) -> list[Table]:
    """Return the tables of a chart: means, and for curves and columns the differences to the first line."""
    several = len(points.lines) > 1 and isinstance(points.chart, Curve | Columns)
    return [means(points), *([differences(points)] if several else [])]


def means(points: Points) -> Table:
    """Return the table of means with 95 % intervals: lines by x, a block a panel.

    The best of a column is bold only if its interval is apart from those of all other lines there. Of a history, few
    rounds are shown; the records have all.
    """

    def cell(panel: Any, line: str, x: Any) -> Cell:
        summary, metric = points.summary(panel, line, x), points.metric(x)
        text = mean_text(summary, metric) if summary else _nothing(points, panel, line, x)
        note = _note(summary, points)
        return Cell(text, _stands_out(points, panel, line, x, metric.higher_is_better), note)

    xs = _few(points.xs) if isinstance(points.chart, History) else points.xs

    return Table(
        name=points.name,
        title=points.title,
        caption=f"Mean ± half width of the 95 % t interval over seeds; {_usual(points)}. "
        "Bold: best of its column, with an interval apart from all others in it. "
        f"{points.evaluation()}{_without(points)}",
        corner=points.line_label,
        span=_span(points),
        header=[points.x_text(x) for x in xs],
        blocks=blocks_of(points, points.lines, xs, cell),
        records=_records(points),
    )


def differences(points: Points) -> Table:
    """Return the table of differences to the first line, paired by seed."""
    reference, *others = points.lines
    one = points.metric(None) if isinstance(points.chart, Curve) else None

    def cell(panel: Any, line: str, x: Any) -> Cell:
        summary = points.difference(panel, line, x, reference)
        text = mean_text(summary, points.metric(x), sign="+") if summary else _nothing(points, panel, line, x)
        return Cell(text, note=_note(summary, points))

    return Table(
        name=f"{points.name}-differences",
        title=one.difference_title(reference) if one else f"Differences to {reference}",
        caption="Mean ± half width of the 95 % t interval of the differences paired by seed; "
        f"{_usual(points)}. {one.sign(reference) if one else f'Positive is more than {reference}.'} "
        f"{points.evaluation()}",
        corner=points.line_label,
        span=_span(points, difference=True),
        header=[points.x_text(x, difference=True) for x in points.xs],
        blocks=blocks_of(points, others, points.xs, cell),
    )


def _span(points: Points, *, difference: bool = False) -> str:
    """Return what the columns of a chart's table are values of."""
    if not isinstance(points.chart, Trade | Columns):
        return points.x_label
    if not points.shared_unit:
        return "metric"
    return "accuracy (percentage points)" if difference else "accuracy (%)"


def _few(xs: list[Any], most: int = 8) -> list[Any]:
    """Return at most so many of the values, the first and the last among them."""
    if len(xs) <= most:
        return xs
    return [xs[round(index * (len(xs) - 1) / (most - 1))] for index in range(most)]


def agreement_table(results: Results) -> Table:
    """Return the table of claims that a field changes nothing: pairs, largest differences, verdict."""
    lines: list[list[Cell]] = []
    records: list[dict[str, Any]] = []
    for one in (compare(agreement, results.finished) for agreement in results.about.agreements):
        words, tolerance, pairs = _compared(one), one.agreement.tolerance, len(one.pairs)
        if not one.differences:
            texts = [words, NOTHING, str(pairs), NOTHING, f"{tolerance:.0e}", "not compared"]
            lines.append([Cell(text) for text in texts])
        for metric, difference in one.differences.items():
            verdict = "agree" if difference <= tolerance else "differ"
            size = f"{difference:.1e}" if difference else "0"
            texts = [words, metric, str(pairs), size, f"{tolerance:.0e}", verdict]
            lines.append([Cell(text) for text in texts])
            records.append(
                {
                    "over": one.agreement.over,
                    "metric": metric,
                    "pairs": pairs,
                    "largest_absolute_difference": difference,
                    "tolerance": tolerance,
                    "verdict": verdict,
                    "run_a": one.worst[metric][0]["run_id"],
                    "run_b": one.worst[metric][1]["run_id"],
                }
            )
    return Table(
        name="agreements",
        title="Agreement",
        caption="Runs that differ in one field alone: the largest absolute difference of every metric that "
        "both have, as stored (fractions and nats), against the tolerance.",
        corner="over",
        span="",
        header=["metric", "pairs", "largest difference", "tolerance", "verdict"],
        blocks=[("", lines)],
        records=records,
    )


def _compared(comparison: Comparison) -> str:
    """Return an agreement's field and the values that were compared: "engine: virtual and torchrun"."""
    over = comparison.agreement.over
    values = [value_label(value_at(row["config"], over)) for pair in comparison.pairs for row in pair]
    return f"{field_label(over)}: {listing(dict.fromkeys(values))}" if values else field_label(over)


def failures(failed: list[Row]) -> Table:
    """Return the table of runs that gave no result, and why."""
    return Table(
        name="failures",
        title="Failed runs",
        caption="They are in no mean above. The next start of the study tries them again.",
        corner="run",
        span="",
        header=["settings", "error"],
        blocks=[("", [[Cell(row["run_id"]), Cell(run_words(row)), Cell(row["error"])] for row in failed])],
        records=[{"run_id": row["run_id"], "error": row["error"], **flatten(row["config"])} for row in failed],
    )


def run_words(row: Row) -> str:
    """Return a row's main settings: "bn, devices 8, samples per device 4, label-sorted data 0 %, seed 0"."""
    config = row["config"]
    parts = [setting(name, config["world"][name]) for name in MAIN if config["world"].get(name) not in (None, [])]
    return ", ".join([config["norm"]["name"], *parts, f"seed {config['seed']}"])


def run_records(results: Results) -> list[dict[str, Any]]:
    """Return every row of the study in one level: settings, metrics, evaluated by, seconds, or the error."""
    return [
        {
            "run_id": row["run_id"],
            **{f"config.{name}": value for name, value in flatten(row["config"]).items()},
            **{f"metrics.{name}": value for name, value in row.get("metrics", {}).items()},
            "evaluated_by": row.get("evaluated_by"),
            "seconds": row["seconds"],
            "finished": row["finished"],
            "error": row.get("error"),
        }
        for row in [*results.finished, *results.failed]
    ]


def blocks_of(
    points: Points, lines: list[str], xs: list[Any], cell: Callable[[Any, str, Any], Cell]
) -> list[tuple[str, list[list[Cell]]]]:
    """Return a table's blocks, one a panel: its heading, and a line of cells for every line that is there."""
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
    """Return whether a line is the best at (panel, x), apart from all others that the study has there."""
    own = points.summary(panel, line, x)
    others = [other for other in points.lines if other != line and (panel, other, x) in points.planned]
    rivals = [points.summary(panel, other, x) for other in others]
    if own is None or not rivals:
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


def _note(summary: Summary | None, points: Points) -> str:
    return f"n = {summary.n}" if summary and summary.n != points.usual_n() else ""


def _usual(points: Points) -> str:
    n = points.usual_n()
    if n == 0:
        return points.nothing()
    uneven = any(len(values) != n for values in points.values.values())
    alone = "; one seed gives no interval" if any(len(v) == 1 for v in points.values.values()) else ""
    return f"n = {n} {'seed' if n == 1 else 'seeds'}{' unless a cell says otherwise' if uneven else ''}{alone}"


def _without(points: Points) -> str:
    if not points.without_value:
        return ""
    if isinstance(points.chart, Trade | Columns):
        return f" {points.without_value} finished runs do not have all of these metrics."
    return f" Left out: {points.without_value} finished runs without a finite {points.chart.metric}."


def _records(points: Points) -> list[dict[str, Any]]:
    """Return one record a point: its statistics and those of its difference to the first line, as stored."""
    records = []
    for panel in points.panels:
        for line in points.lines:
            for x in points.xs:
                if (summary := points.summary(panel, line, x)) is None:
                    continue
                seeds = sorted(points.values[panel, line, x])
                difference = None if line == points.lines[0] else points.difference(panel, line, x, points.lines[0])
                records.append(
                    {
                        **place_columns(points, panel, line, x),
                        "evaluated_by": " / ".join(points.evaluated_by[line]),
                        "seeds": " ".join(map(str, seeds)),
                        **statistics_columns("", summary),
                        "reference": points.lines[0] if difference else None,
                        **statistics_columns("difference_", difference),
                    }
                )
    return records


def place_columns(points: Points, panel: Any, line: str, x: Any) -> dict[str, Any]:
    """Return the columns that say where a record is in its chart."""
    chart = points.chart
    columns: dict[str, Any] = {_column(chart.panel): panel} if chart.panel else {}
    columns[_column(chart.line)] = line
    if isinstance(chart, Trade | Columns):
        return {**columns, "metric": x}
    x_column = _column(chart.x) if isinstance(chart, Curve | Gap) else points.x_label
    return {**columns, x_column: x, "metric": chart.metric}


def _column(axis: Axis) -> str:
    return "+".join(names_of(axis))


def statistics_columns(prefix: str, summary: Summary | None) -> dict[str, Any]:
    """Return a record's columns of a summary."""
    low, high = (summary.interval if summary else None) or (None, None)
    values = {
        "n": summary.n if summary else None,
        "mean": summary.mean if summary else None,
        "std": summary.std if summary else None,
        "half_width": summary.half_width if summary else None,
        "low": low,
        "high": high,
    }
    return {prefix + name: value for name, value in values.items()}
