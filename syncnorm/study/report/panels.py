"""What is inside a figure's panel: curves, histories, and one metric against another."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isinf, log2, nan
from textwrap import wrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from syncnorm.study.exhibits import Trade
from syncnorm.study.report.points import Points

INK, FAINT, GRID = "#22262b", "#6b7280", "#e5e7eb"
CHARACTER = 0.085
"""Inches, of an average character in the figure's size of type."""
TICK_CHARACTERS, TICK_LINES = 16, 3
PANEL_WIDTH, FEW_WIDTH, MANY_WIDTH, FEW = 3.1, 4.8, 7.4, 6
"""Inches of a panel, and at least of all together: for up to `FEW` lines, and for more."""
PANEL_CHARACTERS = 45
"""Characters that fit below a panel of few lines."""
TURN = 60
"""Degrees, of labels that do not fit level."""
SPAN = 30
"""The factor from which numbers are shown by their logarithm."""


SIZES = {"P": 6.0, "X": 6.0, "*": 7.5, "h": 5.5, "p": 5.5, "^": 5.5, "v": 5.5, "<": 5.5, ">": 5.5}
"""Of markers that would look smaller than others."""


@dataclass(frozen=True)
class Style:
    """How a line looks."""

    color: str
    marker: str
    dashes: str = "-"

    @property
    def look(self) -> dict[str, Any]:
        """The same for matplotlib."""
        return {
            "color": self.color,
            "marker": self.marker,
            "linestyle": self.dashes,
            "markersize": SIZES.get(self.marker, 4.5),
            "markeredgecolor": "white",
            "markeredgewidth": 0.6,
        }


MOST_BANDS = 8
"""Lines whose bands stay apart."""
Styles = dict[str, Style]
"""By line."""


def positions(xs: list[Any]) -> list[float]:
    """Return where the values of x lie: powers of two, and what spans more than a factor of 30, by logarithm.

    Other numbers lie as they are, and what is no number in order. Infinity, as much as there is, is one step further.
    """
    if not is_numeric(xs):
        return [float(index) for index in range(len(xs))]
    numbers = [x for x in xs if not isinf(x)]
    powers = all(x > 0 and log2(x).is_integer() for x in numbers)
    logarithmic = powers or (min(numbers) > 0 and max(numbers) > SPAN * min(numbers))
    places = [log2(x) if logarithmic else float(x) for x in numbers]
    step = min((b - a for a, b in pairwise(places)), default=1.0)
    return places + [max(places, default=0.0) + step] * (len(xs) - len(numbers))


def curve_panel(ax: Axes, points: Points, panel: Any, styles: Styles) -> None:
    """Draw the means of every line against x, their intervals, and every seed as a dot."""
    scale = points.metric(None).scale
    for line, places in x_axis(ax, points).items():
        summaries = [points.summary(panel, line, x) for x in points.xs]
        means = [one.mean * scale if one else nan for one in summaries]
        intervals = [one.interval if one else None for one in summaries]
        draw_line(ax, line, styles, places, means, intervals, scale, joined=is_numeric(points.xs))
        for x, place in zip(points.xs, places, strict=True):
            values = [value * scale for value in points.values.get((panel, line, x), {}).values()]
            color = styles[line].color
            ax.plot([place] * len(values), values, ".", color=color, markersize=4, alpha=0.45, markeredgewidth=0)
    grid(ax)


def x_axis(ax: Axes, points: Points) -> dict[str, list[float]]:
    """Lay out the axis of x, and return where the points of every line lie on it.

    Lines that coincide stay legible: each is moved sideways a little, by at most a fifth of a step.
    """
    places = positions(points.xs)
    step = min([b - a for a, b in pairwise(places)] + [max(1.0, places[-1] - places[0]) / 4])
    labels, turned = tick_labels(points)
    ax.set_xticks(places, labels, rotation=TURN if turned else 0)
    margin = 0.4 * step
    ax.set_xlim(places[0] - margin, places[-1] + margin)
    ax.set_xlabel(points.x_label)
    shifts = [step * 0.36 * ((index + 0.5) / len(points.lines) - 0.5) for index in range(len(points.lines))]
    return {line: [place + shift for place in places] for line, shift in zip(points.lines, shifts, strict=True)}


def history_panel(ax: Axes, points: Points, panel: Any, styles: Styles) -> None:
    """Draw the mean of every line round by round, within the band of its intervals."""
    scale = points.metric(None).scale
    step = max(1, len(points.xs) // 8)
    for index, line in enumerate(points.lines):
        color = styles[line].color
        seen = [(x, summary) for x in points.xs if (summary := points.summary(panel, line, x))]
        rounds = [x for x, _ in seen]
        intervals = [summary.interval or (nan, nan) for _, summary in seen]
        lows, highs = ([end * scale for end in ends] for ends in (list(zip(*intervals, strict=True)) or [(), ()]))
        ax.fill_between(rounds, lows, highs, color=color, alpha=_band(styles), linewidth=0)
        ax.plot(
            rounds,
            [summary.mean * scale for _, summary in seen],
            **styles[line].look,
            linewidth=1.4,
            markevery=(index * step // len(points.lines), step),  # markers of lines that coincide stay apart
            label=line,
            zorder=3,
        )
    ax.set_xlabel(points.x_label)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    grid(ax)


def trade_panel(ax: Axes, points: Points, panel: Any, styles: Styles) -> None:
    """Draw one metric against another: the mean of every line, its intervals both ways, every seed as a dot."""
    chart = points.chart
    assert isinstance(chart, Trade)
    across, up = points.metric(chart.x_metric), points.metric(chart.metric)
    for line in points.lines:
        color = styles[line].color
        xs, ys = (points.values.get((panel, line, name), {}) for name in chart.metrics)
        both = sorted(xs.keys() & ys.keys())
        dots = [xs[seed] * across.scale for seed in both], [ys[seed] * up.scale for seed in both]
        ax.plot(*dots, ".", color=color, markersize=4, alpha=0.45, markeredgewidth=0)
        x, y = (points.summary(panel, line, name) for name in chart.metrics)
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
    means = [value for (_, _, x), values in points.values.items() if x == chart.x_metric for value in values.values()]
    if means and min(means) > 0 and max(means) > SPAN * min(means):
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    else:
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ax.margins(x=0.08)
    ax.set_xlabel(across.title)
    grid(ax)


def grid(ax: Axes) -> None:
    """Lay out the axis of y, with lines across."""
    ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    ax.grid(axis="y", color=GRID, linewidth=0.7)
    ax.set_axisbelow(True)
    ax.tick_params(length=3, width=0.7)


def draw_line(
    ax: Axes,
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

    Between categories there is nothing: they are not joined, and get intervals as bars.
    """
    color = styles[line].color
    lows, highs = ([(ends[side] if ends else nan) * scale for ends in intervals] for side in range(2))
    if joined:
        ax.fill_between(places, lows, highs, color=color, alpha=_band(styles), linewidth=0)
    ax.vlines(places, lows, highs, color=color, linewidth=0.7 if joined else 1.6, alpha=0.5)
    ax.plot(places, values, label=line, zorder=3, **styles[line].look, linewidth=1.4 if joined else 0)


def _band(styles: Styles) -> float:
    """Return how much a band covers: little where many lie over each other."""
    return 0.16 if len(styles) <= MOST_BANDS else 0.06


def is_numeric(xs: list[Any]) -> bool:
    """Return whether all values of x are numbers."""
    return all(isinstance(x, int | float) and not isinstance(x, bool) for x in xs)


def clip(text: str, room: int) -> str:
    """Return a text of at most `room` characters: where it has more, its middle is left out (tables have all)."""
    return text if len(text) <= room else f"{text[: room // 2]}…{text[len(text) - (room - 1) // 2 :]}"


def panels_width(panels: int, lines: int) -> float:
    """Return the inches of so many panels side by side."""
    return max(PANEL_WIDTH * panels, FEW_WIDTH if lines <= FEW else MANY_WIDTH)


def tick_labels(points: Points) -> tuple[list[str], bool]:
    """Return the values of x as they stand below the axis, and whether they are turned to fit.

    Words are broken over lines where that makes them fit level; else they are clipped.
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
    """Return whether labels of so many characters do not fit side by side below a panel."""
    if sum(lengths) + 2 * len(lengths) > PANEL_CHARACTERS or max(lengths) > 10:
        return True
    places = positions(xs)
    across = max(places[-1] - places[0], 1e-9)
    room = [PANEL_CHARACTERS * (b - a) / across for a, b in pairwise(places)]
    needed = [(a + b) / 2 + 1 for a, b in pairwise(lengths)]
    return any(here < there for here, there in zip(room, needed, strict=True))
