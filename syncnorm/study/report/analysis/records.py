"""The records behind a chart's tables: every statistic in full precision, one column each."""

from typing import Any

from syncnorm.study.plot import Axis, names_of
from syncnorm.study.report.analysis.lines import Place
from syncnorm.study.report.analysis.points import Points
from syncnorm.study.report.inference.comparisons import Comparison
from syncnorm.study.report.inference.statistics import Summary


def records_of(points: Points) -> list[dict[str, Any]]:
    """Return one record per point: its statistics and those of its difference to the first line, as stored."""
    records = []
    for panel in points.panels:
        for line in points.lines:
            for x in points.xs:
                if (summary := points.summary(panel, line, x)) is None:
                    continue
                seeds = sorted(points.values[panel, line, x])
                at = panel, line, x
                records.append(
                    {
                        **place_columns(points, *at),
                        "evaluated_by": " / ".join(points.evaluated_by[line]),
                        "seeds": " ".join(map(str, seeds)),
                        **statistics_columns("", summary),
                        **_sampling_columns(points, at),
                        **_comparison_columns(points, at),
                    }
                )
    return records


def place_columns(points: Points, panel: Any, line: str, x: Any) -> dict[str, Any]:
    """Return the columns with a record's place in its chart."""
    chart = points.chart
    columns: dict[str, Any] = {_column(chart.panel): panel} if chart.panel else {}
    columns[_column(chart.line)] = line
    return {**columns, **points.across.columns(x, points.kind)}


def statistics_columns(prefix: str, summary: Summary | None) -> dict[str, Any]:
    """Return the columns of a summary in a record."""
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


def _sampling_columns(points: Points, at: Place) -> dict[str, Any]:
    """Return a point's intervals over test samples, and over seeds and test samples, and its runs without worth."""
    if not points.across.final:
        return {}
    over_tests, both = points.sampled.get(at, (None, None))
    panel, line, x = at
    return {
        **_ends("test_", over_tests),
        **_ends("both_", both.interval if both else None),
        **_worth("", points, panel, line, x),
    }


def _comparison_columns(points: Points, at: Place) -> dict[str, Any]:
    """Return the columns of a point's comparison with the first line."""
    panel, line, x = at
    reference = points.lines[0]
    if not points.across.final:
        difference = None if line == reference else points.difference(panel, line, x, reference)
        return {
            "reference": reference if difference else None,
            **statistics_columns("difference_", difference),
        }
    found: Comparison | None = points.comparisons.get(at)
    covers = None
    if found and found.p is not None:
        covers = "seeds and test samples" if found.over_both else "seeds"
    return {
        "reference": reference if found else None,
        **statistics_columns("difference_", found.difference if found else None),
        **_ends("difference_test_", found.over_tests if found else None),
        **_ends("difference_both_", found.over_both.interval if found and found.over_both else None),
        "correlation": found.correlation if found else None,
        "p": found.p if found else None,
        "p_covers": covers,
        "p_holm": found.adjusted if found else None,
        "comparisons": sum(one.p is not None for one in points.comparisons.values()) if found else None,
        "higher_is_better": points.metric(x).higher_is_better if found else None,
        **(_worth("reference_", points, panel, reference, x) if found else {}),
    }


def _worth(prefix: str, points: Points, panel: Any, line: str, x: Any) -> dict[str, Any]:
    """Return how many of a point's runs diverged, and how many are at chance; None if its rows cannot say."""
    diverged, _ = points.diverged.get((panel, line, x)) or points.diverged.get((panel, line, None)) or (0, 0)
    guessed, said = points.guessed.get((panel, line, x), ([], 0))
    return {f"{prefix}diverged": diverged, f"{prefix}at_chance": len(guessed) if said else None}


def _ends(prefix: str, interval: tuple[float, float] | None) -> dict[str, Any]:
    low, high = interval or (None, None)
    return {f"{prefix}low": low, f"{prefix}high": high}


def _column(axis: Axis) -> str:
    return "+".join(names_of(axis))
