"""The figures of a report: mean and 95 % band of a metric against x, a line each, every seed as a dot.

Drawn without a display and without dates, so that the same rows give the same bytes.
"""

from io import BytesIO, StringIO
from itertools import pairwise
from math import ceil, log2, nan
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from syncnorm.study.files import write_file
from syncnorm.study.labels import axis_label, metric_label, setting, value_label
from syncnorm.study.points import Points

INK, FAINT, GRID = "#22262b", "#6b7280", "#e5e7eb"
# Okabe and Ito's palette, which colour-blind readers tell apart; in grey, the markers do.
STYLES = {
    "bn": ("#d55e00", "o"),
    "sync_bn": ("#0072b2", "s"),
    "gn": ("#009e73", "^"),
    "ln": ("#cc79a7", "D"),
    "none": ("#5f6670", "X"),
    "ghost_bn": ("#e69f00", "v"),
    "in": ("#56b4e9", "P"),
}
OTHERS = [*STYLES.values(), ("#882255", "<"), ("#332288", ">"), ("#117733", "*"), ("#999933", "h"), ("#661100", "p")]
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "syncnorm",
}
PANEL_WIDTH, PANEL_HEIGHT, LEFT = 3.1, 2.6, 0.6
"""Inches."""
CHARACTER = 0.085
"""Inches, of an average character in the figure's size of type."""
TICK_CHARACTERS = 16


def write_figure(points: Points, folder: Path) -> str:
    """Write NAME.png (200 dpi), NAME.svg and NAME.pdf, and return the SVG's text."""
    with mpl.rc_context(STYLE):
        figure = draw(points)
        svg = StringIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
        write_file(folder / f"{points.name}.svg", svg.getvalue())
        for suffix, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
            image = BytesIO()
            figure.savefig(image, format=suffix, dpi=200, metadata=metadata)
            write_file(folder / f"{points.name}.{suffix}", image.getvalue())
    return svg.getvalue()


def draw(points: Points) -> Figure:
    """Return the figure: panels side by side on one y axis, a legend above, what is shown below."""
    metric, panels = metric_label(points.curve.metric), points.panels or [None]
    width = max(PANEL_WIDTH * len(panels), 4.8) + LEFT
    columns = max(1, int((width - LEFT) / (0.6 + CHARACTER * max(map(len, points.lines), default=1))))
    head = fill(points.title, int(10.5 * (width - LEFT)))
    note = "\n".join(fill(part, int(18 * (width - LEFT))) for part in footnote(points).split("\n"))
    titles = 0.12 + 0.2 * (head.count("\n") + 1)
    top = titles + 0.12 + 0.22 * ceil(len(points.lines) / columns) + (0.3 if points.curve.panel else 0.1)
    longest = max(len(_tick_label(x)) for x in points.xs)
    slanted = max(0.5, 0.9 * CHARACTER * longest) if _long_labels(points.xs) else 0.0
    bottom = 0.65 + 0.15 * (note.count("\n") + 1) + slanted
    height = PANEL_HEIGHT + top + bottom
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    styles = line_styles(points.lines)
    for ax, panel in zip(axes, panels, strict=True):
        _draw_panel(ax, points, panel, styles, metric.scale)
        if ax is not axes[0]:
            ax.tick_params(axis="y", length=0)
        if points.curve.panel:
            words = _clip(setting(points.curve.panel, panel), int(PANEL_WIDTH / CHARACTER))
            ax.set_title(words, fontsize=9, loc="left", color=INK, pad=6)
    axes[0].set_ylabel(metric.title)
    if not points.values:
        axes[0].set_yticks([])
    elif metric.unit == "%":  # a t interval of few seeds may leave the range that an accuracy has
        low, high = axes[0].get_ylim()
        axes[0].set_ylim(max(low, -3.0), min(high, 103.0))
    left = LEFT / width
    room = int((width - LEFT - 0.6) / CHARACTER)
    _legend(figure, axes[0], columns, (left - 0.08 / width, 1 - titles / height), room)
    figure.text(left, 1 - 0.12 / height, head, fontsize=11, weight="bold", va="top", linespacing=1.3)
    figure.text(left, 0.1 / height, note, fontsize=7, color=FAINT, va="bottom", linespacing=1.5)
    figure.subplots_adjust(
        left=left, right=1 - 0.15 / width, top=1 - top / height, bottom=bottom / height, wspace=0.1
    )
    return figure


def footnote(points: Points) -> str:
    """Return what the marks mean, over how many seeds, and what evaluated the runs."""
    counts = sorted({len(values) for values in points.values.values()})
    if not counts:
        return f"N{points.nothing()[1:]}."
    n = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
    if counts == [1]:
        return f"One run a point, so no interval; n = 1 seed.\n{points.evaluation()}"
    return f"Mean and 95 % t interval, {n} seeds. Dots: single runs.\n{points.evaluation()}"


def line_styles(lines: list[str]) -> dict[str, tuple[str, str]]:
    """Return colour and marker of every line: a norm has the same in all figures."""
    styles = {line: STYLES[line] for line in lines if line in STYLES}
    free = [style for style in OTHERS if style not in styles.values()] or OTHERS
    rest = [line for line in lines if line not in styles]
    return {**styles, **{line: free[index % len(free)] for index, line in enumerate(rest)}}


def positions(xs: list[Any]) -> list[float]:
    """Return where the values of x lie: powers of two by logarithm, numbers as they are, others in order."""
    if not _numeric(xs):
        return [float(index) for index in range(len(xs))]
    return [log2(x) for x in xs] if all(x > 0 and log2(x).is_integer() for x in xs) else [float(x) for x in xs]


def _draw_panel(ax: Axes, points: Points, panel: Any, styles: dict[str, tuple[str, str]], scale: float) -> None:
    places = positions(points.xs)
    step = min([b - a for a, b in pairwise(places)] + [max(1.0, places[-1] - places[0]) / 4])
    for index, line in enumerate(points.lines):
        # Lines that coincide stay legible: each is moved sideways a little, by at most a fifth of a step.
        shift = step * 0.36 * ((index + 0.5) / len(points.lines) - 0.5)
        _draw_line(ax, points, panel, line, [place + shift for place in places], styles[line], scale)
    ax.set_xticks(places, [_tick_label(x) for x in points.xs])
    if _long_labels(points.xs):
        ax.tick_params(axis="x", labelrotation=60)
    margin = 0.4 * step
    ax.set_xlim(places[0] - margin, places[-1] + margin)
    ax.set_xlabel(axis_label(points.curve.x))
    ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    ax.grid(axis="y", color=GRID, linewidth=0.7)
    ax.set_axisbelow(True)
    ax.tick_params(length=3, width=0.7)


def _draw_line(
    ax: Axes, points: Points, panel: Any, line: str, places: list[float], style: tuple[str, str], scale: float
) -> None:
    color, marker = style
    summaries = [points.summary(panel, line, x) for x in points.xs]
    means = [one.mean * scale if one else nan for one in summaries]
    lows = [one.interval[0] * scale if one and one.interval else nan for one in summaries]
    highs = [one.interval[1] * scale if one and one.interval else nan for one in summaries]
    # Between categories there is nothing: they get intervals as bars, and no line that joins them.
    joined = _numeric(points.xs)
    if joined:
        ax.fill_between(places, lows, highs, color=color, alpha=0.16, linewidth=0)
    ax.vlines(places, lows, highs, color=color, linewidth=0.7 if joined else 1.6, alpha=0.5)
    for x, place in zip(points.xs, places, strict=True):
        values = [value * scale for value in points.values.get((panel, line, x), {}).values()]
        ax.plot([place] * len(values), values, ".", color=color, markersize=4, alpha=0.45, markeredgewidth=0)
    ax.plot(
        places,
        means,
        marker=marker,
        color=color,
        linewidth=1.4 if joined else 0,
        markersize=4.5,
        markeredgecolor="white",
        markeredgewidth=0.6,
        label=line,
        zorder=3,
    )


def _numeric(xs: list[Any]) -> bool:
    return all(isinstance(x, int | float) and not isinstance(x, bool) for x in xs)


def _tick_label(x: Any) -> str:
    return _clip(value_label(x), TICK_CHARACTERS)


def _clip(text: str, room: int) -> str:
    """Return a text of at most `room` characters: where it has more, its middle is left out (tables have all)."""
    return text if len(text) <= room else f"{text[: room // 2]}…{text[len(text) - (room - 1) // 2 :]}"


def _long_labels(xs: list[Any]) -> bool:
    """Return whether the labels of x do not fit side by side below a panel."""
    lengths = [len(_tick_label(x)) for x in xs]
    return sum(lengths) + 2 * len(xs) > 45 or max(lengths) > 10


def _legend(figure: Figure, ax: Axes, columns: int, place: tuple[float, float], room: int) -> None:
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(
        handles,
        [_clip(label, room) for label in labels],
        loc="upper left",
        bbox_to_anchor=place,
        ncols=columns,
        frameon=False,
        handlelength=1.6,
        handletextpad=0.5,
        columnspacing=1.6,
        borderpad=0.2,
    )
