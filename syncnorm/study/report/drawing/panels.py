"""The contents of panels: lines with intervals, and the x and y axes."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isinf, isnan, log2, nan
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from syncnorm.study.report.analysis.points import Points
from syncnorm.study.report.drawing.style import GRID

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TICK_CHARACTERS, TICK_LINES = 16, 3
PANEL_WIDTH, FEW_WIDTH, MANY_WIDTH, FEW = 3.1, 4.8, 7.4, 6
"""Width of a panel, and minimum width of all together, in inches: for up to `FEW` lines, and for more."""
PANEL_CHARACTERS = 45
"""Characters that fit below a panel of few lines."""
TURN = 60
"""Rotation in degrees of labels that do not fit horizontally."""
SPAN = 30
"""Numbers that span more than this factor are shown on a logarithmic scale."""


SIZES = {"P": 6.0, "X": 6.0, "*": 7.5, "h": 5.5, "p": 5.5, "^": 5.5, "v": 5.5, "<": 5.5, ">": 5.5}
"""Sizes of markers that would look smaller than others."""


@dataclass(frozen=True)
class Style:
    """The style of a line."""

    color: str
    marker: str
    dashes: str = "-"

    @property
    def look(self) -> dict[str, Any]:
        """The style as matplotlib's keyword arguments."""
        return {
            "color": self.color,
            "marker": self.marker,
            "linestyle": self.dashes,
            "markersize": SIZES.get(self.marker, 4.5),
            "markeredgecolor": "white",
            "markeredgewidth": 0.6,
        }


MOST_BANDS = 8
"""Up to this many lines, bands are easy to tell apart."""
Styles = dict[str, Style]
"""By line."""


def positions(xs: list[Any]) -> list[float]:
    """Return the positions of the values of x: logarithmic for powers of two, and for a span of more than a factor of
    30.

    Other numbers keep their values, and other values are placed in order. Infinity ("all") is one step further.
    """
    if not is_numeric(xs):
        return [float(index) for index in range(len(xs))]
    numbers = [x for x in xs if not isinf(x)]
    powers = all(x > 0 and log2(x).is_integer() for x in numbers)
    logarithmic = powers or (min(numbers) > 0 and max(numbers) > SPAN * min(numbers))
    places = [log2(x) if logarithmic else float(x) for x in numbers]
    step = min((b - a for a, b in pairwise(places)), default=1.0)
    return places + [max(places, default=0.0) + step] * (len(xs) - len(numbers))


def x_axis(ax: "Axes", points: Points) -> dict[str, list[float]]:
    """Set up the x axis, and return the positions of every line's points on it.

    Lines are shifted sideways a little, by at most a fifth of a step, so that coinciding lines stay legible.
    """
    places = positions(points.xs)
    step, share = 1.0, 0.5  # every category has an equal share of the width
    if is_numeric(points.xs):
        step, share = min([b - a for a, b in pairwise(places)] + [max(1.0, places[-1] - places[0]) / 4]), 0.4
    labels, turned = tick_labels(points)
    ax.set_xticks(places, labels, rotation=TURN if turned else 0)
    ax.set_xlim(places[0] - share * step, places[-1] + share * step)
    ax.set_xlabel(points.x_label)
    shifts = [step * 0.36 * ((index + 0.5) / len(points.lines) - 0.5) for index in range(len(points.lines))]
    return {line: [place + shift for place in places] for line, shift in zip(points.lines, shifts, strict=True)}


def grid(ax: "Axes") -> None:
    """Set up the y axis, with grid lines."""
    from matplotlib.ticker import MaxNLocator

    ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    ax.grid(axis="y", color=GRID, linewidth=0.7)
    ax.set_axisbelow(True)
    ax.tick_params(length=3, width=0.7)


def draw_line(
    ax: "Axes",
    line: str,
    styles: Styles,
    places: Sequence[float],
    values: Sequence[float],
    intervals: Sequence[tuple[float, float] | None],
    scale: float = 1.0,
    *,
    joined: bool,
) -> None:
    """Draw a line's values (as shown; NaN leaves a gap) and their intervals (times `scale`).

    Points of categories are not joined, and have error bars.
    """
    color = styles[line].color
    lows, highs = ([(ends[side] if ends else nan) * scale for ends in intervals] for side in range(2))
    if joined:
        ax.fill_between(places, lows, highs, color=color, alpha=band(styles), linewidth=0)
    ax.vlines(places, lows, highs, color=color, linewidth=0.7 if joined else 1.6, alpha=0.5)
    ax.plot(places, values, label=line, zorder=3, **styles[line].look, linewidth=1.4 if joined else 0)


def draw_troubled(
    ax: "Axes", line: str, styles: Styles, at: float, value: float, crosses: Sequence[float] = ()
) -> None:
    """Mark a point with runs that diverged or are at chance: an open marker, and a cross for each value at chance.

    A point without a value (NaN) is a cross on the lower edge of the panel.
    """
    color = styles[line].color
    ax.plot([at] * len(crosses), crosses, "x", color=color, markersize=4.5, markeredgewidth=1.0, zorder=4)
    if isnan(value):
        ax.plot(
            at,
            0.0,
            "x",
            color=color,
            markersize=6,
            markeredgewidth=1.4,
            transform=ax.get_xaxis_transform(),
            clip_on=False,
            zorder=4,
        )
        return
    look = styles[line].look | {"markerfacecolor": "white", "markeredgecolor": color, "markeredgewidth": 1.1}
    ax.plot(at, value, **look, zorder=4)


def band(styles: Styles) -> float:
    """Return the opacity of a band: lower if many bands overlap."""
    return 0.16 if len(styles) <= MOST_BANDS else 0.06


def is_numeric(xs: list[Any]) -> bool:
    """Return whether all values of x are numbers."""
    return all(isinstance(x, int | float) and not isinstance(x, bool) for x in xs)


def clip(text: str, room: int) -> str:
    """Return a text of at most `room` characters; a longer one loses its middle."""
    return text if len(text) <= room else f"{text[: room // 2]}…{text[len(text) - (room - 1) // 2 :]}"


def panels_width(panels: int, lines: int) -> float:
    """Return the width in inches of `panels` panels side by side."""
    return max(PANEL_WIDTH * panels, FEW_WIDTH if lines <= FEW else MANY_WIDTH)


def tick_labels(points: Points) -> tuple[list[str], bool]:
    """Return the labels of x below the axis, and whether they are rotated to fit.

    Labels are broken into lines if they then fit horizontally; otherwise they are clipped.
    """
    texts = [points.x_text(x) for x in points.xs]
    if not is_numeric(points.xs):
        wide = len(points.panels) < 2 and len(points.lines) > FEW
        room = int(PANEL_CHARACTERS * (MANY_WIDTH / FEW_WIDTH if wide else 1)) // len(texts) - 2
        lines = [wrap(text, max(1, room), break_long_words=False) or [""] for text in texts]
        if all(len(some) <= TICK_LINES and max(map(len, some)) <= room for some in lines):
            return ["\n".join(some) for some in lines], False
    labels = [clip(text, TICK_CHARACTERS) for text in texts]
    return labels, _crowded(points.xs, [len(label) for label in labels])


def _crowded(xs: list[Any], lengths: list[int]) -> bool:
    """Return whether labels of these lengths do not fit side by side below a panel."""
    if sum(lengths) + 2 * len(lengths) > PANEL_CHARACTERS or max(lengths) > 10:
        return True
    places = positions(xs)
    across = max(places[-1] - places[0], 1e-9)
    room = [PANEL_CHARACTERS * (b - a) / across for a, b in pairwise(places)]
    needed = [(a + b) / 2 + 1 for a, b in pairwise(lengths)]
    return any(here < there for here, there in zip(room, needed, strict=True))
