"""A metric over the course of training."""

from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING, Any, ClassVar

from syncnorm.study.plot import Axis, Reads
from syncnorm.study.report.analysis.across import Across, Steps
from syncnorm.study.report.analysis.baselines import Marks, baseline_marks
from syncnorm.study.report.analysis.points import Chart, ChartView, Points, gather, named
from syncnorm.study.report.analysis.tables import few, means
from syncnorm.study.report.drawing.baselines import draw_baselines
from syncnorm.study.report.drawing.figures import compose_chart, footnote, noted
from syncnorm.study.report.drawing.panels import Styles, band, grid
from syncnorm.study.rows import Results
from syncnorm.study.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class History(Chart):
    """A figure: `metric` against rounds or epochs, one line per value of `line`.

    `metric` is a name of a row's history, such as "train_loss". Runs that differ only in the fields of `mean_over`
    are averaged.
    """

    kind: ClassVar[str] = "history"

    line: Axis
    metric: str = "train_loss"
    panel: Axis | None = None
    mean_over: tuple[str, ...] = ()

    def collect(self, results: Results) -> "HistoryView":
        """Collect the metric of every step of every run, by panel and line."""
        marks = baseline_marks(self, results, self.metric)
        return HistoryView(**named(gather(self, results)), marks=marks)

    def averaged(self) -> tuple[str, ...]:
        """Return `mean_over`."""
        return self.mean_over

    def reads(self) -> Reads:
        """Return the names that it reads from a row."""
        return Reads(histories=(self.metric,))

    def across(self) -> Across:
        """Return the steps."""
        return Steps((self.metric,))

    def stem(self) -> tuple[str, ...]:
        """Return "history" and the metric."""
        return "history", self.metric

    def words(self, points: Points) -> str:
        """Return e.g. "Training loss (nats) by round and method"."""
        return f"{points.metric(None).title} by {points.x_and_line}"


@dataclass(frozen=True, kw_only=True)
class HistoryView(ChartView):
    """The lines of a history: means with interval bands, and baselines dashed."""

    marks: Marks

    def tables(self) -> list[Table]:
        """Return a table of the means at a few steps; its records have all steps."""
        return [means(self.points, few(self.points.xs))]

    def figure(self) -> "Figure":
        """Draw one line per value of `line`."""
        points = self.points
        note = noted(footnote(points, dots=False), self.marks.note(points))
        return compose_chart(points, points.metric(None), note, self._paint)

    def _paint(self, ax: "Axes", panel: Any, styles: Styles) -> None:
        from matplotlib.ticker import MaxNLocator

        points = self.points
        scale = points.metric(None).scale
        step = max(1, len(points.xs) // 8)
        for index, line in enumerate(points.lines):
            color = styles[line].color
            seen = [(x, summary) for x in points.xs if (summary := points.summary(panel, line, x))]
            rounds = [x for x, _ in seen]
            intervals = [summary.interval or (nan, nan) for _, summary in seen]
            lows, highs = ([end * scale for end in ends] for ends in (list(zip(*intervals, strict=True)) or [(), ()]))
            ax.fill_between(rounds, lows, highs, color=color, alpha=band(styles), linewidth=0)
            ax.plot(
                rounds,
                [summary.mean * scale for _, summary in seen],
                **styles[line].look,
                linewidth=1.4,
                markevery=(index * step // len(points.lines), step),  # separates the markers of coinciding lines
                label=line,
                zorder=3,
            )
        draw_baselines(ax, points, panel, self.marks)
        ax.set_xlabel(points.x_label)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
        grid(ax)
