"""One value per layer."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING, Any, ClassVar

from syncnorm.study.plot import Axis, Reads
from syncnorm.study.report.analysis.across import Layers, layer_words, with_name
from syncnorm.study.report.analysis.labels import listing
from syncnorm.study.report.analysis.lines import Place, axis_value
from syncnorm.study.report.analysis.points import Chart, ChartView, Points, gather, named, rows_of
from syncnorm.study.report.analysis.records import place_columns
from syncnorm.study.report.analysis.tables import blocks_of, interval_text
from syncnorm.study.report.drawing.figures import Sheet, compose, panel_titles, slanted
from syncnorm.study.report.drawing.panels import SPAN, TURN, Styles, clip, draw_line, grid
from syncnorm.study.report.inference.statistics import Estimate, geometric, summarise
from syncnorm.study.rows import Results
from syncnorm.study.table import NOTHING, Cell, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TICKS, TICK_CHARACTERS = 18, 28
"""Number of layer names below a panel, and of characters in each."""


@dataclass(frozen=True)
class Profile(Chart):
    """A figure: one value per layer, in layer order, one line per value of `line`.

    Shows the `details["profiles"][metric]` of runs: {"layers": [...], "values": [one per layer]}.
    """

    kind: ClassVar[str] = "profile"

    line: Axis
    metric: str = "gradient_norm_initial"
    panel: Axis | None = None

    def reads(self) -> Reads:
        """Return the names that it reads from a row."""
        return Reads(profiles=(self.metric,))

    def across(self) -> Layers:
        """Return the layers."""
        return Layers((self.metric,))

    def stem(self) -> tuple[str, ...]:
        """Return "profile" and the metric."""
        return "profile", self.metric

    def words(self, points: Points) -> str:
        """Return e.g. "Gradient norm before training by layer and norm"."""
        return f"{points.metric(None).title} by layer and {points.line_label}"

    def collect(self, results: Results) -> "ProfileView":
        """Collect the values of every run; rows whose layers differ from most rows of their panel are left out."""
        about, of = results.about, self.across().profile
        rows = rows_of(self, results)
        panels = {row["run_id"]: axis_value(self.panel, about.runs[row["run_id"]], about.base) for row in rows}
        counts: defaultdict[Any, Counter[tuple[str, ...]]] = defaultdict(Counter)
        have = [row for row in rows if of(row)]
        for row in have:
            counts[panels[row["run_id"]]][tuple(of(row)["layers"])] += 1
        layers = {panel: list(count.most_common(1)[0][0]) for panel, count in counts.items()}
        alike = [row for row in have if of(row)["layers"] == layers[panels[row["run_id"]]]]
        kept = {row["run_id"] for row in alike}
        others = {row["run_id"]: {**row, "details": {}} for row in rows if row["run_id"] not in kept}
        points = gather(self, Results(about, {**results.rows, **others}))
        numbers = [value for values in points.values.values() for value in values.values()]
        positive = [number for number in numbers if number > 0]
        logarithmic = bool(positive) and min(numbers) >= 0 and max(positive) > SPAN * min(positive)
        return ProfileView(
            **named(points),
            layers=layers,
            words=layer_words(alike),
            without=len(rows) - len(have),
            otherwise=len(have) - len(alike),
            not_finite=sum(value is None for row in alike for value in of(row)["values"]),
            logarithmic=logarithmic,
            zeros=len(numbers) - len(positive) if logarithmic else 0,
        )


@dataclass(frozen=True, kw_only=True)
class ProfileView(ChartView):
    """The lines of a profile, and counts of what it leaves out. The x of its points are the layers of all panels."""

    layers: dict[Any, list[str]]
    """Each panel's layers in order: those of most of its runs."""
    words: dict[str, str]
    """What layers are, by name; of old rows, nothing."""
    without: int
    """Number of finished runs without this profile."""
    otherwise: int
    """Number of finished runs whose layers differ from most runs of their panel."""
    not_finite: int
    """Number of values that are not finite."""
    logarithmic: bool
    """Whether values are shown and averaged on a logarithmic scale, because they span more than a factor of 30."""
    zeros: int
    """Number of zeros, which a logarithmic scale cannot show."""

    def estimate(self, panel: Any, line: str, layer: str) -> Estimate | None:
        """Return the mean over seeds, geometric on a logarithmic scale; None without a value."""
        values = list(self.points.values.get((panel, line, layer), {}).values())
        if self.logarithmic:
            positive = [value for value in values if value > 0]
            return geometric(positive) if positive else None
        if not values:
            return None
        summary = summarise(values)
        return Estimate(summary.n, summary.mean, summary.interval)

    def tables(self) -> list[Table]:
        """Return the values: lines by layer, one block per panel."""
        points = self.points
        n = points.usual_n()

        def cell(panel: Any, line: str, layer: str) -> Cell:
            one = self.estimate(panel, line, layer)
            if one is None:
                return Cell(NOTHING if layer in self.layers.get(panel, []) else "")
            notes = [f"n = {one.n}" if one.n != n else "", points.divergence(panel, line, None)]
            return Cell(interval_text(one, _number), note="; ".join(filter(None, notes)))

        return [
            Table(
                name=points.name,
                title=points.title,
                caption=self._caption(),
                corner=points.line_label,
                span=points.x_label,
                header=[with_name(layer, self.words) for layer in points.xs],
                blocks=blocks_of(points, points.lines, points.xs, cell),
                records=[self._record(place) for place in points.values],
            )
        ]

    def figure(self) -> "Figure":
        """Draw the values in layer order, joined, with intervals; on a logarithmic scale if they span much."""
        points = self.points
        panels = points.panels or [None]

        def paint(ax: "Axes", index: int, styles: Styles) -> None:
            """Draw the values of a panel by layer."""
            layers = self.layers.get(panels[index], [])
            places = list(range(1, len(layers) + 1))
            for line in points.lines:
                found = [self.estimate(panels[index], line, layer) for layer in layers]
                values = [one.value if one else nan for one in found]
                draw_line(
                    ax, line, styles, places, values, [one.interval if one else None for one in found], joined=True
                )
            every = slice(None, None, -(-len(layers) // TICKS) or 1)
            ax.set_xticks(places[every], [self._tick(layer) for layer in layers[every]], rotation=TURN)
            ax.set_xlabel(points.x_label)
            grid(ax)
            if self.logarithmic:
                from matplotlib.ticker import NullFormatter

                ax.set_yscale("log")
                ax.yaxis.set_major_formatter(lambda value, _: power(value))
                ax.yaxis.set_minor_formatter(NullFormatter())

        labels = [self._tick(layer) for layer in points.xs]
        title = points.metric(None).title
        sheet = Sheet(
            points.title, title, self._caption(), panel_titles(points), points.lines, paint, slanted(labels)
        )
        figure = compose(sheet)
        if not points.values:
            figure.axes[0].set_yticks([])
        return figure

    def _tick(self, layer: str) -> str:
        return clip(self.words.get(layer, layer), TICK_CHARACTERS)

    def _record(self, place: Place) -> dict[str, Any]:
        one = self.estimate(*place)
        low, high = (one.interval if one else None) or (None, None)
        return {
            **place_columns(self.points, *place),
            "n": one.n if one else 0,
            "mean": "geometric" if self.logarithmic else "arithmetic",
            "value": one.value if one else None,
            "low": low,
            "high": high,
        }

    def _caption(self) -> str:
        """Describe the numbers, the number of seeds, and what is left out."""
        points = self.points
        counts = sorted({len(values) for values in points.values.values()})
        if not counts:
            return f"No run that has finished has a {points.metric(None).words}, layer by layer."
        mean = "Geometric mean over seeds" if self.logarithmic else "Mean over seeds"
        of = " of the logarithm, back-transformed" if self.logarithmic else ""
        n = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
        how = f"{mean} with the 95 % t interval{of}; {n} seeds." if counts != [1] else "One run a point: no interval."
        return " ".join([how, *self._left_out(), *self._diverged(), points.tuning])

    def _diverged(self) -> list[str]:
        count = sum(count for count, _ in self.points.diverged.values())
        return [f"Of these runs, {count} diverged in training; what they have here counts."] if count else []

    def _left_out(self) -> list[str]:
        parts = {
            "runs without this profile": self.without,
            "runs with other layers than most": self.otherwise,
            "values that are not finite": self.not_finite,
            "values of zero, which have no logarithm": self.zeros,
        }
        said = [f"{count} {words}" for words, count in parts.items() if count]
        return [f"Left out: {listing(said)}."] if said else []


def power(value: float) -> str:
    """Return a power of ten, or another number, in few characters for an axis: 1e-4, 0.01, 1e5."""
    if 0.01 <= value < 10_000:
        return f"{value:g}"
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _number(value: float) -> str:
    return f"{value:#.3g}".rstrip(".")
