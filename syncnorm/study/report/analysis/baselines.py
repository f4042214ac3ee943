"""The pixel baselines that belong to the points of a chart."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from syncnorm.study.baselines import family_of
from syncnorm.study.report.analysis.labels import listing, setting
from syncnorm.study.report.analysis.points import Chart, Points, place, rows_of
from syncnorm.study.rows import Results, Row

METRIC = "accuracy"
"""The metric that a baseline can be compared by."""
ROOM = 0.5
"""A baseline below all lines is drawn if it is nearer to them than this share of what the lines span."""


@dataclass(frozen=True)
class Marks:
    """The mean accuracy of every baseline, by panel and x; x is None if a run has several."""

    at: Mapping[tuple[Any, Any], Mapping[str, float]] = field(default_factory=dict)

    def drawn(self, points: Points, panel: Any) -> dict[str, list[float | None]]:
        """Return the accuracy of every baseline at each x of a panel, without those far below all lines."""
        series = {name: [self._find(panel, x).get(name) for x in points.xs] for name in self._words()}
        floor = self._floor(points)
        return {name: values for name, values in series.items() if any(value and value >= floor for value in values)}

    def note(self, points: Points) -> str:
        """Say what the dashed lines are, which baselines are left out, and where no line reaches them."""
        drawn = {name for panel in points.panels or [None] for name in self.drawn(points, panel)}
        parts = ["Dashed: pixel baselines, mean over seeds."] if drawn else []
        for name in self._words():
            if name not in drawn:
                values = [100 * found[name] for found in self.at.values() if name in found]
                low, high = f"{min(values):.1f}", f"{max(values):.1f}"
                parts.append(f"Not drawn, far below: {name}, {low if low == high else f'{low} to {high}'} %.")
        return " ".join([*parts, *filter(None, [self.warning(points)])])

    def warning(self, points: Points) -> str:
        """Say in which panels no line reaches the best baseline at any x; empty if one does in all."""
        lost = [panel for panel in points.panels or [None] if self._unreached(points, panel)]
        if not lost:
            return ""
        named = [setting(points.chart.panel, panel) for panel in lost if points.chart.panel]
        where = f" ({listing(named)})" if named and len(lost) < len(points.panels) else ""
        return f"No line reaches the best baseline{where}: these networks are not trained well enough to be compared."

    def _unreached(self, points: Points, panel: Any) -> bool:
        pairs = []
        for x in points.xs:
            found = self._find(panel, x)
            means = [one.mean for line in points.lines if (one := points.summary(panel, line, x))]
            if found and means and points.across.metric(x) == METRIC:
                pairs.append((max(means), max(found.values())))
        return bool(pairs) and all(best < baseline for best, baseline in pairs)

    def _words(self) -> list[str]:
        return list(dict.fromkeys(name for found in self.at.values() for name in found))

    def _find(self, panel: Any, x: Any) -> Mapping[str, float]:
        return self.at.get((panel, x)) or self.at.get((panel, None)) or {}

    def _floor(self, points: Points) -> float:
        """Return the accuracy below which a baseline would squeeze the lines of a figure."""
        means = [fmean(seeds.values()) for seeds in points.values.values() if seeds]
        if not means:
            return 0.0
        top = max([*means, *(value for found in self.at.values() for value in found.values())])
        return min(means) - ROOM * (top - min(means))


def baseline_marks(chart: Chart, results: Results, metric: str) -> Marks:
    """Return the baselines of a chart of `metric`; none if it is not the accuracy.

    A place has baselines if all its lines have the same data: then a baseline is the mean over these data and their
    seeds.
    """
    if metric != METRIC or not results.baselines:
        return Marks()
    spots: defaultdict[tuple[Any, Any], defaultdict[str, defaultdict[str, list[Row]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for row in rows_of(chart, results):
        panel, line, x = place(chart, results.about.runs[row["run_id"]], results.about.base)
        spots[panel, x][line][family_of(row["config"])].append(row)
    found = {}
    for spot, lines in spots.items():
        if len({frozenset(families) for families in lines.values()}) == 1:
            families = [[row for line in lines.values() for row in line[name]] for name in next(iter(lines.values()))]
            if means := _means(families, results):
                found[spot] = means
    return Marks(found)


def _means(families: list[list[Row]], results: Results) -> dict[str, float]:
    """Return the mean accuracy of the baselines that all families of rows have."""
    means = [accuracies(rows, results) for rows in families]
    return {name: fmean(one[name] for one in means) for name in means[0] if all(name in one for one in means)}


def accuracies(rows: list[Row], results: Results) -> dict[str, float]:
    """Return the mean accuracy over seeds of every baseline that fits rows on one kind of data, by its words."""
    scores = {one.key: one for row in rows for one in results.baselines if one.fits(row)}
    found: defaultdict[str, list[float]] = defaultdict(list)
    for one in scores.values():
        found[one.words].append(one.accuracy)
    return {words: fmean(values) for words, values in found.items()}
