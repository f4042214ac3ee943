"""Draw a partition card: the number of samples of each class on each client."""

from itertools import groupby
from math import ceil
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from syncnorm.errors import UserError
from syncnorm.study.report.drawing.style import (
    AMBER,
    BLUE,
    CHARACTER,
    FAINT,
    GREEN,
    GREY,
    GRID,
    ORANGE,
    PINK,
    SKY,
    STYLE,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = (BLUE, ORANGE, GREEN, PINK, AMBER, SKY, GREY)
"""Colours by domain; domains' names are also below the clients."""
SIZE = 10
"""Font size in points."""
BARS, RIGHT = 1.1, 0.2
"""Inches: height of the size axes, right margin."""
GAP = 0.8
"""Gap between two domains, in widths of a client."""
LABELS = 26
"""Up to this many clients or classes, each has a label; beyond that, only every n-th is labelled."""


def partition_figure(card: dict[str, Any]) -> "Figure":
    """Return the figure of a partition: one column per client, one row per class, clients' sizes above.

    The height of a bar is the number of training samples. Clients of a domain are adjacent and have its colour;
    held-out clients come last, with unfilled bars. `card` is the output of `partition_card`.

    Raises `UserError` if the card has too many clients to list them.
    """
    if "clients" not in card:
        raise UserError(f"a partition of {card['count']} clients cannot be drawn: its card sums them up.")
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    clients = sorted(card["clients"], key=lambda one: (one["held_out"], _domain_order(card, one)))
    blocks = [list(group) for _, group in groupby(clients, lambda one: (one["held_out"], one["domain"]))]
    places = np.concatenate([[GAP * index] * len(block) for index, block in enumerate(blocks)])
    places = places + np.arange(len(clients))
    column = min(0.46, max(0.04, 9.6 / places[-1])) if places[-1] else 0.46
    row = min(0.3, max(0.03, 4.6 / len(card["classes"])))
    width, height = column * (places[-1] + 1.4), row * (len(card["classes"]) + 0.4)
    left = 0.75 + CHARACTER * max(map(len, card["classes"]))
    names, slanted = _names(blocks, column)
    below = 1.05 + (0.5 * CHARACTER * max(map(len, names)) - 0.15 if slanted else 0.0)
    across = max(left + width + RIGHT, 4.6)
    title = fill(_title(card), int(8.5 * across))
    total = (across, 0.35 + 0.2 * (title.count("\n") + 1) + BARS + 0.15 + height + below)

    def box(bottom: float, tall: float) -> tuple[float, float, float, float]:
        return left / total[0], bottom / total[1], width / total[0], tall / total[1]

    with mpl.rc_context({**STYLE, "font.size": SIZE}):
        figure = Figure(figsize=total)
        FigureCanvasAgg(figure)
        grid = figure.add_axes(box(below, height))
        sizes = figure.add_axes(box(below + height + 0.15, BARS), sharex=grid)
        _draw_sizes(sizes, clients, places, card)
        largest = _draw_classes(grid, clients, places, card)
        _mark_domains(grid, blocks, places, names, slanted, card)
        figure.text(0.12 / total[0], 1 - 0.1 / total[1], title, fontsize=12, weight="bold", va="top")
        note = f"Bars in a row: training samples of that class, {largest} in the highest."
        figure.text(0.12 / total[0], 0.08 / total[1], note, fontsize=8, color=FAINT, va="bottom")
    return figure


def _domain_order(card: dict[str, Any], one: dict[str, Any]) -> int:
    return [domain["name"] for domain in card["domains"]].index(one["domain"])


def _title(card: dict[str, Any]) -> str:
    dials = {"alpha": card["alpha"], **card["options"]}
    shown = [
        f"{name.replace('_', ' ')} {value}"
        for name, value in dials.items()
        if value is not None and value is not False and name != "min_size"
    ]
    if card["noise"]:
        shown.append(f"noise up to {card['noise']}")
    samples = sum(one["train"] for one in card["clients"])
    people = f"{len(card['clients'])} client{'s' if len(card['clients']) > 1 else ''}"
    dialled = f" ({', '.join(shown)})" if shown else ""
    return f"{card['method']}{dialled}: {samples:,} samples on {people}"


def _draw_sizes(ax: "Axes", clients: list[dict[str, Any]], places: Any, card: dict[str, Any]) -> None:
    for place, one in zip(places, clients, strict=True):
        _bars(ax, one, card, place, one["train"], 0)
    ax.set_ylabel("samples")
    ax.locator_params(axis="y", nbins=3)
    ax.tick_params(axis="x", length=0, labelbottom=False)
    ax.grid(axis="y", color=GRID, linewidth=0.7)
    ax.set_axisbelow(True)


def _draw_classes(ax: "Axes", clients: list[dict[str, Any]], places: Any, card: dict[str, Any]) -> int:
    """Draw a bar chart for each class, one below the other; return the number of samples of the highest bar."""
    counts = np.array([one["histogram"] for one in clients])
    for place, one, column in zip(places, clients, counts, strict=True):
        held = np.flatnonzero(column)
        # Bars point up from each row's line; the y axis points down. The edge keeps a single sample visible.
        _bars(ax, one, card, [place] * len(held), -0.9 * column[held] / counts.max(), held + 0.5)
    every = ceil(len(card["classes"]) / LABELS)
    ax.set_yticks(range(0, len(card["classes"]), every), card["classes"][::every])
    ax.hlines(np.arange(len(card["classes"])) + 0.5, -0.7, places[-1] + 0.7, color=GRID, linewidth=0.7, zorder=0)
    ax.set_ylim(len(card["classes"]) - 0.5, -0.5)
    ax.set_ylabel("class")
    every = ceil(len(clients) / LABELS)
    ax.set_xticks(places[::every], [str(one["client"]) for one in clients[::every]], fontsize=8)
    ax.set_xlim(-0.7, places[-1] + 0.7)
    ax.set_xlabel("client", fontsize=8, labelpad=1)
    ax.tick_params(length=0)
    return int(counts.max())


def _bars(ax: "Axes", one: dict[str, Any], card: dict[str, Any], x: Any, height: Any, bottom: Any) -> None:
    color = COLORS[_domain_order(card, one) % len(COLORS)]
    face = "white" if one["held_out"] else color
    ax.bar(x, height, 0.8, bottom, color=face, edgecolor=color, linewidth=0.7)


def _names(blocks: list[list[dict[str, Any]]], column: float) -> tuple[list[str], bool]:
    """Return the labels below each domain's clients, and whether they must be rotated to fit."""
    names = [block[0]["domain"] + ("\n(held out)" if block[0]["held_out"] else "") for block in blocks]
    rooms = [column * (len(block) + GAP) for block in blocks]
    widths = [CHARACTER * max(map(len, name.split("\n"))) for name in names]
    return names, any(width > room for width, room in zip(widths, rooms, strict=True))


def _mark_domains(
    ax: "Axes",
    blocks: list[list[dict[str, Any]]],
    places: Any,
    names: list[str],
    slanted: bool,
    card: dict[str, Any],
) -> None:
    from matplotlib.transforms import ScaledTranslation, blended_transform_factory

    assert ax.figure is not None
    down = blended_transform_factory(ax.transData, ax.transAxes) + ScaledTranslation(
        0, -0.42, ax.figure.dpi_scale_trans
    )
    start = 0
    for block, name in zip(blocks, names, strict=True):
        first, last = places[start], places[start + len(block) - 1]
        color = COLORS[_domain_order(card, block[0]) % len(COLORS)]
        ax.plot([first - 0.4, last + 0.4], [0, 0], color=color, linewidth=3, transform=down, clip_on=False)
        ax.annotate(
            name,
            ((first + last) / 2, 0),
            xycoords=down,
            xytext=(0, -5),
            textcoords="offset points",
            ha="right" if slanted else "center",
            va="top",
            rotation=30 if slanted else 0,
            rotation_mode="anchor" if slanted else "default",
        )
        start += len(block)
