"""The parts of a report on a study that tunes: what was chosen, its sensitivity, and tables at one shared value."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from syncnorm.study.plot import Plot, View
from syncnorm.study.report.analysis.labels import Metric, field_label
from syncnorm.study.report.analysis.tuning import (
    Chosen,
    chosen,
    chosen_metric,
    chosen_table,
    shared_words,
)
from syncnorm.study.report.drawing.sensitivity import sensitivity_figure
from syncnorm.study.report.render import LeftOut, render
from syncnorm.study.rows import SHARED, Results
from syncnorm.study.table import Table
from syncnorm.study.tuning.choose import tuning_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class ChosenView(View):
    """The table of choices."""

    results: Results

    def tables(self) -> list[Table]:
        """Return the table of choices."""
        return [chosen_table(self.results)]


@dataclass(frozen=True, kw_only=True)
class SensitivityView(View):
    """Validation against one tuned field."""

    lines: Sequence[Chosen]
    field: str
    metric: Metric

    def figure(self) -> "Figure":
        """Draw every trial of every line."""
        return sensitivity_figure(self.lines, self.field, self.metric, self.title)


def tuning_views(results: Results) -> list[View]:
    """Return the views of a study's tuning: the choices, and the sensitivity to each field; none without tuning."""
    tuning = tuning_of(results.about)
    if tuning is None:
        return []
    lines, metric = chosen(results), chosen_metric(results, tuning)
    views: list[View] = [ChosenView(name="chosen", title="What was chosen", results=results)]
    for name in dict.fromkeys(name for one in lines for name in one.line.ranges):
        own = [one for one in lines if name in one.line.ranges]
        if any(score is not None for one in own for score in one.now.scores):
            title = f"{metric.words[:1].upper()}{metric.words[1:]} of every trial against {field_label(name)}"
            stem = f"sensitivity-{name.replace('.', '_')}"
            wide = len(own) > 8
            views.append(SensitivityView(name=stem, title=title, wide=wide, lines=own, field=name, metric=metric))
    return views


def shared_tables(number: int, plot: Plot, results: Results) -> list[Table]:
    """Return a plot's tables of the runs at the base's own values, which the study trains for comparison."""
    tuning, shared = tuning_of(results.about), results.of(SHARED)
    if tuning is None or not any(plot.fits(fields) for fields in shared.about.runs.values()):
        return []
    rendered = render(number, plot, shared)
    if isinstance(rendered, LeftOut):
        return []
    _, tables = rendered
    return [
        replace(
            table,
            name=f"{number}-shared{table.name.removeprefix(str(number))}",
            title=f"{table.title}, at one shared value: {shared_words(tuning)}",
        )
        for table in tables
    ]
