"""The same trained models, evaluated in several ways."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

from syncnorm.study.plot import Axis, Reads
from syncnorm.study.report.analysis.across import Across, Field
from syncnorm.study.report.analysis.baselines import baseline_marks
from syncnorm.study.report.analysis.labels import value_label
from syncnorm.study.report.analysis.lines import Place, axis_value
from syncnorm.study.report.analysis.points import Chart, Points, gather, joined, named
from syncnorm.study.report.plots.columns import Columns
from syncnorm.study.report.plots.curve import CurveView
from syncnorm.study.rows import Results

Value = TypeVar("Value")


@dataclass(frozen=True)
class Evaluated(Field):
    """A field of the runs, where every run has a value of each metric."""

    def evaluated(self, kind: str) -> str:
        """Say that the lines are ways to evaluate."""
        return "Every trained model is evaluated in each way."


@dataclass(frozen=True)
class Evaluations(Chart):
    """A figure: several metrics of the same runs against `x`, one line per metric, one panel per value of `panel`.

    It compares ways to evaluate a trained model, for example with statistics as trained and re-estimated: differences
    are those to the first metric, within runs. Runs that differ only in the fields of `mean_over` are averaged.
    """

    kind: ClassVar[str] = "evaluations"
    compares: ClassVar[bool] = True

    x: Axis
    metrics: tuple[str, ...]
    panel: Axis | None = None
    mean_over: tuple[str, ...] = ()
    line: Axis = "evaluation"
    """The word for what distinguishes its lines, which is no field of the runs."""

    def collect(self, results: Results) -> CurveView:
        """Collect the metrics of every run, by panel and x."""
        by_line = Columns(self.x, self.metrics, self.panel, self.mean_over, where=self.where)
        raw = {}
        for fields in results.about.runs.values():
            if by_line.fits(fields):
                value = axis_value(self.x, fields, results.about.base)
                raw[value_label(value, self.x)] = value
        points = turned(self, gather(by_line, results), raw)
        return CurveView(**named(points), marks=baseline_marks(by_line, results, ""))

    def axes(self) -> tuple[Axis | None, ...]:
        """Return x and panel."""
        return self.x, self.panel

    def averaged(self) -> tuple[str, ...]:
        """Return `mean_over`."""
        return self.mean_over

    def reads(self) -> Reads:
        """Return the names that it reads from a row."""
        return Reads(metrics=self.metrics)

    def across(self) -> Across:
        """Return the field of x."""
        return Evaluated((self.metrics[0],), self.x)

    def stem(self) -> tuple[str, ...]:
        """Return the first metric and x."""
        return self.metrics[0], joined(self.x)

    def words(self, points: Points) -> str:
        """Return e.g. "Accuracy (%) by clients per round and evaluation"."""
        return f"{points.metric(None).title} by {points.x_and_line}"


def turned(chart: Evaluations, points: Points, raw: Mapping[str, Any]) -> Points:
    """Return points with metrics as x and values of x as lines, with the two exchanged."""
    names = {metric: points.metric(metric).short for metric in chart.metrics}
    at = raw if all(line in raw for line in points.lines) else {line: line for line in points.lines}

    def swap(found: Mapping[Place, Value]) -> dict[Place, Value]:
        """Exchange line and x; what holds for all metrics of a line holds for each."""
        return {
            (panel, names[metric], at[line]): value
            for (panel, line, x), value in found.items()
            for metric in ([x] if x is not None else chart.metrics)
        }

    xs = [at[line] for line in points.lines]
    lines = list(names.values())
    return replace(
        points,
        chart=chart,
        lines=lines,
        xs=chart.across().order(xs, xs),
        planned=frozenset((panel, names[x], at[line]) for panel, line, x in points.planned if line in at),
        values=swap(points.values),
        evaluated_by={name: [metric] for metric, name in names.items()},
        diverged=swap(points.diverged),
        tests=swap(points.tests),
        guessed=swap(points.guessed),
        ran=swap(points.ran),
    )
