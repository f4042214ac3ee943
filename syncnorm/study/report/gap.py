"""How much of a gap every line closes: its runs and those at both ends of the gap, its figure and its tables."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite, nan
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from syncnorm.config import Run, describe, run_id
from syncnorm.errors import UserError
from syncnorm.study.exhibits import Axis, Gap, names_of
from syncnorm.study.plan.spec import flatten
from syncnorm.study.report.figures import Sheet, below, compose, panel_titles
from syncnorm.study.report.labels import listing, setting
from syncnorm.study.report.lines import Place, place
from syncnorm.study.report.panels import FAINT, Styles, draw_line, grid, is_numeric, positions, x_axis
from syncnorm.study.report.points import Points, agrees, fits, gather, without_repeats
from syncnorm.study.report.statistics import Share, Summary, paired, share_closed
from syncnorm.study.report.tables import (
    MINUS,
    NOTHING,
    Cell,
    Table,
    blocks_of,
    interval_text,
    mean_text,
    place_columns,
    statistics_columns,
)
from syncnorm.study.rows import About, Results, Row

QUANTITY = "Share of the gap closed (%)"
LOWEST, HIGHEST = -1.0, 2.0
"""Shares beyond are not on the axis: a line that is far off would squash all others."""
MARGIN = 5.0
"""Percent, on the axis beyond the shares shown."""
NO_GAP = "no gap"

Ends = tuple[dict[int, float], dict[int, float]]
"""The metric by seed at the low and at the high end of a gap."""


@dataclass(frozen=True)
class Shares:
    """What a gap figure shows: the runs that are not themselves at an end of the gap, and the ends."""

    gap: Gap
    points: Points
    """The lines' own metric."""
    ends: dict[tuple[Any, Any], Ends]
    """By (panel, x)."""
    values: dict[Place, Share]
    """By (panel, line, x), where the line and both ends have a seed in common."""
    nobody: list[str]
    """Ends that the study has no runs at."""

    def size(self, panel: Any, x: Any) -> Summary | None:
        """Return the gap itself, high - low, over the seeds that both ends have."""
        low, high = self.ends.get((panel, x), ({}, {}))
        return paired(high, low)

    def usual_n(self) -> int:
        """Return the number of seeds that most shares have (0 without any)."""
        counts = Counter(share.gap.n for share in self.values.values())
        return max(counts, key=lambda n: (counts[n], n), default=0)


def shares_of(gap: Gap, results: Results) -> Shares:
    """Collect the rows of a gap figure, and those at the ends of the gap.

    An end that picks several runs of one seed raises `UserError`.
    """
    about = results.about
    low, high = (_End(name, gap, results) for name in ("low", "high"))
    others = {run: fields for run, fields in about.runs.items() if run not in low.runs and run not in high.runs}
    points = gather(gap, Results(replace(about, runs=others), results.rows))
    ends = {}
    for fields in others.values():
        if fits(gap, fields):
            panel, _, x = place(gap, fields, about.base)
            ends[panel, x] = low.values(fields), high.values(fields)
    shares = {at: share_closed(values, *ends[at[0], at[2]]) for at, values in points.values.items()}
    nobody = [end.name for end in (low, high) if not end.runs]
    return Shares(gap, points, ends, {at: share for at, share in shares.items() if share}, nobody)


def check_gaps(about: About, runs: Sequence[Run]) -> None:
    """Raise the `UserError` that a gap figure of these runs would end with, before any of them is trained."""
    rows = {
        run_id(run): {"run_id": run_id(run), "config": describe(run), "metrics": {}, "evaluated_by": ""}
        for run in runs
    }
    for figure in about.figures:
        if isinstance(figure, Gap):
            shares_of(figure, Results(about, rows))


class _End:
    """The runs at one end of a gap, and which of them a run is compared with."""

    def __init__(self, name: str, gap: Gap, results: Results) -> None:
        self.name = name
        own = gap.low if name == "low" else gap.high
        wanted = {**gap.where, **own}
        self.runs = {run: fields for run, fields in results.about.runs.items() if agrees(fields, wanted)}
        self._panel, self._x = (self._open(axis, own) for axis in (gap.panel, gap.x))
        several: defaultdict[str, set[str]] = defaultdict(set)
        for fields in self.runs.values():
            several[_key(fields, self._panel)].add(_key(fields, self._x))
        self._at_x = {panel for panel, xs in several.items() if len(xs) > 1}
        """Panels where the end was run at several x: there the same x counts."""
        self._values: defaultdict[tuple[str, str], dict[int, float | None]] = defaultdict(dict)
        first: dict[tuple[str, str, int], Row] = {}
        found = [row for row in results.finished if row["run_id"] in self.runs]
        for row in without_repeats(found, results, list(wanted)):
            spot, seed = self._spot(self.runs[row["run_id"]]), row["config"]["seed"]
            if (other := first.setdefault((*spot, seed), row)) is not row:
                raise _ambiguous(name, other, row)
            self._values[spot][seed] = row["metrics"].get(gap.metric)

    def values(self, fields: Mapping[str, Any]) -> dict[int, float]:
        """Return the metric by seed that a run with these fields is compared with."""
        found = self._values.get(self._spot(fields), {})
        return {seed: value for seed, value in found.items() if value is not None}

    def _open(self, axis: Axis | None, own: Mapping[str, Any]) -> list[str]:
        """Return the fields of an axis in which the end is where a run is: those that it does not name itself."""
        return [
            name
            for name in names_of(axis)
            if name not in own and any(name in fields for fields in self.runs.values())
        ]

    def _spot(self, fields: Mapping[str, Any]) -> tuple[str, str]:
        panel = _key(fields, self._panel)
        return panel, _key(fields, self._x) if panel in self._at_x else ""


def _key(fields: Mapping[str, Any], names: list[str]) -> str:
    return repr([fields.get(name) for name in names])


def _ambiguous(name: str, row: Row, other: Row) -> UserError:
    one, two = flatten(row["config"]), flatten(other["config"])
    differing = [field for field in {**one, **two} if one.get(field) != two.get(field)]
    return UserError(
        f"the {name} end of a gap picks several runs of seed {row['config']['seed']}, which differ in "
        f"{listing(differing)}: name {'this field' if len(differing) == 1 else 'one of these fields'} in {name} too."
    )


def draw_gap(shares: Shares) -> Figure:
    """Return the figure: shares in percent with their intervals, and lines across at both ends of the gap."""
    points = shares.points
    bounds = _bounds(shares)

    def paint(ax: Axes, index: int, styles: Styles) -> None:
        panel = (points.panels or [None])[index]
        for end in (0, 100):
            ax.axhline(end, color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        for line, places in x_axis(ax, points).items():
            found = [shares.values.get((panel, line, x)) for x in points.xs]
            closed = [share.closed if share else None for share in found]
            values = [100 * one.value if one else nan for one in closed]
            intervals = [one.interval if one else None for one in closed]
            draw_line(ax, line, styles, places, values, intervals, 100.0, joined=is_numeric(points.xs))
            for at, value in zip(places, values, strict=True):
                if isfinite(value) and not bounds[0] <= value <= bounds[1]:
                    up = value > bounds[1]
                    ax.plot(at, bounds[up], "^" if up else "v", color=styles[line].color, clip_on=False, markersize=6)
        for x, at in zip(points.xs, positions(points.xs), strict=True):
            here = [share for (where, _, other), share in shares.values.items() if (where, other) == (panel, x)]
            if here and not any(share.closed for share in here):
                ax.text(at, 50, NO_GAP, rotation=90, ha="center", va="center", fontsize=8, color=FAINT)
        ax.set_ylim(*bounds)
        grid(ax)

    return compose(
        Sheet(points.title, QUANTITY, _footnote(shares), panel_titles(points), points.lines, paint, below(points))
    )


def _bounds(shares: Shares) -> tuple[float, float]:
    """Return the ends of the axis, in percent."""
    closed = [share.closed for share in shares.values.values() if share.closed]
    seen = [end for one in closed for end in (one.value, *(one.interval or ()))]
    low, high = max(LOWEST, min([*seen, 0.0])), min(HIGHEST, max([*seen, 1.0]))
    return 100 * low - MARGIN, 100 * high + MARGIN


def gap_table(shares: Shares) -> Table:
    """Return the table of shares with their intervals, lines by x, a block a panel; above each the gap itself."""
    points, metric = shares.points, shares.points.metric(None)

    def cell(panel: Any, line: str, x: Any) -> Cell:
        share = shares.values.get((panel, line, x))
        if share is None:
            return Cell(NOTHING if (panel, line, x) in points.planned else "")
        note = f"n = {share.gap.n}" if share.gap.n != shares.usual_n() else ""
        return Cell(interval_text(share.closed, _percent) if share.closed else NO_GAP, note=note)

    def size(panel: Any) -> list[Cell]:
        sizes = [shares.size(panel, x) for x in points.xs]
        words = f"high {MINUS} low" + (f" ({metric.difference_unit})" if metric.difference_unit else "")
        return [Cell(words), *(Cell(mean_text(one, metric, sign="+") if one else NOTHING) for one in sizes)]

    blocks = blocks_of(points, points.lines, points.xs, cell)
    return Table(
        name=points.name,
        title=points.title,
        caption=f"(line {MINUS} low) / (high {MINUS} low) in percent: a ratio of means over seeds, with Fieller's "
        f"95 % interval in brackets; {_seeds(shares)}. {_ends(shares)} “{NO_GAP}”: the 95 % "
        f"interval of high {MINUS} low holds zero. {points.evaluation()}",
        corner=points.line_label,
        span=points.x_label,
        header=[points.x_text(x) for x in points.xs],
        blocks=[
            (heading, [size(panel), *lines]) for panel, (heading, lines) in zip(points.panels, blocks, strict=True)
        ],
        records=[_record(shares, at) for at in shares.values],
    )


def _record(shares: Shares, at: Place) -> dict[str, Any]:
    share = shares.values[at]
    closed = share.closed
    low, high = (closed.interval if closed else None) or (None, None)
    return {
        **place_columns(shares.points, *at),
        "n": share.gap.n,
        "share": closed.value if closed else None,
        "share_low": low,
        "share_high": high,
        **statistics_columns("gap_", share.gap),
    }


def _percent(share: float) -> str:
    return f"{100 * share:z.1f}"


def _seeds(shares: Shares) -> str:
    counts = sorted({share.gap.n for share in shares.values.values()})
    if shares.nobody:
        return f"the study has no runs at the {' and the '.join(shares.nobody)} end of the gap"
    if not counts:
        return "no line and both ends of the gap have a seed in common yet"
    n = shares.usual_n()
    uneven = " unless a cell says otherwise" if len(counts) > 1 else ""
    alone = "; one seed gives no interval" if counts[0] == 1 else ""
    return f"n = {n} {'seed' if n == 1 else 'seeds'}{uneven}{alone}"


def _ends(shares: Shares) -> str:
    """Say what 0 and 100 % are."""
    ends = (("0 %", shares.gap.low), ("100 %", shares.gap.high))
    words = (f"{share}: {listing(setting(name, value) for name, value in end.items())}" for share, end in ends)
    return f"{'; '.join(words)}."


def _footnote(shares: Shares) -> str:
    """Return what the marks mean, and what is not there."""
    found = shares.values.values()
    if not found:
        return f"{_ends(shares)}\n{_seeds(shares).capitalize()}."
    notes = [f"{_ends(shares)} Ratio of means with Fieller's 95 % interval, {_seeds(shares)}."]
    if without := sum(share.closed is None for share in found):
        notes.append(f"Not shown: {without} shares of gaps whose 95 % interval holds zero.")
    closed = [share.closed for share in found if share.closed]
    ends = [end for one in closed for end in (one.value, *(one.interval or ()))]
    if ends and (min(ends) < LOWEST or max(ends) > HIGHEST):
        notes.append(f"The axis is cut at {MINUS}100 and 200 %; triangles on its edge are shares beyond.")
    return f"{' '.join(notes)}\n{shares.points.evaluation()}"
