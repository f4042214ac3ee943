"""A figure as SVG inside a page: sharp at any size, in the page's colours, with the value of every point."""

import re
from collections.abc import Callable, Iterator
from html import escape
from io import StringIO
from math import isfinite
from typing import TYPE_CHECKING, NamedTuple

from syncnorm.study.report.drawing.style import FAINT, GRID, INK, NOTE, STYLE, TITLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 72
"""SVG units in an inch."""
COLORS = {INK: "var(--ink)", FAINT: "var(--soft)", GRID: "var(--rule)", "#ffffff": "var(--page)"}
"""The page's colours in place of the figure's, so that it can be dark."""
REACH = 6
"""Radius in points around a marker in which its value appears."""


class Inline(NamedTuple):
    """A figure inside a page, and the note that stood below it, which the page says in its own text."""

    svg: str
    note: str


def inline_svg(drawing: "Callable[[], Figure | None]", name: str, title: str) -> Inline:
    """Return the figure of `drawing` as an SVG element; empty without a figure.

    Text stays text. Every marker of a named line has a circle above it, whose title says line, x and value. The
    figure's own title and note (`label_figure`) are cut off, since long lines of text cannot wrap on a phone.

    Args:
        drawing: makes the figure.
        name: the start of all ids in it, so that no two figures of a page share one.
        title: what a screen reader says of it.
    """
    import matplotlib as mpl

    with mpl.rc_context({**STYLE, "svg.fonttype": "none"}):
        figure = drawing()
        if figure is None:
            return Inline("", "")
        top, bottom, note = _cut(figure)
        for patch in (figure.patch, *(ax.patch for ax in figure.axes)):  # the page lies behind it
            patch.set_visible(False)
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
        width, height = figure.get_size_inches() * POINTS
        spots = "".join(_spots(figure))
    svg = text.getvalue()
    body = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r' id="[A-Za-z.]+_\d+"', "", body)  # names of parts, to which nothing refers
    body = re.sub(r' id="', f' id="{name}-', body).replace("url(#", f"url(#{name}-")
    body = body.replace('xlink:href="#', f'href="#{name}-')
    for color, own in COLORS.items():
        body = body.replace(color, own)
    svg = (
        f'<svg class="chart" role="img" aria-label="{escape(title)}" '
        f'viewBox="0 {top:.0f} {width:.0f} {height - top - bottom:.0f}" '
        f'style="width: {width / POINTS * 1.3:.1f}in">{body}{spots}</svg>'
    )
    return Inline(svg, note)


def _cut(figure: "Figure") -> tuple[float, float, str]:
    """Take a figure's title and note away; return the heights that they took, in points, and the note."""
    taken, note = {TITLE: 0.0, NOTE: 0.0}, ""
    height = figure.get_size_inches()[1] * POINTS
    for text in [text for text in figure.texts if text.get_gid() in taken]:
        box = text.get_window_extent()
        low, high = (edge / figure.dpi * POINTS for edge in (box.y0, box.y1))
        if text.get_gid() == NOTE:
            taken[NOTE], note = high - 2, " ".join(text.get_text().split())
        else:
            taken[TITLE] = height - low - 2
        text.remove()
    return max(0.0, taken[TITLE]), max(0.0, taken[NOTE]), note


def _spots(figure: "Figure") -> Iterator[str]:
    import numpy as np

    height = figure.get_size_inches()[1] * POINTS
    for ax in figure.axes:
        for line in ax.lines:
            label = str(line.get_label())
            if label.startswith("_") or line.get_marker() in (None, "None", "", " "):
                continue
            for x, y in np.asarray(line.get_xydata(), dtype=np.float64).tolist():
                if not (isfinite(x) and isfinite(y)):
                    continue
                across, up = ax.transData.transform([x, y]) / figure.dpi * POINTS
                words = escape(", ".join(filter(None, [label, _x_words(ax, x), f"{y:.4g}"])))
                yield (
                    f'<circle class="spot" cx="{across:.1f}" cy="{height - up:.1f}" r="{REACH}">'
                    f"<title>{words}</title></circle>"
                )


def _x_words(ax: "Axes", x: float) -> str:
    """Return the label of the tick nearest to x, with the axis' own words."""
    ticks = [
        (abs(tick - x), label.get_text()) for tick, label in zip(ax.get_xticks(), ax.get_xticklabels(), strict=True)
    ]
    words = [text.replace("\n", " ") for _, text in sorted(ticks, key=lambda one: one[0]) if text]
    return f"{ax.get_xlabel()} {words[0]}".strip() if words else ""
