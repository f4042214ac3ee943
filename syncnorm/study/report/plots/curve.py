"""A metric against a field of the runs, or against another metric."""

from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING, Any, ClassVar

from syncnorm.study.plot import Axis, Reads, names_of
from syncnorm.study.report.analysis.across import Across, Field, Measured
from syncnorm.study.report.analysis.baselines import Marks, baseline_marks
from syncnorm.study.report.analysis.points import Chart, ChartView, Points, gather, joined, named
from syncnorm.study.report.analysis.tables import with_differences
from syncnorm.study.report.drawing.baselines import draw_baselines
from syncnorm.study.report.drawing.figures import below, compose_chart, footnote, noted
from syncnorm.study.report.drawing.panels import (
    Styles,
    draw_line,
    draw_troubled,
    grid,
    is_numeric,
    positions,
    x_axis,
)
from syncnorm.study.rows import Results
from syncnorm.study.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Curve(Chart):
    """A figure: `metric` against `x`, one line per value of `line`, one panel per value of `panel`.

    Runs that differ only in the fields of `mean_over` are averaged. With `measured`, `x` is a metric instead of a
    field, one with the same value for all seeds, such as "values_per_channel". Lines that do not compete, such as two
    data sets, are not compared: set `rivals` to False.
    """

    kind: ClassVar[str] = "curve"
    compares: ClassVar[bool] = True

    x: Axis
    line: Axis
    panel: Axis | None = None
    metric: str = "accuracy"
    mean_over: tuple[str, ...] = ()
    measured: bool = False
    rivals: bool = True

    def collect(self, results: Results) -> "CurveView":
        """Collect the metric of every run, by panel, line and x."""
        marks = baseline_marks(self, results, self.metric)
        return CurveView(**named(gather(self, results)), marks=marks)

    def axes(self) -> tuple[Axis | None, ...]:
        """Return x, unless it is a metric, line and panel."""
        return (None if self.measured else self.x), self.line, self.panel

    def averaged(self) -> tuple[str, ...]:
        """Return `mean_over`."""
        return self.mean_over

    def reads(self) -> Reads:
        """Return the names that it reads from a row."""
        return Reads(metrics=(self.metric, *self._measured()))

    def across(self) -> Across:
        """Return the field of x, or its metric."""
        return Measured((self.metric, *self._measured())) if self.measured else Field((self.metric,), self.x)

    def stem(self) -> tuple[str, ...]:
        """Return the metric and x."""
        return self.metric, joined(self.x)

    def words(self, points: Points) -> str:
        """Return e.g. "Accuracy (%) by samples per device and norm"."""
        return f"{points.metric(None).title} by {points.x_and_line}"

    def _measured(self) -> tuple[str, ...]:
        return names_of(self.x) if self.measured else ()


@dataclass(frozen=True, kw_only=True)
class CurveView(ChartView):
    """The lines of a curve: means with intervals, every seed as a dot, and baselines dashed."""

    marks: Marks

    def tables(self) -> list[Table]:
        """Return the means, and the differences to the first line."""
        return with_differences(self.points)

    def figure(self) -> "Figure":
        """Draw one line per value of `line`."""
        points = self.points
        note = noted(footnote(points), self.marks.note(points))
        return compose_chart(points, points.metric(None), note, self._paint, below(points))

    def _paint(self, ax: "Axes", panel: Any, styles: Styles) -> None:
        points = self.points
        scale = points.metric(None).scale
        measured = isinstance(points.across, Measured)  # lines may have other x: no gaps between their own
        for line, places in x_axis(ax, points).items():
            summaries = [points.summary(panel, line, x) for x in points.xs]
            means = [one.mean * scale if one else nan for one in summaries]
            intervals = [one.interval if one else None for one in summaries]
            at = [i for i, x in enumerate(points.xs) if not measured or (panel, line, x) in points.values]
            shown = [places[i] for i in at], [means[i] for i in at], [intervals[i] for i in at]
            draw_line(ax, line, styles, *shown, scale, joined=is_numeric(points.xs))
            for x, place in zip(points.xs, places, strict=True):
                values = [value * scale for value in points.values.get((panel, line, x), {}).values()]
                color = styles[line].color
                ax.plot([place] * len(values), values, ".", color=color, markersize=4, alpha=0.45, markeredgewidth=0)
            for x, place, mean in zip(points.xs, places, means, strict=True):
                if points.marks(panel, line, x):
                    found = points.values.get((panel, line, x), {})
                    seeds, _ = points.guessed.get((panel, line, x), ([], 0))
                    crosses = [found[seed] * scale for seed in seeds if seed in found]
                    draw_troubled(ax, line, styles, place, mean, crosses)
        draw_baselines(ax, points, panel, self.marks, positions(points.xs))
        grid(ax)
