"""What every line of a study chose on validation data: in words, as a table, and against each hyperparameter."""

from dataclasses import dataclass
from typing import Any

from syncnorm.study.plan.spec import KIND
from syncnorm.study.report.analysis.labels import (
    Metric,
    choice_label,
    field_label,
    listing,
    metric_label,
    setting,
    value_label,
)
from syncnorm.study.rows import SHARED, Results
from syncnorm.study.table import NOTHING, Cell, Table
from syncnorm.study.tuning.choose import Line, Standing, Tuning, at_edge, standing, tuning_of

EDGE = "A value is at the edge of its range if no trial tried one beyond it: a better one may lie there."


@dataclass(frozen=True)
class Chosen:
    """A line of a study that tunes: what was tried, and what was chosen."""

    label: str
    line: Line
    now: Standing
    seconds: float
    """Time of its trials' runs."""

    @property
    def values(self) -> dict[str, Any]:
        """The chosen values; empty while trials are missing."""
        return {} if self.now.choice is None else self.line.trials[self.now.choice].values

    @property
    def score(self) -> float | None:
        """The chosen trial's mean metric; None without one."""
        return None if self.now.choice is None else self.now.scores[self.now.choice]

    def edges(self) -> list[tuple[str, str]]:
        """Return the fields whose chosen value is at the edge of its range, each with the side."""
        if self.now.choice is None or self.score is None:
            return []
        found = [(name, at_edge(self.line, name, self.now.choice)) for name in self.line.ranges]
        return [(name, side) for name, side in found if side]

    def notes(self) -> list[str]:
        """Return what a reader has to know about the choice."""
        if not self.line.ranges:
            return ["nothing to tune"]
        if self.now.choice is None:
            return ["trials are missing"]
        lost, trials = sum(self.now.lost), len(self.line.trials)
        parts = [f"{field_label(name)} at the {side} edge" for name, side in self.edges()]
        if lost == trials:
            return ["every trial failed or diverged: the first was taken"]
        return [*parts, *([f"{lost} of {trials} trials failed or diverged"] if lost else [])]


def chosen(results: Results) -> list[Chosen]:
    """Return the lines of a study with their choices; none if it tunes nothing."""
    tuning = tuning_of(results.about)
    found = []
    for line in tuning.lines if tuning else ():
        assert tuning is not None
        now = standing(line, tuning, results.rows)
        seconds = sum(row["seconds"] for run in now.wanted if (row := results.rows.get(run)))
        found.append(Chosen(line_label(line, tuning), line, now, seconds))
    return found


def line_label(line: Line, tuning: Tuning) -> str:
    """Return a line's label, as a figure with these fields on one axis has it."""
    names = tuple(name for name in tuning.per if name in line.fields)
    if not names:
        return "all runs"
    if len(names) == 1:
        return value_label(line.fields[names[0]], names[0])
    return choice_label(names, line.fields, tuning.base)


def tuning_words(results: Results) -> str:
    """Say how the values of the reported runs came about: the sentence on tuning in every caption."""
    tuning = tuning_of(results.about)
    if tuning is None:
        return "Not tuned."
    if results.role == SHARED:
        return f"Not tuned: {shared_words(tuning)} in every line."
    lines = [line for line in tuning.lines if line.ranges]
    everywhere = [name for name in _fields(tuning) if all(name in line.ranges for line in lines)]
    others = [name for name in _fields(tuning) if name not in everywhere]
    parts = [f"each line's {listing(map(field_label, everywhere))}"] if everywhere else []
    parts += [f"{listing(map(field_label, others))} where a line has it"] if others else []
    return f"Tuned by {chosen_metric(results, tuning).words}: {listing(parts)}, {budget_words(tuning)} a line."


def tuned_fields(results: Results) -> list[str]:
    """Return the fields that a study tunes."""
    tuning = tuning_of(results.about)
    return _fields(tuning) if tuning else []


def shared_words(tuning: Tuning) -> str:
    """Return the base's own values of the tuned fields: "learning rate 0.05"."""
    values = [setting(name, value) for name, value in tuning.shared.items()]
    return listing(values) if values else "the base's own values"


def budget_words(tuning: Tuning) -> str:
    """Return e.g. "8 trials x 2 seeds"."""
    trials = max(len(line.trials) for line in tuning.lines)
    seeds = f"{tuning.seeds} {'seed' if tuning.seeds == 1 else 'seeds'}"
    halved = ", successively halved" if tuning.halve else ""
    return f"{trials} {'trial' if trials == 1 else 'trials'} x {seeds}{halved}"


def chosen_table(results: Results) -> Table:
    """Return the table of choices: a row a line, its values, their validation score, the time, and warnings."""
    tuning = tuning_of(results.about)
    assert tuning is not None
    metric, fields, lines = chosen_metric(results, tuning), _fields(tuning), chosen(results)
    return Table(
        name="chosen",
        title="What was chosen",
        caption=f"Each line's values with the best mean {metric.words}, of {budget_words(tuning)}; the figures and "
        f"tables above have other seeds. {EDGE}",
        corner=listing(field_label(name) for name in tuning.per) if tuning.per else "line",
        span="",
        header=[*map(field_label, fields), metric.label, "trials", "hours", "notes"],
        blocks=[("", [_cells(one, fields, metric) for one in lines])],
        records=[_record(one, tuning) for one in lines],
    )


def _cells(one: Chosen, fields: list[str], metric: Metric) -> list[Cell]:
    values = [value_label(one.values[name], name) if name in one.values else _none(one, name) for name in fields]
    score = NOTHING if one.score is None else f"{one.score * metric.scale:.{metric.decimals}f}"
    texts = [*values, score, str(len(one.line.trials)), f"{one.seconds / 3600:.2g}", "; ".join(one.notes())]
    return [Cell(one.label), *map(Cell, texts)]


def _none(one: Chosen, name: str) -> str:
    """Return the cell of a field without a chosen value: a line that does not tune it has an empty one."""
    return NOTHING if name in one.line.ranges else ""


def _record(one: Chosen, tuning: Tuning) -> dict[str, Any]:
    return {
        **one.line.fields,
        **{f"chosen.{name}": value for name, value in one.values.items()},
        "trial": None if one.now.choice is None else one.now.choice + 1,
        "metric": tuning.by,
        "mean": one.score,
        "trials": len(one.line.trials),
        "seeds": tuning.seeds,
        "runs": len(one.now.wanted),
        "failed_or_diverged_trials": sum(one.now.lost),
        "seconds": one.seconds,
        "edge": ", ".join(f"{name} {side}" for name, side in one.edges()),
    }


def _fields(tuning: Tuning) -> list[str]:
    return list(dict.fromkeys(name for line in tuning.lines for name in line.ranges))


def chosen_metric(results: Results, tuning: Tuning) -> Metric:
    """Return how the metric that chooses is shown."""
    kinds = {str(fields.get(KIND, "devices")) for fields in results.about.runs.values()}
    return metric_label(tuning.by, kinds.pop() if len(kinds) == 1 else "devices")
