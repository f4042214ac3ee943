"""The points of a chart: groups of rows and their statistics."""

import re
from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import Any, ClassVar

from syncnorm.samples import details_on
from syncnorm.study.plan.spec import KIND
from syncnorm.study.plot import Axis, Plot, View, names_of
from syncnorm.study.report.analysis.across import Across, sample
from syncnorm.study.report.analysis.agreement import without_repeats
from syncnorm.study.report.analysis.labels import (
    IN_NATS,
    Metric,
    field_label,
    listing,
    metric_label,
    setting,
    value_label,
)
from syncnorm.study.report.analysis.lines import Place, axis_value, line_names
from syncnorm.study.report.analysis.tuning import tuned_fields, tuning_words
from syncnorm.study.report.inference.behind import guesses, samples_behind
from syncnorm.study.report.inference.comparisons import Comparison, Line, compared
from syncnorm.study.report.inference.sampling import (
    Clusters,
    Combined,
    effects,
    over_both,
    over_test_samples,
)
from syncnorm.study.report.inference.statistics import Summary, paired, summarise
from syncnorm.study.rows import Results, Row, diverged


class Chart(Plot):
    """A plot of numbers, with its runs arranged in panels, lines and along x."""

    compares: ClassVar[bool] = False
    """Whether its tables compare lines with the first, so that there is a verdict on each comparison."""
    rivals: bool = True
    """Whether its lines compete; if not, no table compares them and none is best."""
    line: Axis
    panel: Axis | None

    @abstractmethod
    def across(self) -> Across:
        """Return the x axis."""

    @abstractmethod
    def stem(self) -> tuple[str, ...]:
        """Return the start of its file names, before the names of line and panel."""

    @abstractmethod
    def words(self, points: "Points") -> str:
        """Return its default title, without the conditions of `where`."""

    def axes(self) -> tuple[Axis | None, ...]:
        """Return line and panel."""
        return self.line, self.panel


@dataclass(frozen=True)
class Points:
    """The data of a chart by panel, line and x, each in the study's order (numeric x ascending)."""

    chart: Chart
    kind: str
    """The world of its runs; "devices" if there are several."""
    panels: list[Any]
    lines: list[str]
    xs: list[Any]
    planned: frozenset[Place]
    """Places with runs in the study, finished or not."""
    values: dict[Place, dict[int, float]]
    """The metric by seed. Runs that diverged are left out, except from profiles by layer."""
    evaluated_by: dict[str, list[str]]
    """For each line, the statistics that norm layers used."""
    without_value: int
    """Number of finished runs with a metric that is missing or not finite, without diverged ones."""
    unseen: bool | None = True
    """Whether runs of the domains world leave out domains in training; None if only some do."""
    nats: bool = True
    """Whether losses of all runs are in nats."""
    cases: int = 1
    """Number of runs averaged to a seed's value."""
    diverged: dict[Place, tuple[int, int]] = field(default_factory=dict)
    """For each place with diverged runs, their number and the number of finished runs. x is None if a run has
    several."""
    tests: dict[Place, dict[int, Clusters]] = field(default_factory=dict)
    """The test samples behind values of the metric `accuracy`, by seed, as far as rows have their scores."""
    guessed: dict[Place, tuple[list[int], int]] = field(default_factory=dict)
    """For each place with an accuracy, the seeds of runs no better than a guess, and the number of runs that can
    say."""

    ran: dict[Place, tuple[str, ...]] = field(default_factory=dict)
    """Ids of the finished runs of each place. x is None if a run has several."""
    tuning: str = ""
    """How the runs' values came about, in words."""

    @cached_property
    def across(self) -> Across:
        """The x axis."""
        return self.chart.across()

    def summary(self, panel: Any, line: str, x: Any) -> Summary | None:
        """Return the summary of a place, or None if no run has finished."""
        values = self.values.get((panel, line, x))
        return summarise(list(values.values())) if values else None

    def difference(self, panel: Any, line: str, x: Any, reference: str) -> Summary | None:
        """Return the summary of line - reference over the seeds that both have at (panel, x)."""
        return paired(self.values.get((panel, line, x), {}), self.values.get((panel, reference, x), {}))

    @cached_property
    def sampled(self) -> dict[Place, tuple[tuple[float, float], Combined | None]]:
        """The 95 % interval over test samples, and the mean over seeds and test samples, of every place all of whose
        seeds have the scores of their test samples."""
        return {
            at: (over_test_samples(found), over_both(found))
            for at, tests in self.tests.items()
            if len(tests) == len(self.values[at]) and (found := effects(tests))
        }

    @cached_property
    def comparisons(self) -> dict[Place, Comparison]:
        """The comparisons of all other lines with the first, by place; p-values are adjusted for their number."""
        first, *others = self.lines or [""]

        def line(panel: Any, name: str, x: Any) -> Line:
            return Line(self.values.get((panel, name, x), {}), self.tests.get((panel, name, x), {}))

        return compared(
            {
                (panel, name, x): (line(panel, name, x), line(panel, first, x))
                for panel in self.panels
                for name in others
                for x in self.xs
            }
        )

    def marks(self, panel: Any, line: str, x: Any) -> str:
        """Say how many runs of a place diverged or are no better than a guess; empty without any."""
        seeds, count = self.guessed.get((panel, line, x), ([], 0))
        chance = f"at chance ({len(seeds)} of {count})" if seeds else ""
        return "; ".join(filter(None, [self.divergence(panel, line, x), chance]))

    def divergence(self, panel: Any, line: str, x: Any) -> str:
        """Say how many runs of a place diverged: "diverged (1 of 5)"; empty without any."""
        found = self.diverged.get((panel, line, x)) or self.diverged.get((panel, line, None))
        return f"diverged ({found[0]} of {found[1]})" if found else ""

    def metric(self, x: Any) -> Metric:
        """Return the metric at x and its format."""
        return metric_label(self.across.metric(x), self.kind, unseen=self.unseen, nats=self.nats)

    @cached_property
    def metrics(self) -> dict[Any, Metric]:
        """The metrics and their formats, by x."""
        return {x: self.metric(x) for x in self.xs}

    @property
    def name(self) -> str:
        """A name for files, of letters, digits, hyphens and underscores."""
        chart = self.chart
        return file_name(*chart.stem(), *(joined(axis) for axis in (chart.line, chart.panel) if axis))

    @property
    def title(self) -> str:
        """The title: "Accuracy (%) by samples per device and norm"."""
        if self.chart.title:
            return self.chart.title
        where = [setting(name, value) for name, value in self.chart.where.items() if name != KIND]
        words = self.chart.words(self)
        return f"{words}, at {listing(where)}" if where else words

    @property
    def line_label(self) -> str:
        """The words for the field that distinguishes lines."""
        return field_label(self.chart.line, sample(self.kind))

    @property
    def x_label(self) -> str:
        """The words of x with their unit."""
        return self.across.label(self.kind)

    @property
    def x_and_line(self) -> str:
        """The words for x and line in a title: "samples per device and norm"."""
        return listing([self.across.words(self.kind), self.line_label])

    def x_text(self, x: Any, *, difference: bool = False) -> str:
        """Return a value of x as text; for a `difference`, with the unit of differences."""
        return self.across.text(x, self.metrics, difference=difference)

    def evaluation(self) -> str:
        """Describe what was averaged, which statistics evaluated which lines, and how many runs diverged."""
        parts = [self._evaluation()]
        if self.cases > 1:
            over = listing(field_label(name) for name in self.chart.averaged())
            parts.insert(0, f"A seed's value is the mean over {self.cases} runs ({over}).")
        if self.diverged:
            parts.append(said_diverged(sum(count for count, _ in self.diverged.values())))
        if guessed := sum(len(seeds) for seeds, _ in self.guessed.values()):
            parts.append(f"At chance, no better than a guess, and in the means: {runs_in_words(guessed)}.")
        return " ".join(filter(None, [*parts, self.tuning]))

    def _evaluation(self) -> str:
        if said := self.across.evaluated(self.kind):
            return said
        lines: defaultdict[str, list[str]] = defaultdict(list)
        for line in self.lines:
            if names := self.evaluated_by.get(line):
                lines[" / ".join(names)].append(line)
        if not lines:
            return "Nothing is evaluated yet."
        if len(lines) == 1:
            return f"Evaluated with statistics: {next(iter(lines))}."
        parts = [f"{names} for {listing(group)}" for names, group in lines.items()]
        return f"Evaluated with statistics: {'; '.join(parts)}."

    def nothing(self) -> str:
        """Say why there is no value at all."""
        if self.without_value:
            return f"no run that has finished gave {listing(self.across.names)}"
        return "all runs that have finished diverged" if self.diverged else "no run has finished"

    def usual_n(self) -> int:
        """Return the number of seeds that most places have (0 without any)."""
        return usual(len(values) for values in self.values.values())


@dataclass(frozen=True, kw_only=True)
class ChartView(View):
    """The view of a chart's points."""

    points: Points


def named(points: Points) -> dict[str, Any]:
    """Return the arguments that name every view of these points."""
    return {
        "name": points.name,
        "title": points.title,
        "wide": len(points.panels) > 1,
        "empty": not points.values and not points.diverged,
        "points": points,
    }


def gather(chart: Chart, results: Results) -> Points:
    """Collect the rows of a chart of the study.

    A row that differs from another only in an agreement's field is left to the agreement's table.
    """
    about, across, over = results.about, chart.across(), chart.averaged()
    runs = {run: fields for run, fields in about.runs.items() if chart.fits(fields)}
    rows = rows_of(chart, results)
    places = [_found(place(chart, runs[row["run_id"]], about.base), across, row) for row in rows]
    cases = [_case(over, runs[row["run_id"]]) for row in rows]
    names = line_names(rows, places, cases, tuned_fields(results))
    lost = {row["run_id"] for row in rows if diverged(row)}
    left_out = lost if across.after_training else set()
    wanted = {_case(over, fields) for fields in runs.values()}
    values: defaultdict[Place, dict[int, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    measured: defaultdict[Place, dict[int, list[Row]]] = defaultdict(lambda: defaultdict(list))
    without_value = 0
    for row, (panel, _, x), case, name in zip(rows, places, cases, names, strict=True):
        if row["run_id"] in left_out:
            continue
        found = {at: value for at, value in across.values(row, x) if value is not None}
        without_value += len(found) < across.needed()
        for at, value in found.items():
            values[panel, name, at][row["config"]["seed"]][case] = value
            if across.final and details_on(row.get("details", {}), across.metric(at)) is not None:
                measured[panel, name, at][row["config"]["seed"]].append(row)
    means = {spot: mean for spot, seeds in values.items() if (mean := _means(seeds, wanted))}
    spots = [place(chart, fields, about.base) for fields in runs.values()]
    panels, lines = (list(dict.fromkeys(one[axis] for one in spots)) for axis in range(2))
    xs = across.order([one[2] for one in spots], [x for _, _, x in means])
    kinds = {str(fields.get(KIND, "devices")) for fields in runs.values()}
    unseen = {bool(row["config"]["world"].get("unseen")) for row in rows}
    return Points(
        chart=chart,
        kind=kinds.pop() if len(kinds) == 1 else "devices",
        panels=panels,
        lines=_lines(lines, places, names),
        xs=xs,
        planned=frozenset([*across.planned(spots, xs), *means]),
        values=means,
        evaluated_by=_evaluated_by(rows, names),
        without_value=without_value,
        unseen=unseen.pop() if len(unseen) == 1 else None,
        nats=all(row["config"].get("task", IN_NATS[0]) in IN_NATS for row in rows),
        cases=len(wanted),
        diverged=_diverged(rows, places, names) if lost else {},
        tests={
            at: tests
            for at, mean in means.items()
            if (tests := samples_behind(measured.get(at, {}), mean, across.metric(at[2])))
        },
        ran=_ran(rows, places, names),
        guessed={at: guesses(seeds, across.metric(at[2])) for at, seeds in measured.items()},
        tuning=tuning_words(results),
    )


def place(chart: Chart, fields: Mapping[str, Any], base: Mapping[str, Any]) -> Place:
    """Return (panel, line, x) from the values of a run's fields; x is None if it is not a field."""
    line = value_label(axis_value(chart.line, fields, base), chart.line)
    return axis_value(chart.panel, fields, base), line, chart.across().place(fields, base)


def _found(at: Place, across: Across, row: Row) -> Place:
    panel, line, x = at
    return panel, line, across.found(row, x)


def rows_of(plot: Plot, results: Results) -> list[Row]:
    """Return the finished rows of a plot, without repeats."""
    rows = [row for row in results.finished if plot.fits(results.about.runs[row["run_id"]])]
    return without_repeats(rows, results, plot.fields())


def file_name(*parts: str) -> str:
    """Return a name for files from its parts, of letters, digits, hyphens and underscores."""
    return "-".join(re.sub(r"\W+", "_", part) for part in parts)


def joined(axis: Axis | None) -> str:
    """Return the fields of an axis as part of a file's name."""
    return "_".join(names_of(axis))


def usual(counts: Iterable[int]) -> int:
    """Return the most frequent number, on ties the largest; 0 without any."""
    found = Counter(counts)
    return max(found, key=lambda n: (found[n], n), default=0)


def said_diverged(count: int) -> str:
    """Say that `count` runs diverged and are in no mean."""
    return f"Diverged, and in no mean: {runs_in_words(count)}."


def runs_in_words(count: int) -> str:
    """Return "1 run" or "2 runs"."""
    return f"{count} {'run' if count == 1 else 'runs'}"


def _lines(lines: list[str], places: Sequence[Place], names: Sequence[str]) -> list[str]:
    """Return the names of all lines in the study's order; a line that was split is replaced by its parts."""
    named: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for (_, line, _), name in zip(places, names, strict=True):
        named[line][name] = None
    return [name for line in lines for name in named.get(line, [line])]


def _evaluated_by(rows: Sequence[Row], names: Sequence[str]) -> dict[str, list[str]]:
    found: defaultdict[str, set[str]] = defaultdict(set)
    for row, name in zip(rows, names, strict=True):
        found[name].add(row["evaluated_by"])
    return {name: sorted(by) for name, by in found.items()}


def _diverged(rows: Sequence[Row], places: Sequence[Place], names: Sequence[str]) -> dict[Place, tuple[int, int]]:
    ended, lost = Counter[Place](), Counter[Place]()
    for row, (panel, _, x), name in zip(rows, places, names, strict=True):
        ended[panel, name, x] += 1
        lost[panel, name, x] += diverged(row)
    return {spot: (count, ended[spot]) for spot, count in lost.items() if count}


def _ran(rows: Sequence[Row], places: Sequence[Place], names: Sequence[str]) -> dict[Place, tuple[str, ...]]:
    found: defaultdict[Place, list[str]] = defaultdict(list)
    for row, (panel, _, x), name in zip(rows, places, names, strict=True):
        found[panel, name, x].append(row["run_id"])
    return {spot: tuple(ids) for spot, ids in found.items()}


def _case(over: Sequence[str], fields: Mapping[str, Any]) -> str:
    """Return the key that distinguishes a run from those it is averaged with."""
    return "; ".join(value_label(fields[name], name) for name in over)


def _means(seeds: Mapping[int, Mapping[str, float]], wanted: set[str]) -> dict[int, float]:
    """Return the mean of every seed whose cases have all finished."""
    return {seed: fmean(found.values()) for seed, found in seeds.items() if found.keys() == wanted}
