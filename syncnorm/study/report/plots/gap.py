"""The share of the gap between two groups of runs that every line closes."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite, nan
from typing import TYPE_CHECKING, Any, ClassVar

from syncnorm.errors import UserError
from syncnorm.study.plan.spec import flatten
from syncnorm.study.plot import Axis, Reads, agrees, names_of
from syncnorm.study.report.analysis.across import Across, Field
from syncnorm.study.report.analysis.agreement import without_repeats
from syncnorm.study.report.analysis.labels import listing, setting
from syncnorm.study.report.analysis.lines import Place
from syncnorm.study.report.analysis.points import Chart, ChartView, Points, gather, joined, named, place, usual
from syncnorm.study.report.analysis.records import place_columns, statistics_columns
from syncnorm.study.report.analysis.tables import blocks_of, interval_text, mean_text
from syncnorm.study.report.drawing.figures import Sheet, below, compose, panel_titles
from syncnorm.study.report.drawing.panels import Styles, draw_line, grid, is_numeric, positions, x_axis
from syncnorm.study.report.drawing.style import FAINT
from syncnorm.study.report.inference.statistics import Share, Summary, paired, share_closed
from syncnorm.study.rows import Results, Row, diverged
from syncnorm.study.table import MINUS, NOTHING, Cell, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

QUANTITY = "Share of the gap closed (%)"
LOWEST, HIGHEST = -1.0, 2.0
"""Range of shares on the axis: a far-off line would squash all others."""
MARGIN = 5.0
"""Margin of the axis beyond the shown shares, in percent."""
NO_GAP = "no gap"

Ends = tuple[dict[int, float], dict[int, float]]
"""The metric by seed at the low and the high end of a gap."""


@dataclass(frozen=True)
class Gap(Chart):
    """A figure: the share of the gap between two groups of runs that every line closes, against `x`, by `panel`.

    The share is (line - low) / (high - low) of `metric`: a ratio of means over the paired seeds. `low` and `high`
    select the runs at the ends by fields and values, in addition to `where`. A line is compared with end runs of its
    own panel, and of its own x if the end was run at several; fields of an axis that `low` or `high` set themselves
    are exempt. The runs at the ends are not points of the figure.
    """

    kind: ClassVar[str] = "gap"

    x: Axis
    line: Axis
    low: dict[str, Any]
    high: dict[str, Any]
    panel: Axis | None = None
    metric: str = "accuracy"

    def collect(self, results: Results) -> "GapView":
        """Collect the runs of every line, and those at the ends of the gap.

        Raises:
            UserError: an end picks several runs of one seed.
        """
        about = results.about
        low, high = (_End(name, self, results) for name in ("low", "high"))
        others = {run: fields for run, fields in about.runs.items() if run not in low.runs and run not in high.runs}
        points = gather(self, Results(replace(about, runs=others), results.rows))
        ends = {}
        for fields in others.values():
            if self.fits(fields):
                panel, _, x = place(self, fields, about.base)
                ends[panel, x] = low.values(fields), high.values(fields)
        shares = {at: share_closed(values, *ends[at[0], at[2]]) for at, values in points.values.items()}
        return GapView(
            **named(points),
            gap=self,
            ends=ends,
            shares={at: share for at, share in shares.items() if share},
            nobody=[end.name for end in (low, high) if not end.runs],
            lost=low.lost + high.lost,
        )

    def check(self, planned: Results) -> None:
        """Refuse an end that picks several runs of one seed."""
        self.collect(planned)

    def axes(self) -> tuple[Axis | None, ...]:
        """Return x, line and panel."""
        return self.x, self.line, self.panel

    def references(self) -> tuple[str, ...]:
        """Return the fields of both ends."""
        return tuple(dict.fromkeys((*self.low, *self.high)))

    def reads(self) -> Reads:
        """Return the names that it reads from a row."""
        return Reads(metrics=(self.metric,))

    def across(self) -> Across:
        """Return the field of x."""
        return Field((self.metric,), self.x)

    def stem(self) -> tuple[str, ...]:
        """Return "gap", the metric and x."""
        return "gap", self.metric, joined(self.x)

    def words(self, points: Points) -> str:
        """Return e.g. "Share of the gap closed (%) by samples per device and norm"."""
        return f"{QUANTITY} by {points.x_and_line}"


@dataclass(frozen=True, kw_only=True)
class GapView(ChartView):
    """The shares of a gap that lines close. Its points are the runs that are not at an end of the gap."""

    gap: Gap
    ends: dict[tuple[Any, Any], Ends]
    """By (panel, x)."""
    shares: dict[Place, Share]
    """Shares by (panel, line, x), if the line and both ends have a seed in common."""
    nobody: list[str]
    """Ends without runs in the study."""
    lost: int
    """Number of diverged runs at the ends."""

    def size(self, panel: Any, x: Any) -> Summary | None:
        """Return the gap, high - low, over the seeds that both ends have."""
        low, high = self.ends.get((panel, x), ({}, {}))
        return paired(high, low)

    def usual_n(self) -> int:
        """Return the number of seeds that most shares have (0 without any)."""
        return usual(share.gap.n for share in self.shares.values())

    def tables(self) -> list[Table]:
        """Return the shares with their intervals: lines by x, one block per panel, with the gap above the lines."""
        points, metric = self.points, self.points.metric(None)

        def cell(panel: Any, line: str, x: Any) -> Cell:
            share = self.shares.get((panel, line, x))
            if share is None:
                nothing = NOTHING if (panel, line, x) in points.planned else ""
                return Cell(nothing, note=points.marks(panel, line, x))
            text = interval_text(share.closed, _percent) if share.closed else NO_GAP
            return Cell(text, note=self._note(share.gap.n, points.marks(panel, line, x)))

        def size(panel: Any) -> list[Cell]:
            sizes = [self.size(panel, x) for x in points.xs]
            words = f"high {MINUS} low" + (f" ({metric.difference_unit})" if metric.difference_unit else "")
            return [Cell(words), *(Cell(mean_text(one, metric, sign="+") if one else NOTHING) for one in sizes)]

        blocks = blocks_of(points, points.lines, points.xs, cell)
        return [
            Table(
                name=points.name,
                title=points.title,
                caption=f"(line {MINUS} low) / (high {MINUS} low) in percent: a ratio of means over seeds, with "
                f"Fieller's 95 % interval in brackets; {self._seeds()}. {self._ends()} “{NO_GAP}”: the 95 % "
                f"interval of high {MINUS} low holds zero. {points.evaluation()}{self._lost()}",
                corner=points.line_label,
                span=points.x_label,
                header=[points.x_text(x) for x in points.xs],
                blocks=[
                    (heading, [size(panel), *lines])
                    for panel, (heading, lines) in zip(points.panels, blocks, strict=True)
                ],
                records=[self._record(at) for at in self.shares],
            )
        ]

    def figure(self) -> "Figure":
        """Draw shares in percent with their intervals, and horizontal lines at both ends of the gap."""
        points = self.points
        bounds = self._bounds()

        def paint(ax: "Axes", index: int, styles: Styles) -> None:
            """Draw the shares of a panel."""
            panel = (points.panels or [None])[index]
            for end in (0, 100):
                ax.axhline(end, color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
            for line, places in x_axis(ax, points).items():
                found = [self.shares.get((panel, line, x)) for x in points.xs]
                closed = [share.closed if share else None for share in found]
                values = [100 * one.value if one else nan for one in closed]
                intervals = [one.interval if one else None for one in closed]
                draw_line(ax, line, styles, places, values, intervals, 100.0, joined=is_numeric(points.xs))
                for at, value in zip(places, values, strict=True):
                    if isfinite(value) and not bounds[0] <= value <= bounds[1]:
                        up = value > bounds[1]
                        ax.plot(
                            at, bounds[up], "^" if up else "v", color=styles[line].color, clip_on=False, markersize=6
                        )
            for x, at in zip(points.xs, positions(points.xs), strict=True):
                here = [share for (where, _, other), share in self.shares.items() if (where, other) == (panel, x)]
                if here and not any(share.closed for share in here):
                    ax.text(at, 50, NO_GAP, rotation=90, ha="center", va="center", fontsize=8, color=FAINT)
            ax.set_ylim(*bounds)
            grid(ax)

        return compose(
            Sheet(points.title, QUANTITY, self._footnote(), panel_titles(points), points.lines, paint, below(points))
        )

    def _bounds(self) -> tuple[float, float]:
        """Return the limits of the axis in percent."""
        closed = [share.closed for share in self.shares.values() if share.closed]
        seen = [end for one in closed for end in (one.value, *(one.interval or ()))]
        low, high = max(LOWEST, min([*seen, 0.0])), min(HIGHEST, max([*seen, 1.0]))
        return 100 * low - MARGIN, 100 * high + MARGIN

    def _record(self, at: Place) -> dict[str, Any]:
        share = self.shares[at]
        closed = share.closed
        low, high = (closed.interval if closed else None) or (None, None)
        return {
            **place_columns(self.points, *at),
            "n": share.gap.n,
            "share": closed.value if closed else None,
            "share_low": low,
            "share_high": high,
            **statistics_columns("gap_", share.gap),
        }

    def _seeds(self) -> str:
        counts = sorted({share.gap.n for share in self.shares.values()})
        if self.nobody:
            return f"the study has no runs at the {' and the '.join(self.nobody)} end of the gap"
        if not counts:
            return "no line and both ends of the gap have a seed in common yet"
        n = self.usual_n()
        uneven = " unless a cell says otherwise" if len(counts) > 1 else ""
        alone = "; one seed gives no interval" if counts[0] == 1 else ""
        return f"n = {n} {'seed' if n == 1 else 'seeds'}{uneven}{alone}"

    def _ends(self) -> str:
        """Say what 0 % and 100 % mean."""
        ends = (("0 %", self.gap.low), ("100 %", self.gap.high))
        words = (f"{share}: {listing(setting(name, value) for name, value in end.items())}" for share, end in ends)
        return f"{'; '.join(words)}."

    def _footnote(self) -> str:
        """Return the meaning of the marks, and what is left out."""
        found = self.shares.values()
        if not found:
            return f"{self._ends()}\n{self._seeds().capitalize()}."
        notes = [f"{self._ends()} Ratio of means with Fieller's 95 % interval, {self._seeds()}."]
        if without := sum(share.closed is None for share in found):
            notes.append(f"Not shown: {without} shares of gaps whose 95 % interval holds zero.")
        closed = [share.closed for share in found if share.closed]
        ends = [end for one in closed for end in (one.value, *(one.interval or ()))]
        if ends and (min(ends) < LOWEST or max(ends) > HIGHEST):
            notes.append(f"The axis is cut at {MINUS}100 and 200 %; triangles on its edge are shares beyond.")
        return f"{' '.join(notes)}\n{self.points.evaluation()}{self._lost()}"

    def _note(self, n: int, divergence: str) -> str:
        return "; ".join(part for part in (f"n = {n}" if n != self.usual_n() else "", divergence) if part)

    def _lost(self) -> str:
        return f" Diverged at the ends of the gap, and in no share: {self.lost} runs." if self.lost else ""


class _End:
    """The runs at one end of a gap, and the choice of those that a run is compared with."""

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
        """Panels in which the end was run at several x; there, runs with the same x are compared."""
        self._values: defaultdict[tuple[str, str], dict[int, float | None]] = defaultdict(dict)
        self.lost = 0
        """Runs that diverged."""
        first: dict[tuple[str, str, int], Row] = {}
        found = [row for row in results.finished if row["run_id"] in self.runs]
        for row in without_repeats(found, results, list(wanted)):
            spot, seed = self._spot(self.runs[row["run_id"]]), row["config"]["seed"]
            if (other := first.setdefault((*spot, seed), row)) is not row:
                raise _ambiguous(name, other, row)
            self.lost += diverged(row)
            self._values[spot][seed] = None if diverged(row) else row["metrics"].get(gap.metric)

    def values(self, fields: Mapping[str, Any]) -> dict[int, float]:
        """Return the end's metric by seed for comparison with a run with these fields."""
        found = self._values.get(self._spot(fields), {})
        return {seed: value for seed, value in found.items() if value is not None}

    def _open(self, axis: Axis | None, own: Mapping[str, Any]) -> list[str]:
        """Return the fields of an axis that the end does not set itself; in these, it must equal the run."""
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


def _percent(share: float) -> str:
    return f"{100 * share:z.1f}"
