"""Pixel baselines in a panel: dashed lines with their names."""

from collections.abc import Sequence
from math import isfinite, isnan, nan
from typing import TYPE_CHECKING, Any

from syncnorm.study.report.analysis.baselines import Marks
from syncnorm.study.report.analysis.points import Points
from syncnorm.study.report.drawing.style import FAINT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

APART = 0.06
"""Names closer together than this share of the axis share one label."""
WIDTH = 0.2
"""A name takes about this share of the panel's width."""
PLACES = ((0.995, "right"), (0.5, "center"), (0.005, "left"))
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
        place, align, side = _roomiest(ax, height)
        ax.annotate(
            text,
            (place, height),
            xycoords=("axes fraction", "data"),
            xytext=(0, 1.5 * side),
            textcoords="offset points",
            fontsize=6.5,
            color=FAINT,
            ha=align,
            va="bottom" if side > 0 else "top",
            zorder=4,
        )


def _roomiest(ax: "Axes", height: float) -> tuple[float, str, int]:
    """Return where a name at `height` is farthest from what is drawn: place, alignment, and 1 above or -1 below."""
    to_axes = ax.transData + ax.transAxes.inverted()
    lines: list[tuple[Any, Any]] = [(line.get_xydata(), line.get_linestyle()) for line in ax.get_lines()]
    drawn = [
        (x, y)
        for points, style in lines
        if len(points) > 2 or style == "None"
        for x, y in to_axes.transform(points)
        if isfinite(x) and isfinite(y)
    ]
    at = to_axes.transform((ax.get_xlim()[0], height))[1]

    def room(place: tuple[float, str, int]) -> float:
        middle = at + place[2] * APART / 2
        return min((abs(y - middle) for x, y in drawn if abs(x - place[0]) < WIDTH), default=1.0)

    places = [(x, align, side) for x, align in PLACES for side in (1, -1)]
    return next((place for place in places if room(place) > APART), max(places, key=room))


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
