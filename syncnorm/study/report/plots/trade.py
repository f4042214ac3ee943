"""One metric against another."""

from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING, Any, ClassVar

from syncnorm.study.plot import Axis, Reads
from syncnorm.study.report.analysis.across import Across, Metrics
from syncnorm.study.report.analysis.points import Chart, ChartView, Points, gather, named
from syncnorm.study.report.analysis.tables import means
from syncnorm.study.report.drawing.figures import compose_chart, footnote
from syncnorm.study.report.drawing.panels import SIZES, SPAN, Styles, draw_troubled, grid
from syncnorm.study.rows import Results
from syncnorm.study.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Trade(Chart):
    """A figure: `metric` against another metric, one point per value of `line`, with intervals in both directions.

    Runs that differ only in the fields of `mean_over` are averaged.
    """

    kind: ClassVar[str] = "trade"

    line: Axis
    x_metric: str = "bytes_total"
    metric: str = "accuracy"
    panel: Axis | None = None
    mean_over: tuple[str, ...] = ()

    def collect(self, results: Results) -> "TradeView":
        """Collect both metrics of every run, by panel and line."""
        return TradeView(**named(gather(self, results)))

    def averaged(self) -> tuple[str, ...]:
        """Return `mean_over`."""
        return self.mean_over

    def reads(self) -> Reads:
        """Return the names that it reads from a row."""
        return Reads(metrics=(self.x_metric, self.metric))

    def across(self) -> Across:
        """Return both metrics."""
        return Metrics((self.x_metric, self.metric))

    def stem(self) -> tuple[str, ...]:
        """Return both metrics."""
        return self.metric, self.x_metric

    def words(self, points: Points) -> str:
        """Return e.g. "Accuracy (%) against data sent both ways (MB), by method"."""
        across, up = points.metric(self.x_metric), points.metric(self.metric)
        return f"{up.title} against {across.label}, by {points.line_label}"


@dataclass(frozen=True, kw_only=True)
class TradeView(ChartView):
    """The points of a trade-off: the mean of every line with intervals in both directions, and every seed as a
    dot."""

    def tables(self) -> list[Table]:
        """Return the means of both metrics."""
        return [means(self.points)]

    def figure(self) -> "Figure":
        """Draw one point per value of `line`."""
        points = self.points
        _, up = points.xs
        return compose_chart(points, points.metric(up), footnote(points, ways=" both ways"), self._paint)

    def _paint(self, ax: "Axes", panel: Any, styles: Styles) -> None:
        from matplotlib.ticker import MaxNLocator

        points = self.points
        across, up = (points.metric(name) for name in points.xs)
        for line in points.lines:
            color = styles[line].color
            xs, ys = (points.values.get((panel, line, name), {}) for name in points.xs)
            both = sorted(xs.keys() & ys.keys())
            dots = [xs[seed] * across.scale for seed in both], [ys[seed] * up.scale for seed in both]
            ax.plot(*dots, ".", color=color, markersize=4, alpha=0.45, markeredgewidth=0)
            x, y = (points.summary(panel, line, name) for name in points.xs)
            at = (x.mean * across.scale, y.mean * up.scale) if x and y else (nan, nan)
            if x and y:
                errors = [(one.half_width or 0.0) * metric.scale for one, metric in ((x, across), (y, up))]
                ax.errorbar(*at, xerr=errors[0], yerr=errors[1], fmt="none", ecolor=color, elinewidth=1.6, alpha=0.5)
            ax.plot(
                *([value] for value in at),
                **(styles[line].look | {"markersize": 2 + SIZES.get(styles[line].marker, 4.5)}),
                linewidth=0,
                label=line,
                zorder=3,
            )
            if x and y and any(points.marks(panel, line, name) for name in points.xs):
                draw_troubled(ax, line, styles, *at)
        found = [value for (_, _, x), by in points.values.items() if x == points.xs[0] for value in by.values()]
        if found and min(found) > 0 and max(found) > SPAN * min(found):
            ax.set_xscale("log")
            ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        else:
            ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        ax.margins(x=0.08)
        ax.set_xlabel(across.title)
        grid(ax)
