"""Pixel baselines in a panel: dashed lines with their names."""

from collections.abc import Sequence
from math import isnan, nan
from typing import TYPE_CHECKING, Any

from syncnorm.study.report.analysis.baselines import Marks
from syncnorm.study.report.analysis.points import Points
from syncnorm.study.report.drawing.style import FAINT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

APART = 0.06
"""Names closer together than this share of the axis share one label."""
DASHES: Any = (0, (5, 3))


def draw_baselines(
    ax: "Axes", points: Points, panel: Any, marks: Marks, places: Sequence[float] | None = None
) -> None:
    """Draw the baselines of a panel at `places`, one for each x, or, without places, across the whole panel."""
    scale = points.metric(None).scale if not points.across.several else 1.0
    named: list[tuple[float, str]] = []
    for words, values in marks.drawn(points, panel).items():
        shown = [nan if value is None else value * scale for value in values]
        last = next(value for value in reversed(shown) if not isnan(value))
        if places is None or len(set(shown)) == 1:
            ax.axhline(last, color=FAINT, linewidth=0.9, linestyle=DASHES, zorder=2)
        else:
            ax.plot(places, shown, color=FAINT, linewidth=0.9, linestyle=DASHES, zorder=2)
        named.append((last, f"{words} {last:.1f}"))
    low, high = ax.get_ylim()
    axis = min(high, 103.0) - max(low, -3.0)  # as far as the figure shows
    for height, text in _merged(named, APART * axis):
        ax.annotate(
            text,
            (0.995, height),
            xycoords=("axes fraction", "data"),
            xytext=(0, 1.5),
            textcoords="offset points",
            fontsize=6.5,
            color=FAINT,
            ha="right",
            va="bottom",
            zorder=4,
        )


def _merged(named: list[tuple[float, str]], apart: float) -> list[tuple[float, str]]:
    """Return labels from the top; names closer than `apart` to the top one of a label join it."""
    labels: list[tuple[float, str]] = []
    for height, text in sorted(named, reverse=True):
        if labels and labels[-1][0] - height < apart:
            top, before = labels.pop()
            labels.append((top, f"{before}, {text}"))
        else:
            labels.append((height, text))
    return labels
