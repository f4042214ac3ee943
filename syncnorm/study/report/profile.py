"""One value a layer: the rows that have it, the figure and the table."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from math import nan
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from syncnorm.study.exhibits import Profile
from syncnorm.study.report.figures import Sheet, compose, panel_titles, slanted
from syncnorm.study.report.labels import listing
from syncnorm.study.report.lines import Place, axis_value
from syncnorm.study.report.panels import SPAN, TURN, Styles, clip, draw_line, grid
from syncnorm.study.report.points import Points, gather, profile_of, rows_of
from syncnorm.study.report.statistics import Estimate, geometric, summarise
from syncnorm.study.report.tables import NOTHING, Cell, Table, blocks_of, interval_text, place_columns
from syncnorm.study.rows import Results

TICKS, TICK_CHARACTERS = 18, 20
"""Names of layers below a panel, and characters of each."""


@dataclass(frozen=True)
class Profiles:
    """What a profile figure shows, and what it cannot show."""

    points: Points
    """Its x are the layers of all panels."""
    layers: dict[Any, list[str]]
    """By panel, in order: those of most of its runs."""
    without: int
    """Finished runs without this profile."""
    otherwise: int
    """Finished runs with other layers than most runs of their panel: their values belong to no layer here."""
    not_finite: int
    """Values that were not finite."""

    logarithmic: bool
    """Whether values are shown, and averaged, by their logarithm: they span more than a factor of 30."""
    zeros: int
    """Values of zero, where their logarithm would be shown."""

    def estimate(self, panel: Any, line: str, layer: str) -> Estimate | None:
        """Return the mean over seeds, geometric where logarithms are shown; None without a value."""
        values = list(self.points.values.get((panel, line, layer), {}).values())
        if self.logarithmic:
            positive = [value for value in values if value > 0]
            return geometric(positive) if positive else None
        if not values:
            return None
        summary = summarise(values)
        return Estimate(summary.n, summary.mean, summary.interval)


def profiles_of(profile: Profile, results: Results) -> Profiles:
    """Collect the rows of a profile figure; a row with other layers than most of its panel is left out."""
    about, rows = results.about, rows_of(profile, results)
    panels = {row["run_id"]: axis_value(profile.panel, about.runs[row["run_id"]], about.base) for row in rows}
    counts: defaultdict[Any, Counter[tuple[str, ...]]] = defaultdict(Counter)
    have = [row for row in rows if profile_of(profile, row)]
    for row in have:
        counts[panels[row["run_id"]]][tuple(profile_of(profile, row)["layers"])] += 1
    layers = {panel: list(count.most_common(1)[0][0]) for panel, count in counts.items()}
    alike = [row for row in have if profile_of(profile, row)["layers"] == layers[panels[row["run_id"]]]]
    kept = {row["run_id"] for row in alike}
    others = {row["run_id"]: {**row, "details": {}} for row in rows if row["run_id"] not in kept}
    points = gather(profile, Results(about, {**results.rows, **others}))
    numbers = [value for values in points.values.values() for value in values.values()]
    positive = [number for number in numbers if number > 0]
    logarithmic = bool(positive) and min(numbers) >= 0 and max(positive) > SPAN * min(positive)
    return Profiles(
        points=points,
        layers=layers,
        without=len(rows) - len(have),
        otherwise=len(have) - len(alike),
        not_finite=sum(value is None for row in alike for value in profile_of(profile, row)["values"]),
        logarithmic=logarithmic,
        zeros=len(numbers) - len(positive) if logarithmic else 0,
    )


def draw_profile(profiles: Profiles) -> Figure:
    """Return the figure: a value a layer in order, joined, with intervals; by logarithm where they span much."""
    points = profiles.points
    panels = points.panels or [None]

    def paint(ax: Axes, index: int, styles: Styles) -> None:
        layers = profiles.layers.get(panels[index], [])
        places = list(range(1, len(layers) + 1))
        for line in points.lines:
            found = [profiles.estimate(panels[index], line, layer) for layer in layers]
            values = [one.value if one else nan for one in found]
            draw_line(ax, line, styles, places, values, [one.interval if one else None for one in found], joined=True)
        every = slice(None, None, -(-len(layers) // TICKS) or 1)
        ax.set_xticks(places[every], [clip(layer, TICK_CHARACTERS) for layer in layers[every]], rotation=TURN)
        ax.set_xlabel(points.x_label)
        grid(ax)
        if profiles.logarithmic:
            ax.set_yscale("log")
            ax.yaxis.set_major_formatter(lambda value, _: power(value))
            ax.yaxis.set_minor_formatter(NullFormatter())

    labels = [clip(layer, TICK_CHARACTERS) for layer in points.xs]
    title = points.metric(None).title
    sheet = Sheet(points.title, title, _caption(profiles), panel_titles(points), points.lines, paint, slanted(labels))
    figure = compose(sheet)
    if not points.values:
        figure.axes[0].set_yticks([])
    return figure


def power(value: float) -> str:
    """Return a power of ten, or another number, in the few characters there are beside an axis: 1e-4, 0.01, 1e5."""
    if 0.01 <= value < 10_000:
        return f"{value:g}"
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def profile_table(profiles: Profiles) -> Table:
    """Return the table of values: lines by layer, a block a panel."""
    points = profiles.points
    n = points.usual_n()

    def cell(panel: Any, line: str, layer: str) -> Cell:
        one = profiles.estimate(panel, line, layer)
        if one is None:
            return Cell(NOTHING if layer in profiles.layers.get(panel, []) else "")
        return Cell(interval_text(one, _number), note=f"n = {one.n}" if one.n != n else "")

    return Table(
        name=points.name,
        title=points.title,
        caption=_caption(profiles),
        corner=points.line_label,
        span=points.x_label,
        header=list(points.xs),
        blocks=blocks_of(points, points.lines, points.xs, cell),
        records=[_record(profiles, place) for place in points.values],
    )


def _record(profiles: Profiles, place: Place) -> dict[str, Any]:
    one = profiles.estimate(*place)
    low, high = (one.interval if one else None) or (None, None)
    return {
        **place_columns(profiles.points, *place),
        "n": one.n if one else 0,
        "mean": "geometric" if profiles.logarithmic else "arithmetic",
        "value": one.value if one else None,
        "low": low,
        "high": high,
    }


def _number(value: float) -> str:
    return f"{value:#.3g}".rstrip(".")


def _caption(profiles: Profiles) -> str:
    """Say what the numbers are, over how many seeds, and what is left out."""
    points = profiles.points
    counts = sorted({len(values) for values in points.values.values()})
    if not counts:
        return f"No run that has finished has a {points.metric(None).words}, layer by layer."
    mean = "Geometric mean over seeds" if profiles.logarithmic else "Mean over seeds"
    of = " of the logarithm, back-transformed" if profiles.logarithmic else ""
    n = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
    how = f"{mean} with the 95 % t interval{of}; {n} seeds." if counts != [1] else "One run a point: no interval."
    return " ".join([how, *_left_out(profiles)])


def _left_out(profiles: Profiles) -> list[str]:
    parts = {
        "runs without this profile": profiles.without,
        "runs with other layers than most": profiles.otherwise,
        "values that are not finite": profiles.not_finite,
        "values of zero, which have no logarithm": profiles.zeros,
    }
    said = [f"{count} {words}" for words, count in parts.items() if count]
    return [f"Left out: {listing(said)}."] if said else []
