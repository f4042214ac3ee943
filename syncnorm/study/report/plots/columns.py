"""Several metrics side by side."""

from dataclasses import dataclass, replace
from typing import ClassVar

from syncnorm.study.plot import Axis, Reads
from syncnorm.study.report.analysis.across import Across, Metrics, shared_unit
from syncnorm.study.report.analysis.baselines import METRIC, Marks, baseline_marks
from syncnorm.study.report.analysis.points import Chart, ChartView, Points, gather, named
from syncnorm.study.report.analysis.tables import with_differences
from syncnorm.study.rows import Results
from syncnorm.study.table import Table


@dataclass(frozen=True)
class Columns(Chart):
    """A table: one row per value of `line`, one column per metric, one block per value of `panel`.

    Runs that differ only in the fields of `mean_over` are averaged. Lines that do not compete, such as two data sets,
    are not compared: set `rivals` to False.
    """

    kind: ClassVar[str] = "columns"
    compares: ClassVar[bool] = True

    line: Axis
    metrics: tuple[str, ...] = ("accuracy",)
    panel: Axis | None = None
    mean_over: tuple[str, ...] = ()
    rivals: bool = True

    def collect(self, results: Results) -> "ColumnsView":
        """Collect the metrics of every run, by panel and line."""
        metric = METRIC if METRIC in self.metrics else ""
        return ColumnsView(**named(gather(self, results)), marks=baseline_marks(self, results, metric))

    def averaged(self) -> tuple[str, ...]:
        """Return `mean_over`."""
        return self.mean_over

    def reads(self) -> Reads:
        """Return the names that it reads from a row."""
        return Reads(metrics=self.metrics)

    def across(self) -> Across:
        """Return the metrics."""
        return Metrics(self.metrics)

    def stem(self) -> tuple[str, ...]:
        """Return "columns"."""
        return ("columns",)

    def words(self, points: Points) -> str:
        """Return e.g. "Accuracy (%) by method"."""
        return f"{shared_unit(points.metrics) or 'Metrics'} by {points.line_label}"


@dataclass(frozen=True, kw_only=True)
class ColumnsView(ChartView):
    """The tables of means and of differences, without a figure."""

    marks: Marks

    def tables(self) -> list[Table]:
        """Return the means and the differences to the first line; a caption warns of lines below a baseline."""
        first, *others = with_differences(self.points)
        if warning := self.marks.warning(self.points):
            first = replace(first, caption=f"{first.caption} {warning}")
        return [first, *others]
