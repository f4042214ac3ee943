"""The points of a chart: which rows belong together, and what they say."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from syncnorm.study.exhibits import (
    Axis,
    Chart,
    Columns,
    Curve,
    Exhibit,
    Gap,
    History,
    Profile,
    Trade,
    fields_of,
    names_of,
)
from syncnorm.study.plan.spec import KIND, WORLDS
from syncnorm.study.report.agreement import repeats
from syncnorm.study.report.labels import Metric, axis_label, field_label, listing, metric_label, setting, value_label
from syncnorm.study.report.lines import Place, line_names, place
from syncnorm.study.report.statistics import Summary, paired, summarise
from syncnorm.study.rows import Results, Row


@dataclass(frozen=True)
class Points:
    """What a chart shows, by panel, line and x, each in the study's order (numeric x ascending).

    The x of a history is the round, from 1; that of a trade and of columns is the metric's name, that of a profile
    the layer's.
    """

    chart: Chart
    number: int
    """Of the exhibit, from 1."""
    kind: str
    """The world of its runs; "devices" where there are several."""
    panels: list[Any]
    lines: list[str]
    xs: list[Any]
    planned: frozenset[Place]
    """Places where the study has runs, finished or not."""
    values: dict[Place, dict[int, float]]
    """The metric by seed."""
    evaluated_by: dict[str, list[str]]
    """By line: whose statistics the norm layers used."""
    without_value: int
    """Finished runs of which a metric is missing or was not finite."""
    unseen: bool | None = True
    """Whether runs of domains leave some out in training; None where some do and some do not."""
    cases: int = 1
    """Of how many runs a seed's value is the mean."""

    def summary(self, panel: Any, line: str, x: Any) -> Summary | None:
        """Return the summary of a place, or None where no run has finished."""
        values = self.values.get((panel, line, x))
        return summarise(list(values.values())) if values else None

    def difference(self, panel: Any, line: str, x: Any, reference: str) -> Summary | None:
        """Return the summary of line - reference over the seeds that both have at (panel, x)."""
        return paired(self.values.get((panel, line, x), {}), self.values.get((panel, reference, x), {}))

    def metric(self, x: Any) -> Metric:
        """Return how the values at x are shown."""
        name = x if isinstance(self.chart, Trade | Columns) else self.chart.metric
        return metric_label(name, self.kind, unseen=self.unseen)

    @property
    def name(self) -> str:
        """A name for files, of letters, digits, hyphens and underscores."""
        match self.chart:
            case Curve(x=x, metric=metric):
                parts = [metric, _joined(x)]
            case History(metric=metric):
                parts = ["history", metric]
            case Trade(x_metric=x_metric, metric=metric):
                parts = [metric, x_metric]
            case Columns():
                parts = ["columns"]
            case Gap(x=x, metric=metric):
                parts = ["gap", metric, _joined(x)]
            case Profile(metric=metric):
                parts = ["profile", metric]
        parts += [_joined(axis) for axis in (self.chart.line, self.chart.panel) if axis]
        return "-".join(re.sub(r"\W+", "_", part) for part in (str(self.number), *parts))

    @property
    def title(self) -> str:
        """The plain statement of what is shown: "Accuracy (%) by samples per device and norm"."""
        chart = self.chart
        if chart.title:
            return chart.title
        line = self.line_label
        match chart:
            case Curve() | History():
                words = f"{self.metric(None).title} by {listing([self._x_label(field_label), line])}"
            case Trade(x_metric=x_metric, metric=metric):
                words = f"{self.metric(metric).title} against {self.metric(x_metric).label}, by {line}"
            case Columns():
                words = f"{self.shared_unit or 'Metrics'} by {line}"
            case Gap():
                words = f"Share of the gap closed (%) by {listing([self._x_label(field_label), line])}"
            case Profile():
                words = f"{self.metric(None).title} by layer and {line}"
        where = [setting(name, value) for name, value in chart.where.items() if name != KIND]
        return f"{words}, at {listing(where)}" if where else words

    @property
    def line_label(self) -> str:
        """The words of what tells lines apart."""
        return field_label(self.chart.line, self._sample)

    @property
    def x_label(self) -> str:
        """The words of x with their unit."""
        return self._x_label(axis_label)

    def x_text(self, x: Any, *, difference: bool = False) -> str:
        """Return a value of x as text, with the unit of differences if it is one's."""
        if isinstance(self.chart, Trade | Columns):
            metric = self.metric(x)
            return metric.short if self.shared_unit else metric.difference_label if difference else metric.label
        return value_label(x, self.chart.x if isinstance(self.chart, Curve | Gap) else "")

    @property
    def shared_unit(self) -> str:
        """What all metrics of a table's columns are ("Accuracy (%)"), or empty where they are not the same."""
        metrics = [self.metric(x) for x in self.xs]
        percent = all(metric.unit == "%" and "accuracy" in x for x, metric in zip(self.xs, metrics, strict=True))
        return "Accuracy (%)" if percent else ""

    @property
    def _sample(self) -> Any:
        """A value of the kind that the skew of this world has, which decides the words for it."""
        return "iid" if self.kind == "clients" else None

    def _x_label(self, words: Callable[[Axis, Any], str]) -> str:
        if isinstance(self.chart, Curve | Gap):
            return words(self.chart.x, self._sample)
        if isinstance(self.chart, Profile):
            return "layer"
        return WORLDS[self.kind].step

    def evaluation(self) -> str:
        """Say of what a value is the mean, and whose statistics evaluated which lines."""
        if self.cases == 1:
            return self._evaluation()
        over = listing(field_label(name) for name in getattr(self.chart, "mean_over", ()))
        return f"A seed's value is the mean over {self.cases} runs ({over}). {self._evaluation()}"

    def _evaluation(self) -> str:
        if all(name.startswith("train") for name in _metrics(self.chart)):
            return "Measured in training."
        if self.kind == "domains" and isinstance(self.chart, History):
            return "Evaluated with statistics as trained, not adapted."
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
        names = listing(_metrics(self.chart))
        return f"no run that has finished gave {names}" if self.without_value else "no run has finished"

    def usual_n(self) -> int:
        """Return the number of seeds that most places have (0 without any)."""
        counts = Counter(len(values) for values in self.values.values())
        return max(counts, key=lambda n: (counts[n], n), default=0)


def gather(chart: Chart, results: Results) -> Points:
    """Collect the rows of a chart of the study.

    A row that repeats another but for the field of an agreement is left to the agreement's table.
    """
    about = results.about
    runs = {run: fields for run, fields in about.runs.items() if fits(chart, fields)}
    rows = rows_of(chart, results)
    places = [place(chart, runs[row["run_id"]], about.base) for row in rows]
    over = getattr(chart, "mean_over", ())
    cases = [_case(over, runs[row["run_id"]]) for row in rows]
    values: defaultdict[Place, dict[int, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    evaluated_by: defaultdict[str, set[str]] = defaultdict(set)
    named: defaultdict[str, dict[str, None]] = defaultdict(dict)
    without_value = 0
    for row, (panel, line, x), case, name in zip(rows, places, cases, line_names(rows, places, cases), strict=True):
        named[line][name] = None
        evaluated_by[name].add(row["evaluated_by"])
        found = {at: value for at, value in _found(chart, row, x) if value is not None}
        without_value += len(found) < (1 if isinstance(chart, History | Profile) else len(_metrics(chart)))
        for at, value in found.items():
            values[panel, name, at][row["config"]["seed"]][case] = value
    wanted = {_case(over, fields) for fields in runs.values()}
    means = {spot: mean for spot, seeds in values.items() if (mean := _means(seeds, wanted))}
    spots = [place(chart, fields, about.base) for fields in runs.values()]
    panels, lines = (list(dict.fromkeys(one[axis] for one in spots)) for axis in range(2))
    xs = _xs(chart, [one[2] for one in spots], means)
    planned = spots if isinstance(chart, Curve | Gap) else [(panel, line, x) for panel, line, _ in spots for x in xs]
    kinds = {str(fields.get(KIND, "devices")) for fields in runs.values()}
    unseen = {bool(row["config"]["world"].get("unseen")) for row in rows}
    return Points(
        chart=chart,
        number=about.figures.index(chart) + 1,
        kind=kinds.pop() if len(kinds) == 1 else "devices",
        panels=panels,
        lines=[name for line in lines for name in named.get(line, [line])],
        xs=xs,
        planned=frozenset([*planned, *means]),
        values=means,
        evaluated_by={name: sorted(by) for name, by in evaluated_by.items()},
        without_value=without_value,
        unseen=unseen.pop() if len(unseen) == 1 else None,
        cases=len(wanted),
    )


def _case(over: Sequence[str], fields: Mapping[str, Any]) -> str:
    """Return what tells a run from those that it is averaged with."""
    return "; ".join(value_label(fields[name], name) for name in over)


def _means(seeds: Mapping[int, Mapping[str, float]], wanted: set[str]) -> dict[int, float]:
    """Return the mean of every seed of which all cases have finished."""
    return {seed: fmean(found.values()) for seed, found in seeds.items() if found.keys() == wanted}


def rows_of(exhibit: Exhibit, results: Results) -> list[Row]:
    """Return the finished rows that an exhibit is about, without those that repeat others."""
    rows = [row for row in results.finished if fits(exhibit, results.about.runs[row["run_id"]])]
    return without_repeats(rows, results, fields_of(exhibit))


def without_repeats(rows: list[Row], results: Results, named: Sequence[str]) -> list[Row]:
    """Return the rows without those that repeat others but for the field of an agreement, if that is not `named`."""
    for agreement in results.about.agreements:
        if agreement.over not in named:
            again = {row["run_id"] for row in repeats(agreement, rows)}
            rows = [row for row in rows if row["run_id"] not in again]
    return rows


def fits(exhibit: Exhibit, fields: Mapping[str, Any]) -> bool:
    """Return whether a run is one of those that an exhibit is about: it has its fields, and the values of `where`."""
    return all(name in fields for name in fields_of(exhibit)) and agrees(fields, exhibit.where)


def agrees(fields: Mapping[str, Any], where: Mapping[str, Any]) -> bool:
    """Return whether a run has all fields of `where`, each with the value that is wanted, or one of several."""
    return all(name in fields and _is_one_of(fields[name], wanted) for name, wanted in where.items())


def _is_one_of(value: Any, wanted: Any) -> bool:
    value, wanted = _as_lists(value), _as_lists(wanted)
    return bool(value == wanted or (isinstance(wanted, list) and value in wanted))


def _as_lists(value: Any) -> Any:
    return [_as_lists(item) for item in value] if isinstance(value, tuple | list) else value


def _metrics(chart: Chart) -> tuple[str, ...]:
    return chart.metrics if isinstance(chart, Trade | Columns) else (chart.metric,)


def _found(chart: Chart, row: Row, x: Any) -> Iterator[tuple[Any, float | None]]:
    """Yield every x that a row has a value at, and the value."""
    if isinstance(chart, Curve | Gap):
        yield x, row["metrics"].get(chart.metric)
    elif isinstance(chart, Profile):
        if found := profile_of(chart, row):
            yield from zip(found["layers"], found["values"], strict=True)
    elif isinstance(chart, History):
        yield from enumerate(row.get("history", {}).get(chart.metric, []), start=1)
    else:
        for name in chart.metrics:
            yield name, row["metrics"].get(name)


def profile_of(chart: Profile, row: Row) -> dict[str, list[Any]]:
    """Return a row's layers and the values of the chart's metric, one a layer; empty where it has none."""
    found: dict[str, list[Any]] = row.get("details", {}).get("profiles", {}).get(chart.metric, {})
    return found


def _xs(chart: Chart, planned: list[Any], values: Mapping[Place, Any]) -> list[Any]:
    """Return the values of x in order."""
    if isinstance(chart, Trade | Columns):
        return list(chart.metrics)
    xs = list(dict.fromkeys(planned if isinstance(chart, Curve | Gap) else (x for _, _, x in values)))
    return sorted(xs) if all(isinstance(x, int | float) for x in xs) else xs


def _joined(axis: Axis) -> str:
    return "_".join(names_of(axis))
