"""The figures of charts: panels side by side, a legend above, what is shown below. `panels` draws what is inside.

Drawn without a display and without dates, so that the same rows give the same bytes.
"""

from collections.abc import Callable
from io import BytesIO, StringIO
from math import ceil
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from syncnorm.study.exhibits import Curve, History, Trade
from syncnorm.study.files import write_file
from syncnorm.study.labels import setting
from syncnorm.study.panels import (
    CHARACTER,
    FAINT,
    INK,
    clip,
    curve_panel,
    history_panel,
    long_labels,
    tick_label,
    trade_panel,
)
from syncnorm.study.points import Points

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
METHODS = {
    "fedavg": ("#d55e00", "o"),
    "fedbn": ("#0072b2", "s"),
    "silobn": ("#009e73", "^"),
    "fixbn": ("#cc79a7", "D"),
    "local_only": ("#5f6670", "X"),
    "fedavg_pooled": ("#e69f00", "v"),
    "fbn": ("#56b4e9", "P"),
    "hbn": ("#882255", "<"),
    "fedtan": ("#332288", ">"),
    "sbn": ("#117733", "*"),
    "stats_shared": ("#999933", "h"),
    "fedap": ("#661100", "p"),
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
LABEL_CHARACTERS = 42
"""As many as stand beside a panel."""
PAINTERS = {Curve: curve_panel, History: history_panel, Trade: trade_panel}


def write_figure(points: Points, folder: Path) -> str:
    """Write NAME.png (200 dpi), NAME.svg and NAME.pdf of a chart, and return the SVG's text."""
    return write_image(lambda: draw(points), folder, points.name)


def write_image(drawing: Callable[[], Figure], folder: Path, name: str) -> str:
    """Write what `drawing` draws in the report's style as NAME.png (200 dpi), NAME.svg and NAME.pdf.

    Returns the SVG's text.
    """
    with mpl.rc_context(STYLE):
        figure = drawing()
        svg = StringIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
        write_file(folder / f"{name}.svg", svg.getvalue())
        for suffix, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
            image = BytesIO()
            figure.savefig(image, format=suffix, dpi=200, metadata=metadata)
            write_file(folder / f"{name}.{suffix}", image.getvalue())
    return svg.getvalue()


def draw(points: Points) -> Figure:
    """Return the figure: panels side by side on one y axis, a legend above, what is shown below."""
    chart, panels = points.chart, points.panels or [None]
    assert isinstance(chart, Curve | History | Trade)
    metric = points.metric(chart.metric)
    words = fill(metric.title, LABEL_CHARACTERS)
    edge = LEFT + 0.15 * words.count("\n")
    width = max(PANEL_WIDTH * len(panels), 4.8) + edge
    columns = max(1, int((width - edge) / (0.6 + CHARACTER * max(map(len, points.lines), default=1))))
    head = fill(points.title, int(10.5 * (width - edge)))
    note = "\n".join(fill(part, int(18 * (width - edge))) for part in footnote(points).split("\n"))
    titles = 0.12 + 0.2 * (head.count("\n") + 1)
    top = titles + 0.12 + 0.22 * ceil(len(points.lines) / columns) + (0.3 if chart.panel else 0.1)
    bottom = 0.65 + 0.15 * (note.count("\n") + 1) + _slant(points)
    height = PANEL_HEIGHT + top + bottom
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    styles = line_styles(points.lines)
    for ax, panel in zip(axes, panels, strict=True):
        PAINTERS[type(chart)](ax, points, panel, styles)
        if ax is not axes[0]:
            ax.tick_params(axis="y", length=0)
        if chart.panel:
            ax.set_title(
                clip(setting(chart.panel, panel), int(PANEL_WIDTH / CHARACTER)),
                fontsize=9,
                loc="left",
                color=INK,
                pad=6,
            )
    axes[0].set_ylabel(words)
    if not points.values:
        axes[0].set_yticks([])
    elif metric.unit == "%":  # a t interval of few seeds may leave the range that an accuracy has
        low, high = axes[0].get_ylim()
        axes[0].set_ylim(max(low, -3.0), min(high, 103.0))
    left = edge / width
    room = int((width - edge - 0.6) / CHARACTER)
    _legend(figure, axes[0], columns, (left - 0.08 / width, 1 - titles / height), room)
    figure.text(left, 1 - 0.12 / height, head, fontsize=11, weight="bold", va="top", linespacing=1.3)
    figure.text(left, 0.1 / height, note, fontsize=7, color=FAINT, va="bottom", linespacing=1.5)
    figure.subplots_adjust(
        left=left, right=1 - 0.15 / width, top=1 - top / height, bottom=bottom / height, wspace=0.1
    )
    return figure


def _slant(points: Points) -> float:
    """Return the inches that the labels of x need below the axis, beyond those of a level line."""
    if not isinstance(points.chart, Curve) or not long_labels(points):
        return 0.0
    return max(0.5, 0.9 * CHARACTER * max(len(tick_label(points, x)) for x in points.xs))


def footnote(points: Points) -> str:
    """Return what the marks mean, over how many seeds, and what evaluated the runs."""
    counts = sorted({len(values) for values in points.values.values()})
    if not counts:
        return f"N{points.nothing()[1:]}."
    n = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
    if counts == [1]:
        return f"One run a point, so no interval; n = 1 seed.\n{points.evaluation()}"
    ways = " both ways" if isinstance(points.chart, Trade) else ""
    dots = "" if isinstance(points.chart, History) else " Dots: single runs."
    return f"Mean and 95 % t interval{ways}, {n} seeds.{dots}\n{points.evaluation()}"


def line_styles(lines: list[str]) -> dict[str, tuple[str, str]]:
    """Return colour and marker of every line: a norm, or a method, has the same in all figures."""
    known = STYLES if any(line in STYLES for line in lines) else METHODS
    styles = {line: known[line] for line in lines if line in known}
    free = [style for style in OTHERS if style not in styles.values()] or OTHERS
    rest = [line for line in lines if line not in styles]
    return {**styles, **{line: free[index % len(free)] for index, line in enumerate(rest)}}


def _legend(figure: Figure, ax: Axes, columns: int, place: tuple[float, float], room: int) -> None:
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(
        handles,
        [clip(label, room) for label in labels],
        loc="upper left",
        bbox_to_anchor=place,
        ncols=columns,
        frameon=False,
        handlelength=1.6,
        handletextpad=0.5,
        columnspacing=1.6,
        borderpad=0.2,
    )
