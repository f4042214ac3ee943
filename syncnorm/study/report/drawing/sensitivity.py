"""The figure of a tuned field: validation against its values, one line a line of the study, choices marked."""

from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

from syncnorm.study.report.analysis.labels import Metric, axis_label, value_label
from syncnorm.study.report.analysis.tuning import Chosen
from syncnorm.study.report.drawing.figures import Sheet, compose
from syncnorm.study.report.drawing.panels import MOST_BANDS, Styles, grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RING = 11.0
"""Size of the ring around a choice."""


def sensitivity_figure(lines: Sequence[Chosen], name: str, metric: Metric, title: str) -> "Figure":
    """Draw the mean metric of every trial against its value of the field `name`, at most eight lines a panel.

    Trials of a line that tunes this field alone are joined. Crosses at the lower edge are trials that failed or
    diverged.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    groups = [lines[first : first + MOST_BANDS] for first in range(0, len(lines), MOST_BANDS)]
    kinds = {one.line.ranges[name]["kind"] for one in lines}
    values = list(dict.fromkeys(value_label(trial.values[name], name) for one in lines for trial in one.line.trials))
    named = values if "choice" in kinds else []

    def paint(ax: "Axes", index: int, styles: Styles) -> None:
        """Draw the trials of a panel's lines."""
        ax.set_xlabel(axis_label(name))
        if index == 0:
            for one in lines:  # the legend names the lines of all panels
                ax.plot([], [], label=one.label, **styles[one.label].look)
        for one in groups[index]:
            _paint_line(ax, one, name, metric, styles, named)
        if named:
            ax.set_xticks(range(len(named)), named)
            ax.set_xlim(-0.5, len(named) - 0.5)
        elif kinds == {"log_uniform"}:
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
            ax.xaxis.set_minor_locator(NullLocator())
            ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        grid(ax)

    titles = [f"lines {8 * index + 1} to {8 * index + len(group)}" for index, group in enumerate(groups)]
    note = (
        "A marker is the mean of a trial over its runs; a ring is the choice; a cross at the lower edge is a trial "
        "that failed or diverged."
    )
    sheet = Sheet(title, metric.title, note, titles if len(groups) > 1 else [""], [one.label for one in lines], paint)
    return compose(sheet)


def _paint_line(ax: "Axes", one: Chosen, name: str, metric: Metric, styles: Styles, named: Sequence[str]) -> None:
    def place(value: Any) -> float:
        return named.index(value_label(value, name)) if named else float(value)

    style, trials = styles[one.label], one.line.trials
    scored = [
        (place(trial.values[name]), score * metric.scale)
        for trial, score in zip(trials, one.now.scores, strict=True)
        if score is not None and isfinite(score)
    ]
    scored.sort()
    joined = 1.0 if len(one.line.ranges) == 1 and not named else 0.0
    ax.plot([x for x, _ in scored], [y for _, y in scored], **style.look, linewidth=joined, zorder=3)
    for trial, lost in zip(trials, one.now.lost, strict=True):
        if lost:
            where = ax.get_xaxis_transform()
            ax.plot([place(trial.values[name])], [0.02], "x", color=style.color, markersize=5, transform=where)
    if one.now.choice is not None and one.score is not None:
        x, y = place(one.values[name]), one.score * metric.scale
        ax.plot([x], [y], "o", markersize=RING, markerfacecolor="none", markeredgecolor=style.color, zorder=4)
