"""Which factors move the difference between two groups of runs: means by level, and an analysis of variance."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import TYPE_CHECKING, Any, ClassVar

from syncnorm.errors import UserError
from syncnorm.study.plot import Axis, Plot, Reads, View, agrees
from syncnorm.study.report.analysis.across import sample
from syncnorm.study.report.analysis.agreement import without_repeats
from syncnorm.study.report.analysis.labels import Metric, field_label, listing, metric_label, setting, value_label
from syncnorm.study.report.analysis.points import file_name, joined
from syncnorm.study.report.analysis.records import statistics_columns
from syncnorm.study.report.analysis.tables import mean_text
from syncnorm.study.report.drawing.style import CHARACTER, FAINT, INK, label_figure
from syncnorm.study.report.inference.effects import Term, variance_terms
from syncnorm.study.report.inference.statistics import Summary, summarise
from syncnorm.study.rows import Results, Row, diverged
from syncnorm.study.table import MINUS, NOTHING, Cell, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KIND = "world.kind"
WIDTH, LINE, APART, ABOVE, BELOW = 7.4, 0.23, 0.16, 0.5, 0.95
"""Inches: the figure's width, the height of a line, the space after a factor, and the margins."""
WIDEST = 3.0
"""Maximum of inches for the names of levels."""

Setting = tuple[str, ...]
"""A level of each factor, as text."""


@dataclass(frozen=True)
class Effects(Plot):
    """A figure: the mean difference `high` - `low` of `metric` at each level of each factor, and what moves it.

    `low` and `high` select two groups of runs by fields and values, in addition to `where`. Two runs that agree in
    all `factors` and in the seed are a pair; their difference is one response. A factor is a field, or several fields
    that make one choice. The table splits the variance of the responses into the factors, pairs of factors, seeds,
    and the rest (`variance_terms`).
    """

    kind: ClassVar[str] = "effects"

    low: dict[str, Any]
    high: dict[str, Any]
    factors: tuple[Axis, ...]
    metric: str = "accuracy"

    def collect(self, results: Results) -> "EffectsView":
        """Pair the runs of both groups.

        Raises:
            UserError: a group has several runs of one setting and seed.
        """
        groups = [_group(self, name, results) for name in ("low", "high")]
        low, high = groups
        responses = {spot: high[spot] - low[spot] for spot in high if spot in low}
        found = [row for row in results.finished if self.fits(results.about.runs[row["run_id"]])]
        lost = sum(diverged(row) for row in found)
        kinds = {str(results.about.runs[row["run_id"]].get(KIND, "devices")) for row in found}
        levels: list[dict[str, None]] = [{} for _ in self.factors]
        for fields in results.about.runs.values():
            if self.fits(fields):
                for known, level in zip(levels, _setting(self, fields), strict=True):
                    known[level] = None
        world = kinds.pop() if len(kinds) == 1 else "devices"
        metric = metric_label(self.metric, world)
        return EffectsView(
            name=file_name("effects", self.metric, *map(joined, self.factors)),
            title=self.title or f"What moves the difference in {metric.words}",
            empty=not responses,
            effects=self,
            metric=metric,
            levels=[list(known) for known in levels],
            responses=responses,
            lost=lost,
            world=world,
        )

    def check(self, planned: Results) -> None:
        """Refuse a group with several runs of one setting and seed, and factors that do not vary."""
        if not self.factors:
            raise UserError("a plot of effects needs factors: name the fields that vary.")
        view = self.collect(planned)
        for name, levels in zip(self.factors, view.levels, strict=True):
            if len(levels) == 1:
                raise UserError(
                    f"the factor '{joined(name)}' of a plot of effects has one level only, {levels[0]}: leave it out."
                )

    def axes(self) -> tuple[Axis | None, ...]:
        """Return the factors."""
        return self.factors

    def references(self) -> tuple[str, ...]:
        """Return the fields of both groups."""
        return tuple(dict.fromkeys((*self.low, *self.high)))

    def reads(self) -> Reads:
        """Return the name of the metric."""
        return Reads(metrics=(self.metric,))

    def fits(self, fields: Mapping[str, Any]) -> bool:
        """Return whether a run is in one of the two groups."""
        return super().fits(fields) and (agrees(fields, self.low) or agrees(fields, self.high))


@dataclass(frozen=True, kw_only=True)
class EffectsView(View):
    """Differences by setting and seed."""

    effects: Effects
    metric: Metric
    levels: list[list[str]]
    """The levels of each factor, in the study's order."""
    responses: dict[tuple[Setting, int], float]
    """high - low, by setting and seed, as stored."""
    lost: int
    """Number of diverged runs, which are in no pair."""
    world: str
    """The world of its runs; "devices" if there are several."""

    def at(self, factor: int, level: str) -> Summary | None:
        """Return the mean response at a level: over settings for each seed, then over seeds."""
        seeds: defaultdict[int, list[float]] = defaultdict(list)
        for (settings, seed), value in self.responses.items():
            if settings[factor] == level:
                seeds[seed].append(value)
        return summarise([sum(values) / len(values) for values in seeds.values()]) if seeds else None

    def terms(self) -> list[Term]:
        """Return the analysis of variance of the responses."""
        if len(self.responses) < 2:
            return []
        settings, seeds = zip(*self.responses, strict=True)
        return variance_terms(
            list(self.responses.values()), settings, seeds, [joined(one) for one in self.effects.factors]
        )

    def tables(self) -> list[Table]:
        """Return the means by level, the differences of single settings, and the analysis of variance."""
        return [self._levels(), self._settings(), self._variance()]

    def figure(self) -> "Figure":
        """Draw the mean difference at each level with its interval, one group of lines per factor."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        names = [self._label(name) for name in self.effects.factors]
        count = sum(map(len, self.levels))
        longest = max((len(level) for levels in self.levels for level in levels), default=1)
        left = min(WIDEST, 0.3 + CHARACTER * max(longest, *map(len, names)))
        head = fill(self.title, int(10.5 * (WIDTH - left)))
        top = ABOVE + 0.2 * head.count("\n")
        height = top + count * LINE + len(names) * (LINE + APART) + BELOW
        figure = Figure(figsize=(WIDTH, height))
        FigureCanvasAgg(figure)
        box = (left / WIDTH, BELOW / height, 1 - (left + 0.2) / WIDTH, 1 - (top + BELOW) / height)
        self._draw(figure.add_axes(box), names)
        note = fill(self._footnote(), int(18 * (WIDTH - left)))
        label_figure(figure, left / WIDTH, (head, 1 - 0.12 / height), (note, 0.08 / height))
        return figure

    def _draw(self, ax: "Axes", names: Sequence[str]) -> None:
        ticks, labels, y = [], [], 0.0
        for factor, (name, levels) in enumerate(zip(names, self.levels, strict=True)):
            ax.text(
                -0.01, y, name, transform=ax.get_yaxis_transform(), ha="right", va="center", weight="bold", color=INK
            )
            y += LINE
            for level in levels:
                ticks.append(y)
                labels.append(level)
                if summary := self.at(factor, level):
                    scale = self.metric.scale
                    ends = summary.interval or (summary.mean, summary.mean)
                    ax.plot([scale * end for end in ends], [y, y], color=INK, linewidth=1.2, solid_capstyle="butt")
                    ax.plot([scale * summary.mean], [y], "o", color=INK, markersize=4.5)
                y += LINE
            y += APART
        ax.axvline(0, color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
        ax.set_yticks(ticks, labels)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.set_ylim(y, -LINE / 2)
        unit = f" ({self.metric.difference_unit})" if self.metric.difference_unit else ""
        ax.set_xlabel(f"{self._words()}{unit}")

    def _label(self, factor: Axis) -> str:
        """Return a factor's words; of several fields, those of the first."""
        return field_label(factor if isinstance(factor, str) else factor[0], sample(self.world))

    def _words(self) -> str:
        """Return "gn - bn", with all fields of both groups."""
        ends = (
            [setting(name, value) for name, value in group.items()] for group in (self.effects.high, self.effects.low)
        )
        high, low = (listing(words) for words in ends)
        return f"{high} {MINUS} {low}"

    def _levels(self) -> Table:
        records: list[dict[str, Any]] = []
        blocks: list[tuple[str, list[list[Cell]]]] = []
        for factor, (name, levels) in enumerate(zip(self.effects.factors, self.levels, strict=True)):
            rows: list[list[Cell]] = []
            for level in levels:
                summary = self.at(factor, level)
                pairs = sum(settings[factor] == level for settings, _ in self.responses)
                text = mean_text(summary, self.metric, sign="+") if summary else NOTHING
                rows.append([Cell(level), Cell(text), Cell(str(pairs))])
                records.append(
                    {"factor": joined(name), "level": level, "pairs": pairs, **statistics_columns("", summary)}
                )
            blocks.append((self._label(name), rows))
        return Table(
            name=self.name,
            title=self.title,
            caption=f"{self._words()} of {self.metric.words}, paired by setting and seed: mean over the other "
            "factors' levels for each seed, then mean ± half width of the 95 % t interval over seeds. "
            f"{self._footnote()}",
            corner="level",
            span=self._words(),
            header=[self.metric.difference_unit or "difference", "pairs"],
            blocks=blocks,
            records=records,
        )

    def _settings(self) -> Table:
        seeds: defaultdict[Setting, list[float]] = defaultdict(list)
        for (settings, _), value in self.responses.items():
            seeds[settings].append(value)
        found = {settings: summarise(values) for settings, values in seeds.items()}
        ordered = sorted(
            found, key=lambda one: [known.index(level) for known, level in zip(self.levels, one, strict=True)]
        )
        return Table(
            name=f"{self.name}-settings",
            title=f"{self.title}: each setting",
            caption=f"{self._words()}, paired by seed: mean ± half width of the 95 % t interval over seeds.",
            corner=listing(self._label(name) for name in self.effects.factors),
            span=self._words(),
            header=[self.metric.difference_unit or "difference", "seeds"],
            blocks=[
                (
                    "",
                    [
                        [
                            Cell("; ".join(one)),
                            Cell(mean_text(found[one], self.metric, sign="+")),
                            Cell(str(found[one].n)),
                        ]
                        for one in ordered
                    ],
                )
            ],
            records=[
                {
                    **dict(zip(map(joined, self.effects.factors), one, strict=True)),
                    **statistics_columns("", found[one]),
                }
                for one in ordered
            ],
        )

    def _variance(self) -> Table:
        terms = self.terms()
        labels = {joined(factor): self._label(factor) for factor in self.effects.factors}
        lines, records = [], []
        for term in terms:
            words = " x ".join(labels.get(name, name) for name in term.names)
            f, p = (NOTHING, NOTHING) if term.f is None or term.p is None else (f"{term.f:.1f}", f"{term.p:.1g}")
            lines.append([Cell(words), Cell(f"{100 * term.share:.1f}"), Cell(str(term.df)), Cell(f), Cell(p)])
            records.append(
                {
                    "term": " x ".join(term.names),
                    "df": term.df,
                    "sum_of_squares": term.squares,
                    "share": term.share,
                    "f": term.f,
                    "p": term.p,
                }
            )
        return Table(
            name=f"{self.name}-variance",
            title=f"{self.title}: analysis of variance",
            caption="Sums of squares of type II over factors, pairs of factors, and seeds as blocks, in percent of "
            "the total. F and p assume independent noise of equal variance.",
            corner="term",
            span="",
            header=["% of the variance", "degrees of freedom", "F", "p"],
            blocks=[("", lines)],
            records=records,
        )

    def _footnote(self) -> str:
        count = len({seed for _, seed in self.responses})
        if not count:
            return "No pair of runs has finished."
        over = f"Mean over the levels of the other factors, with the 95 % t interval over {count} seeds"
        lost = f" Diverged, and in no pair: {self.lost} runs." if self.lost else ""
        return f"{over}; {len(self.responses)} pairs.{lost}"


def _group(plot: Effects, name: str, results: Results) -> dict[tuple[Setting, int], float]:
    """Return the metric of one group's runs by setting and seed, without diverged runs."""
    wanted = plot.low if name == "low" else plot.high
    about, found = results.about, {}
    first: dict[tuple[Setting, int], Row] = {}
    rows = [row for row in results.finished if plot.fits(about.runs[row["run_id"]])]
    for row in without_repeats(rows, results, [*plot.fields(), *wanted]):
        fields = about.runs[row["run_id"]]
        if not agrees(fields, wanted):
            continue
        spot = (_setting(plot, fields), row["config"]["seed"])
        if first.setdefault(spot, row) is not row:
            raise UserError(
                f"the {name} group of a plot of effects has several runs of {', '.join(spot[0])}, seed {spot[1]} "
                f"({first[spot]['run_id']}, {row['run_id']}): add what tells them apart to {name}, where or factors."
            )
        value = None if diverged(row) else row["metrics"].get(plot.metric)
        if value is not None:
            found[spot] = value
    return found


def _setting(plot: Effects, fields: Mapping[str, Any]) -> Setting:
    return tuple(_level(factor, fields) for factor in plot.factors)


def _level(factor: Axis, fields: Mapping[str, Any]) -> str:
    """Return a run's level: its value, or its values that are set, of several fields."""
    if isinstance(factor, str):
        return value_label(fields[factor], factor)
    return ", ".join(setting(name, fields[name]) for name in factor if fields[name] not in (None, {}, [], ()))
