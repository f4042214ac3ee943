"""The distance of every client's statistics from the pooled ones, as a map of layers and clients."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, nan
from textwrap import fill
from typing import TYPE_CHECKING, ClassVar

from syncnorm.study.plot import Axis, Plot, View, names_of
from syncnorm.study.report.analysis.across import layer_words, with_name
from syncnorm.study.report.analysis.labels import Metric, field_label, short_setting
from syncnorm.study.report.analysis.lines import axis_value, line_names
from syncnorm.study.report.analysis.points import file_name, rows_of, said_diverged
from syncnorm.study.report.analysis.tables import mean_text
from syncnorm.study.report.analysis.tuning import tuned_fields, tuning_words
from syncnorm.study.report.drawing.panels import clip
from syncnorm.study.report.drawing.style import CHARACTER, INK, label_figure
from syncnorm.study.report.inference.statistics import summarise
from syncnorm.study.rows import Results, diverged
from syncnorm.study.table import NOTHING, Cell, Table

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

QUANTITY = "distance from the pooled statistics, in pooled standard deviations"
METRIC = Metric(QUANTITY, "distance", "", "", 1.0, 3, higher_is_better=False)
COLOURS = "magma_r"
"""Colour map: perceptually uniform, and light at zero."""
VECTOR_CELLS = 2000
"""A map with more cells is embedded in its figure as an image."""
CELL, NARROWEST_MAP, WIDEST_MAP, GAP, ROW_GAP, PAGE = 0.26, 1.4, 4.2, 0.25, 0.75, 10.0
"""Inches: a cell's side, a map's width, the space between maps, and their total width."""
LOWEST_CELL, TALLEST_MAP, SMALL_CHARACTER = 0.16, 3.0, 0.075
SIDE_BY_SIDE, LAYER_CHARACTERS = 3, 28


@dataclass(frozen=True)
class Drift(Plot):
    """A figure: the distance of every client's statistics from the pooled ones, by layer, one map per `panel`.

    Shows the details["drift"] of runs: {"layers": [...], "values": [[one per client] per layer]}.
    """

    kind: ClassVar[str] = "drift"

    panel: Axis | None = None

    def collect(self, results: Results) -> "DriftView":
        """Collect the distances of every run; different runs of one seed get separate panels."""
        about = results.about
        have = [row for row in rows_of(self, results) if row.get("details", {}).get("drift")]
        rows = [row for row in have if not diverged(row)]
        at = [axis_value(self.panel, about.runs[row["run_id"]], about.base) for row in rows]
        titles = ["" if self.panel is None else short_setting(self.panel, one) for one in at]
        names = line_names(rows, [(None, title, None) for title in titles], tuned=tuned_fields(results))
        values: defaultdict[tuple[str, str, int], dict[int, float]] = defaultdict(dict)
        for row, name in zip(rows, names, strict=True):
            found = row["details"]["drift"]
            for layer, per_client in zip(found["layers"], found["values"], strict=True):
                clients = found.get("clients", range(len(per_client)))
                for client, value in zip(clients, per_client, strict=True):
                    if value is not None:  # None if it was not finite
                        values[name, layer, client][row["config"]["seed"]] = value
        by = f" and {field_label(self.panel)}" if self.panel else ""
        panels = list(dict.fromkeys(names))
        return DriftView(
            name=file_name("drift", *names_of(self.panel)),
            title=self.title or f"How far each client's statistics are from the pooled ones, by layer{by}",
            wide=len(panels) > 1,
            empty=not values,
            span=field_label(self.panel) if self.panel else "all runs",
            panels=panels,
            layers=list(dict.fromkeys(layer for _, layer, _ in values)),
            words=layer_words(rows),
            clients=sorted({client for _, _, client in values}),
            values=dict(values),
            lost=len(have) - len(rows),
            tuning=tuning_words(results),
        )

    def axes(self) -> tuple[Axis | None, ...]:
        """Return the panel."""
        return (self.panel,)


@dataclass(frozen=True, kw_only=True)
class DriftView(View):
    """The maps of a drift: the distance of every seed's run by panel, layer and client."""

    span: str
    """The field whose values are the panels."""
    panels: list[str]
    layers: list[str]
    words: dict[str, str]
    """What layers are, by name; of old rows, nothing."""
    clients: list[int]
    values: dict[tuple[str, str, int], dict[int, float]]
    """Distances by seed, for each (panel, layer, client)."""
    lost: int
    """Number of diverged runs, which are left out."""
    tuning: str = ""
    """How the runs' values came about, in words."""

    @property
    def seeds(self) -> int:
        """The largest number of seeds behind a cell."""
        return max(map(len, self.values.values()), default=0)

    def mean(self, panel: str) -> "NDArray[np.float64]":
        """Return the mean over seeds (layers, clients); NaN where no run has a value."""
        import numpy as np

        found = {place: _mean(seeds.values()) for place, seeds in self.values.items()}
        cells = [[found.get((panel, layer, client), nan) for client in self.clients] for layer in self.layers]
        return np.array(cells, dtype=np.float64).reshape(len(self.layers), len(self.clients))

    def by_seed(self, panel: str, layer: str) -> list[float]:
        """Return the mean over clients for every seed."""
        found: defaultdict[int, list[float]] = defaultdict(list)
        for client in self.clients:
            for seed, value in self.values.get((panel, layer, client), {}).items():
                found[seed].append(value)
        return [_mean(values) for values in found.values()]

    def tables(self) -> list[Table]:
        """Return the mean distance over clients, one row per layer and one column per panel."""

        def cell(panel: str, layer: str) -> Cell:
            values = self.by_seed(panel, layer)
            return Cell(mean_text(summarise(values), METRIC) if values else NOTHING)

        if not self.values:
            return []
        return [
            Table(
                name=self.name,
                title=f"{self.title}: mean over clients",
                caption=f"A client's {QUANTITY}; mean over clients ± half width of the 95 % t interval over seeds. "
                f"{self._footnote()}",
                corner="layer",
                span=self.span,
                header=[panel or "mean over clients" for panel in self.panels],
                blocks=[
                    (
                        "",
                        [
                            [Cell(with_name(layer, self.words)), *(cell(panel, layer) for panel in self.panels)]
                            for layer in self.layers
                        ],
                    )
                ],
                records=[
                    {
                        "panel": panel,
                        "layer": layer,
                        "client": client,
                        "n": len(seeds),
                        "mean": _mean(seeds.values()),
                    }
                    for (panel, layer, client), seeds in self.values.items()
                ],
            )
        ]

    def figure(self) -> "Figure":
        """Draw the maps with one colour scale below them; rows are layers, columns are clients."""
        import numpy as np
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize
        from matplotlib.figure import Figure

        layers = [clip(self.words.get(layer, layer), LAYER_CHARACTERS) for layer in self.layers]
        panels = self.panels or [""]
        left = 0.3 + CHARACTER * max(map(len, layers), default=1)
        widest = min(WIDEST_MAP, (PAGE - left) / min(len(panels), SIDE_BY_SIDE) - GAP)
        across = max(NARROWEST_MAP, min(widest, CELL * len(self.clients)))
        columns = min(len(panels), max(1, int((PAGE - left) / (across + GAP))))
        rows = ceil(len(panels) / columns)
        body = max(0.6, min(CELL, max(LOWEST_CELL, TALLEST_MAP / max(1, len(layers)))) * len(layers))
        width = max(4.8, left + columns * (across + GAP))
        head = fill(self.title, int(10.5 * (width - left)))
        label = fill(QUANTITY, int((width - left) / SMALL_CHARACTER))
        top, below = 0.5 + 0.2 * (head.count("\n") + 1), 1.35 + 0.14 * label.count("\n")
        height = top + rows * body + (rows - 1) * ROW_GAP + below
        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        most = max((_mean(seeds.values()) for seeds in self.values.values()), default=0.0)
        scale = Normalize(0.0, most or 1.0)
        for index, panel in enumerate(panels):
            row, column = divmod(index, columns)
            corner = left + column * (across + GAP), height - top - row * (body + ROW_GAP) - body
            ax = figure.add_axes((corner[0] / width, corner[1] / height, across / width, body / height))
            self._draw_map(ax, panel, scale)
            ax.set_title(clip(panel, int((across + GAP) / CHARACTER)), fontsize=9, loc="left", color=INK, pad=6)
            ax.set_yticks(np.arange(len(layers)) + 0.5, layers if column == 0 else [""] * len(layers))
            ax.set_ylim(max(1, len(layers)), 0)
            ax.tick_params(axis="y", length=0)
        place = (left / width, (below - 0.63) / height, 2.2 / width, 0.1 / height)
        colours = figure.colorbar(
            ScalarMappable(scale, COLOURS), cax=figure.add_axes(place), orientation="horizontal"
        )
        colours.ax.set_xlabel(label, fontsize=8, loc="left")
        colours.ax.tick_params(length=2, width=0.7, labelsize=8)
        assert colours.solids is not None
        colours.solids.set(rasterized=False, edgecolor="face")
        colours.outline.set_visible(False)
        label_figure(figure, left / width, (head, 1 - 0.12 / height), (self._footnote(), 0.08 / height))
        return figure

    def _draw_map(self, ax: "Axes", panel: str, scale: "Normalize") -> None:
        import numpy as np

        values = np.ma.masked_invalid(self.mean(panel))
        image = values.size > VECTOR_CELLS
        ax.pcolormesh(values, cmap=COLOURS, norm=scale, edgecolors="face", linewidth=0.2, rasterized=image)
        every = slice(None, None, ceil(len(self.clients) / 10) or 1)
        ax.set_xticks(np.arange(len(self.clients))[every] + 0.5, [str(client) for client in self.clients[every]])
        ax.set_xlabel("client")
        ax.spines[:].set_visible(False)
        ax.tick_params(length=2, width=0.7)

    def _footnote(self) -> str:
        if not self.values:
            return "No run that has finished says how far its clients' statistics are apart."
        seeds = f"Mean over {self.seeds} seeds." if self.seeds > 1 else "One seed."
        return " ".join(filter(None, [seeds, said_diverged(self.lost) if self.lost else "", self.tuning]))


def _mean(values: Iterable[float]) -> float:
    import numpy as np

    return float(np.mean(list(values)))
