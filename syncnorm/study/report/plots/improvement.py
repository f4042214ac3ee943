"""Lines compared over many settings at once."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from syncnorm.study.plot import Axis, Reads
from syncnorm.study.report.analysis.across import Across, Field
from syncnorm.study.report.analysis.labels import Metric, field_label, listing
from syncnorm.study.report.analysis.points import Chart, ChartView, Points, gather, named
from syncnorm.study.report.analysis.tables import interval_text
from syncnorm.study.report.drawing.figures import Sheet, compose
from syncnorm.study.report.drawing.panels import Styles, clip
from syncnorm.study.report.drawing.style import FAINT, GRID
from syncnorm.study.report.inference.improvement import Aggregate, aggregate
from syncnorm.study.report.inference.statistics import Estimate
from syncnorm.study.rows import Results
from syncnorm.study.table import NOTHING, Cell, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CHARACTERS = 24
"""Of a line's name in a panel."""


@dataclass(frozen=True)
class Improvement(Chart):
    """A figure: every line's interquartile mean of `metric` over all settings, and its probability of improvement.

    A setting is a combination of values of the fields `over`, such as ("alpha", "count"). The reference is the line
    with that name, by default the first; a line is compared with it in the settings and seeds that both have.
    """

    kind: ClassVar[str] = "improvement"

    line: Axis
    over: tuple[str, ...]
    metric: str = "accuracy"
    reference: str = ""
    panel: ClassVar[None] = None  # type: ignore[misc]  # its panels are quantities

    def collect(self, results: Results) -> "ImprovementView":
        """Collect the metric of every run, by line and setting."""
        return ImprovementView(**named(gather(self, results)))

    def axes(self) -> tuple[Axis | None, ...]:
        """Return the settings and the line."""
        return self.over, self.line

    def reads(self) -> Reads:
        """Return the names that it reads from a row."""
        return Reads(metrics=(self.metric,))

    def across(self) -> Across:
        """Return the settings."""
        return Field((self.metric,), self.over)

    def stem(self) -> tuple[str, ...]:
        """Return "improvement" and the metric."""
        return "improvement", self.metric

    def words(self, points: Points) -> str:
        """Return e.g. "Accuracy (%) over all settings by norm"."""
        return f"{points.metric(None).title} over all settings by {points.line_label}"


@dataclass(frozen=True, kw_only=True)
class ImprovementView(ChartView):
    """The aggregates of every line over all settings."""

    @property
    def reference(self) -> str:
        """The line that others are compared with."""
        chart = self.points.chart
        asked = chart.reference if isinstance(chart, Improvement) else ""
        return asked if asked in self.points.lines else (self.points.lines or [""])[0]

    @cached_property
    def aggregates(self) -> dict[str, Aggregate]:
        """The aggregates of the lines that share settings and seeds with the reference."""
        points = self.points
        by_line = {
            line: {x: points.values[None, line, x] for x in points.xs if (None, line, x) in points.values}
            for line in points.lines
        }
        higher = points.metric(None).higher_is_better is not False
        found = {
            line: aggregate(own, by_line.get(self.reference, {}), higher_is_better=higher)
            for line, own in by_line.items()
        }
        return {line: one for line, one in found.items() if one}

    def tables(self) -> list[Table]:
        """Return the aggregates: one row for each line."""
        points, metric = self.points, self.points.metric(None)
        unit = f" ({metric.unit})" if metric.unit else ""
        change = f" ({metric.difference_unit})" if metric.difference_unit else ""
        return [
            Table(
                name=points.name,
                title=points.title,
                caption=self._caption(),
                corner=points.line_label,
                span="over all settings",
                header=[
                    f"interquartile mean{unit}",
                    f"difference to {self.reference}{change}",
                    f"P(better than {self.reference})",
                    "settings",
                ],
                blocks=[("", [self._cells(line, metric) for line in points.lines])],
                records=[self._record(line, one) for line, one in self.aggregates.items()],
            )
        ]

    def figure(self) -> "Figure":
        """Draw interquartile means, and probabilities of improvement beside them, with intervals: a row a line."""
        points, metric = self.points, self.points.metric(None)
        others = [line for line in points.lines if line != self.reference]

        def paint(ax: "Axes", index: int, styles: Styles) -> None:
            """Draw what the panel shows."""
            rows = {line: -number for number, line in enumerate(points.lines)}
            for line, row in rows.items():
                one = self.aggregates.get(line)
                if one is None or (index == 1 and line not in others):
                    continue
                shown, scale = ((one.mean, metric.scale), (one.improvement, 1.0))[index]
                low, high = shown.interval or (shown.value, shown.value)
                ax.hlines(row, low * scale, high * scale, color=styles[line].color, linewidth=1.8, alpha=0.6)
                ax.plot(shown.value * scale, row, **styles[line].look, linewidth=0, label=line)
                middle = (low + high) / 2 * scale
                ax.text(middle, row + 0.14, clip(line, CHARACTERS), ha="center", fontsize=8, color=styles[line].color)
            if index == 1:
                ax.axvline(0.5, color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
                ax.set_xlim(-0.03, 1.03)
            ax.set_yticks([])
            ax.set_ylim(0.4 - len(rows), 0.6)
            ax.margins(x=0.12)
            ax.grid(axis="x", color=GRID, linewidth=0.7)
            ax.set_axisbelow(True)
            ax.set_xlabel((metric.title, "probability")[index])

        titles = ["Interquartile mean", f"Probability of improvement over {self.reference}"]
        return compose(Sheet(points.title, "", self._caption(), titles, points.lines, paint))

    def _cells(self, line: str, metric: Metric) -> list[Cell]:
        one = self.aggregates.get(line)
        if one is None:
            return [Cell(line), *(Cell(NOTHING) for _ in range(4))]

        def scaled(estimate: Estimate, sign: str = "") -> str:
            return interval_text(estimate, lambda value: f"{value * metric.scale:{sign}z.{metric.decimals}f}")

        if line == self.reference:
            return [Cell(line), Cell(scaled(one.mean)), Cell(""), Cell(""), Cell(str(one.settings))]
        chance = interval_text(one.improvement, lambda value: f"{value:.2f}")
        return [
            Cell(line),
            Cell(scaled(one.mean)),
            Cell(scaled(one.difference, "+")),
            Cell(chance),
            Cell(str(one.settings)),
        ]

    def _record(self, line: str, one: Aggregate) -> dict[str, Any]:
        parts = {
            "iqm": one.mean,
            "reference_iqm": one.reference,
            "difference": one.difference,
            "improvement": one.improvement,
        }
        columns: dict[str, Any] = {self.points.line_label: line, "reference": self.reference}
        columns |= {"settings": one.settings, "n": one.mean.n}
        for name, estimate in parts.items():
            low, high = estimate.interval or (None, None)
            columns |= {name: estimate.value, f"{name}_low": low, f"{name}_high": high}
        return columns

    def _caption(self) -> str:
        points = self.points
        found = list(self.aggregates.values())
        if not found:
            return f"N{points.nothing()[1:]}."
        chart = points.chart
        fields = listing(field_label(name) for name in chart.over) if isinstance(chart, Improvement) else ""
        seeds = sorted({one.mean.n for one in found})
        n = f"n = {seeds[0]}" if len(seeds) == 1 else f"n = {seeds[0]} to {seeds[-1]}"
        return (
            f"Mean of the middle half of all runs, and probability that a run is better than one of {self.reference} "
            f"in the same setting (a tie is half), with 95 % bootstrap intervals over seeds; {n} seeds. The settings "
            f"({fields}) are not drawn again. {points.evaluation()}"
        )
