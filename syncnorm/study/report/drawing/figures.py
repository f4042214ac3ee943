"""The figures of charts: panels side by side, a legend above them, and a note below."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil, radians, sin
from textwrap import fill
from typing import TYPE_CHECKING, Any

from syncnorm.study.report.analysis.labels import Metric, listing, setting
from syncnorm.study.report.analysis.points import Points
from syncnorm.study.report.drawing.panels import PANEL_WIDTH, TURN, Style, Styles, clip, panels_width, tick_labels
from syncnorm.study.report.drawing.style import (
    AMBER,
    BLUE,
    CHARACTER,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PINK,
    SKY,
    STYLE,
    label_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Markers distinguish lines in greyscale print.
STYLES = {
    "bn": Style(ORANGE, "o"),
    "sync_bn": Style(BLUE, "s"),
    "gn": Style(GREEN, "^"),
    "ln": Style(PINK, "D"),
    "none": Style(GREY, "X"),
    "ghost_bn": Style(AMBER, "v"),
    "in": Style(SKY, "P"),
}
METHODS = {
    "fedavg": Style(ORANGE, "o"),
    "fedbn": Style(BLUE, "s"),
    "silobn": Style(GREEN, "^"),
    "fixbn": Style(PINK, "D"),
    "local_only": Style(GREY, "X"),
    "fedavg_pooled": Style(AMBER, "v"),
    "fbn": Style(SKY, "P"),
    "hbn": Style("#882255", "<"),
    "fedtan": Style("#332288", ">"),
    "sbn": Style("#117733", "*"),
    "stats_shared": Style("#999933", "h"),
    "fedap": Style("#661100", "p"),
}
OTHERS = [*STYLES.values(), *list(METHODS.values())[len(STYLES) :]]
DASHES = ("-", "--", ":", "-.")
PANEL_HEIGHT, LEFT = 2.6, 0.7
"""Inches."""
LABEL_CHARACTERS = 42
"""Number of legend entries that fit beside a panel."""


@dataclass(frozen=True)
class Sheet:
    """The parts of a figure with panels side by side."""

    title: str
    y_label: str
    note: str
    """Text below, such as the meaning of the marks."""
    panels: list[str]
    """Title of each panel; one empty text for a single panel."""
    lines: list[str]
    paint: "Callable[[Axes, int, Styles], None]"
    """Draws into the axes of a panel, given by its number."""
    below: float = 0.0
    """Inches that the x labels need below the axis, beyond one horizontal line."""


def compose_chart(
    points: Points, metric: Metric, note: str, paint: "Callable[[Axes, Any, Styles], None]", below: float = 0.0
) -> "Figure":
    """Return the figure of a chart of `metric`; `paint` draws into the axes of a panel, by the panel's value."""
    panels = points.panels or [None]

    def paint_panel(ax: "Axes", index: int, styles: Styles) -> None:
        paint(ax, panels[index], styles)

    titles = panel_titles(points)
    figure = compose(Sheet(points.title, metric.title, note, titles, points.lines, paint_panel, below))
    first = figure.axes[0]
    if not points.values:
        first.set_yticks([])
    elif metric.unit == "%":  # a t interval of few seeds may exceed the range of an accuracy
        low, high = first.get_ylim()
        first.set_ylim(max(low, -3.0), min(high, 103.0))
    return figure


def panel_titles(points: Points) -> list[str]:
    """Return the title of every panel of a chart's figure."""
    panel = points.chart.panel
    return [setting(panel, value) for value in points.panels] if panel and points.panels else [""]


def compose(sheet: Sheet) -> "Figure":
    """Return a figure: panels side by side on one y axis, a legend above, a note below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = sheet.panels
    words = fill(sheet.y_label, LABEL_CHARACTERS)
    edge = LEFT + 0.15 * words.count("\n")
    width = panels_width(len(panels), len(sheet.lines)) + edge
    columns = max(1, int((width - edge) / (0.55 + max(map(inches, sheet.lines), default=0.0))))
    head = fill(sheet.title, int(10.5 * (width - edge)))
    note = "\n".join(fill(part, int(18 * (width - edge))) for part in sheet.note.split("\n"))
    titles = 0.12 + 0.2 * (head.count("\n") + 1)
    top = titles + 0.16 + 0.19 * ceil(len(sheet.lines) / columns) + (0.3 if any(panels) else 0.1)
    bottom = 0.65 + 0.15 * (note.count("\n") + 1) + sheet.below
    height = PANEL_HEIGHT + top + bottom
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    styles = line_styles(sheet.lines)
    for index, (ax, panel) in enumerate(zip(axes, panels, strict=True)):
        sheet.paint(ax, index, styles)
        if ax is not axes[0]:
            ax.tick_params(axis="y", length=0)
        if panel:
            ax.set_title(clip(panel, int(PANEL_WIDTH / CHARACTER)), fontsize=9, loc="left", color=INK, pad=6)
    axes[0].set_ylabel(words)
    left = edge / width
    room = int((width - edge - 0.6) / CHARACTER)
    _legend(figure, axes[0], columns, (left - 0.08 / width, 1 - titles / height), room)
    label_figure(figure, left, (head, 1 - 0.12 / height), (note, 0.1 / height))
    figure.subplots_adjust(
        left=left, right=1 - 0.15 / width, top=1 - top / height, bottom=bottom / height, wspace=0.1
    )
    return figure


def below(points: Points) -> float:
    """Return the inches that the x labels need below the axis, beyond one horizontal line."""
    labels, turned = tick_labels(points)
    return slanted(labels) if turned else 0.15 * max(label.count("\n") for label in labels)


def slanted(labels: Iterable[str]) -> float:
    """Return the inches that rotated x labels need below the axis."""
    return max((sin(radians(TURN)) * inches(label) for label in labels), default=0.0)


def inches(text: str) -> float:
    """Return the width of a text in inches, in the figure's font size."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    path = TextPath((0, 0), text, size=STYLE["font.size"], prop=FontProperties(STYLE["font.family"]), usetex=False)
    return float(path.get_extents().width) / 72


def footnote(points: Points, *, ways: str = "", dots: bool = True) -> str:
    """Return a note on the marks, the number of seeds, and the statistics that evaluated the runs.

    `ways` follows the word "interval", and `dots` says whether single values are drawn as dots.
    """
    counts = sorted({len(values) for values in points.values.values()})
    if not counts:
        return f"N{points.nothing()[1:]}."
    n = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
    trouble = _trouble(points)
    if counts == [1]:
        return f"One seed a point, so no interval; n = 1 seed.{trouble}\n{points.evaluation()}"
    single = f" Dots: single {'runs' if points.cases == 1 else 'seeds'}." if dots else ""
    return f"Mean and 95 % t interval{ways}, {n} seeds.{single}{trouble}\n{points.evaluation()}"


def _trouble(points: Points) -> str:
    """Say what open markers and crosses are, and which lines have them."""
    guessed = (at for at, (seeds, _) in points.guessed.items() if seeds)
    troubled = {line for _, line, _ in (*points.diverged, *guessed)}
    lines = [line for line in points.lines if line in troubled]
    if not lines or not points.across.final:
        return ""
    return f" Open markers and crosses: runs that diverged or are at chance ({listing(lines)})."


def noted(note: str, more: str) -> str:
    """Return a figure's note with a further line."""
    return f"{note}\n{more}" if more else note


def line_styles(lines: list[str]) -> Styles:
    """Return the style of every line; a norm or method looks the same in all figures.

    If there are more lines than colours, the first field sets the colour, and the others set marker and dashes.
    """
    if len(lines) > len(OTHERS):
        return _paired_styles(lines)
    known = STYLES if any(line in STYLES for line in lines) else METHODS
    styles = {line: known[line] for line in lines if line in known}
    free = [style for style in OTHERS if style not in styles.values()]
    rest = [line for line in lines if line not in styles]
    return styles | dict(zip(rest, free, strict=False))


def _paired_styles(lines: list[str]) -> Styles:
    parts = {line: line.partition(" + ")[::2] for line in lines}
    firsts = list(dict.fromkeys(first for first, _ in parts.values()))
    others = list(dict.fromkeys(["", *(other for _, other in parts.values())]))
    most = len(OTHERS)
    if max(len(firsts), len(others)) > most:  # not pairs of fields
        return {
            line: Style(
                OTHERS[index % most].color, OTHERS[(index + index // most) % most].marker, _dashes(index // most)
            )
            for index, line in enumerate(lines)
        }
    colors, ways = line_styles(firsts), {other: number for number, other in enumerate(others)}
    return {
        line: Style(colors[first].color, OTHERS[ways[other]].marker, _dashes(ways[other]))
        for line, (first, other) in parts.items()
    }


def _dashes(number: int) -> str:
    return DASHES[number % len(DASHES)]


def _legend(figure: "Figure", ax: "Axes", columns: int, place: tuple[float, float], room: int) -> None:
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
