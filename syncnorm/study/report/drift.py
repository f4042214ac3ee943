"""The map of how far clients' statistics are from the pooled ones: what it shows, its figure and its table."""

import re
from collections import defaultdict
from dataclasses import dataclass
from math import ceil, nan
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from syncnorm.study.exhibits import Drift, names_of
from syncnorm.study.report.labels import Metric, field_label, short_setting
from syncnorm.study.report.lines import axis_value, line_names
from syncnorm.study.report.panels import CHARACTER, FAINT, INK, clip
from syncnorm.study.report.points import rows_of
from syncnorm.study.report.statistics import summarise
from syncnorm.study.report.tables import NOTHING, Cell, Table, mean_text
from syncnorm.study.rows import Results

QUANTITY = "distance from the pooled statistics, in pooled standard deviations"
METRIC = Metric(QUANTITY, "distance", "", "", 1.0, 3, higher_is_better=False)
COLOURS = "magma_r"
"""Perceptually uniform, and light where there is no distance."""
VECTOR_CELLS = 2000
"""A map of more cells is an image within its figure."""
CELL, NARROWEST_MAP, WIDEST_MAP, GAP, ROW_GAP, PAGE = 0.26, 1.4, 4.2, 0.25, 0.75, 10.0
"""Inches: a cell's side, a map's width, what is between maps, and the width they have together."""
LOWEST_CELL, TALLEST_MAP, SMALL_CHARACTER = 0.16, 3.0, 0.075
SIDE_BY_SIDE, LAYER_CHARACTERS = 3, 24


@dataclass(frozen=True)
class Maps:
    """What a drift figure shows: by panel, layer and client the distance of every seed's run."""

    drift: Drift
    number: int
    panels: list[str]
    layers: list[str]
    clients: list[int]
    values: dict[tuple[str, str, int], dict[int, float]]
    """By (panel, layer, client): the distance by seed."""

    @property
    def name(self) -> str:
        """A name for files, of letters, digits, hyphens and underscores."""
        parts = [str(self.number), "drift", *names_of(self.drift.panel)]
        return "-".join(re.sub(r"\W+", "_", part) for part in parts)

    @property
    def title(self) -> str:
        """The plain statement of what is shown."""
        by = f" and {field_label(self.drift.panel)}" if self.drift.panel else ""
        return self.drift.title or f"How far each client's statistics are from the pooled ones, by layer{by}"

    @property
    def seeds(self) -> int:
        """The largest number of seeds behind a cell."""
        return max(map(len, self.values.values()), default=0)

    def mean(self, panel: str) -> NDArray[np.float64]:
        """Return the mean over seeds (layers, clients); what no run has is NaN."""
        cells = [
            [float(np.mean(list(seeds.values()))) if (seeds := self.values.get((panel, layer, client))) else nan
             for client in self.clients]
            for layer in self.layers
        ]  # fmt: skip
        return np.array(cells, dtype=np.float64).reshape(len(self.layers), len(self.clients))

    def by_seed(self, panel: str, layer: str) -> list[float]:
        """Return the mean over clients, of every seed."""
        found: defaultdict[int, list[float]] = defaultdict(list)
        for client in self.clients:
            for seed, value in self.values.get((panel, layer, client), {}).items():
                found[seed].append(value)
        return [float(np.mean(values)) for values in found.values()]


def maps_of(drift: Drift, results: Results) -> Maps:
    """Collect the rows of a drift figure; rows of one seed that differ otherwise are panels of their own."""
    about = results.about
    rows = [row for row in rows_of(drift, results) if row.get("details", {}).get("drift")]
    panels = [axis_value(drift.panel, about.runs[row["run_id"]], about.base) for row in rows]
    titles = ["" if drift.panel is None else short_setting(drift.panel, panel) for panel in panels]
    names = line_names(rows, [(None, title, None) for title in titles])
    values: defaultdict[tuple[str, str, int], dict[int, float]] = defaultdict(dict)
    for row, name in zip(rows, names, strict=True):
        found = row["details"]["drift"]
        for layer, per_client in zip(found["layers"], found["values"], strict=True):
            clients = found.get("clients", range(len(per_client)))
            for client, value in zip(clients, per_client, strict=True):
                if value is not None:  # it was not finite
                    values[name, layer, client][row["config"]["seed"]] = value
    return Maps(
        drift=drift,
        number=about.figures.index(drift) + 1,
        panels=list(dict.fromkeys(names)),
        layers=list(dict.fromkeys(layer for _, layer, _ in values)),
        clients=sorted({client for _, _, client in values}),
        values=dict(values),
    )


def draw_drift(maps: Maps) -> Figure:
    """Return the figure: maps on one scale of colours, which stands below them; layers down, clients across."""
    layers = [clip(layer, LAYER_CHARACTERS) for layer in maps.layers]
    panels = maps.panels or [""]
    left = 0.3 + CHARACTER * max(map(len, layers), default=1)
    widest = min(WIDEST_MAP, (PAGE - left) / min(len(panels), SIDE_BY_SIDE) - GAP)
    across = max(NARROWEST_MAP, min(widest, CELL * len(maps.clients)))
    columns = min(len(panels), max(1, int((PAGE - left) / (across + GAP))))
    rows = ceil(len(panels) / columns)
    body = max(0.6, min(CELL, max(LOWEST_CELL, TALLEST_MAP / max(1, len(layers)))) * len(layers))
    width = max(4.8, left + columns * (across + GAP))
    head = fill(maps.title, int(10.5 * (width - left)))
    label = fill(QUANTITY, int((width - left) / SMALL_CHARACTER))
    top, below = 0.5 + 0.2 * (head.count("\n") + 1), 1.35 + 0.14 * label.count("\n")
    height = top + rows * body + (rows - 1) * ROW_GAP + below
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    most = max((float(np.mean(list(seeds.values()))) for seeds in maps.values.values()), default=0.0)
    scale = Normalize(0.0, most or 1.0)
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        corner = left + column * (across + GAP), height - top - row * (body + ROW_GAP) - body
        ax = figure.add_axes((corner[0] / width, corner[1] / height, across / width, body / height))
        _draw_map(ax, maps, panel, scale)
        ax.set_title(clip(panel, int((across + GAP) / CHARACTER)), fontsize=9, loc="left", color=INK, pad=6)
        ax.set_yticks(np.arange(len(layers)) + 0.5, layers if column == 0 else [""] * len(layers))
        ax.set_ylim(max(1, len(layers)), 0)
        ax.tick_params(axis="y", length=0)
    place = (left / width, (below - 0.63) / height, 2.2 / width, 0.1 / height)
    colours = figure.colorbar(ScalarMappable(scale, COLOURS), cax=figure.add_axes(place), orientation="horizontal")
    colours.ax.set_xlabel(label, fontsize=8, loc="left")
    colours.ax.tick_params(length=2, width=0.7, labelsize=8)
    assert colours.solids is not None
    colours.solids.set(rasterized=False, edgecolor="face")
    colours.outline.set_visible(False)
    figure.text(left / width, 1 - 0.12 / height, head, fontsize=11, weight="bold", va="top", linespacing=1.3)
    figure.text(left / width, 0.08 / height, _footnote(maps), fontsize=7, color=FAINT, va="bottom")
    return figure


def drift_table(maps: Maps) -> Table:
    """Return the table of the mean distance over clients: a row a layer, a column a panel."""

    def cell(panel: str, layer: str) -> Cell:
        values = maps.by_seed(panel, layer)
        return Cell(mean_text(summarise(values), METRIC) if values else NOTHING)

    return Table(
        name=maps.name,
        title=f"{maps.title}: mean over clients",
        caption=f"A client's {QUANTITY}; mean over clients ± half width of the 95 % t interval over seeds. "
        f"{_footnote(maps)}",
        corner="layer",
        span=field_label(maps.drift.panel) if maps.drift.panel else "all runs",
        header=[panel or "mean over clients" for panel in maps.panels],
        blocks=[("", [[Cell(layer), *(cell(panel, layer) for panel in maps.panels)] for layer in maps.layers])],
        records=[
            {
                "panel": panel,
                "layer": layer,
                "client": client,
                "n": len(seeds),
                "mean": float(np.mean(list(seeds.values()))),
            }
            for (panel, layer, client), seeds in maps.values.items()
        ],
    )


def _draw_map(ax: Axes, maps: Maps, panel: str, scale: Normalize) -> None:
    values = np.ma.masked_invalid(maps.mean(panel))
    image = values.size > VECTOR_CELLS
    ax.pcolormesh(values, cmap=COLOURS, norm=scale, edgecolors="face", linewidth=0.2, rasterized=image)
    every = slice(None, None, ceil(len(maps.clients) / 10) or 1)
    ax.set_xticks(np.arange(len(maps.clients))[every] + 0.5, [str(client) for client in maps.clients[every]])
    ax.set_xlabel("client")
    ax.spines[:].set_visible(False)
    ax.tick_params(length=2, width=0.7)


def _footnote(maps: Maps) -> str:
    if not maps.values:
        return "No run that has finished says how far its clients' statistics are apart."
    return f"Mean over {maps.seeds} seeds." if maps.seeds > 1 else "One seed."
