"""The points of a figure: which rows belong together, and what they say."""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

from syncnorm.study.agreement import repeats
from syncnorm.study.labels import field_label, listing, metric_label, setting
from syncnorm.study.lines import line_names, place, row_place
from syncnorm.study.spec import Curve
from syncnorm.study.statistics import Summary, paired, summarise
from syncnorm.study.store import Results

Place = tuple[Any, str, Any]
"""(panel, line, x)"""


@dataclass(frozen=True)
class Points:
    """What a figure shows, by panel, line and x, each in the study's order (numeric x ascending)."""

    curve: Curve
    number: int
    """Of the figure, from 1."""
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
    """Finished runs whose metric is missing or was not finite."""

    def summary(self, panel: Any, line: str, x: Any) -> Summary | None:
        """Return the summary of a place, or None where no run has finished."""
        values = self.values.get((panel, line, x))
        return summarise(list(values.values())) if values else None

    def difference(self, panel: Any, line: str, x: Any, reference: str) -> Summary | None:
        """Return the summary of line - reference over the seeds that both have at (panel, x)."""
        return paired(self.values.get((panel, line, x), {}), self.values.get((panel, reference, x), {}))

    @property
    def name(self) -> str:
        """A name for files, of letters, digits, hyphens and underscores."""
        curve = self.curve
        parts = [str(self.number), curve.metric, curve.x, curve.line, *([curve.panel] if curve.panel else [])]
        return "-".join(re.sub(r"\W+", "_", part) for part in parts)

    @property
    def title(self) -> str:
        """The plain statement of what is shown: "Accuracy (%) by samples per device and norm"."""
        curve = self.curve
        if curve.title:
            return curve.title
        words = f"{metric_label(curve.metric).title} by {listing(map(field_label, (curve.x, curve.line)))}"
        where = [setting(name, value) for name, value in curve.where.items()]
        return f"{words}, at {listing(where)}" if where else words

    def evaluation(self) -> str:
        """Say in one sentence whose statistics evaluated which lines."""
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
        return f"no run that has finished gave {self.curve.metric}" if self.without_value else "no run has finished"

    def usual_n(self) -> int:
        """Return the number of seeds that most places have (0 without any)."""
        counts = Counter(len(values) for values in self.values.values())
        return max(counts, key=lambda n: (counts[n], n), default=0)


def gather(curve: Curve, results: Results) -> Points:
    """Collect the rows of a figure of the study.

    A row that repeats another but for the field of an agreement is left to the agreement's table.
    """
    rows = [row for row in results.finished if _fits(curve, results.about.runs[row["run_id"]])]
    for agreement in results.about.agreements:
        if agreement.over not in curve.fields:
            again = {row["run_id"] for row in repeats(agreement, rows)}
            rows = [row for row in rows if row["run_id"] not in again]
    names = line_names(curve, rows)
    values: defaultdict[Place, dict[int, float]] = defaultdict(dict)
    evaluated_by: defaultdict[str, set[str]] = defaultdict(set)
    named: defaultdict[str, dict[str, None]] = defaultdict(dict)
    without_value = 0
    for row, name in zip(rows, names, strict=True):
        panel, line, x = row_place(curve, row)
        named[line][name] = None
        evaluated_by[name].add(row["evaluated_by"])
        if (value := row["metrics"].get(curve.metric)) is None:
            without_value += 1
        else:
            values[panel, name, x][row["config"]["seed"]] = value
    planned = [place(curve, fields) for fields in results.about.runs.values() if _fits(curve, fields)]
    panels, lines, xs = (list(dict.fromkeys(one[axis] for one in planned)) for axis in range(3))
    if all(isinstance(x, int | float) for x in xs):
        xs.sort()
    return Points(
        curve=curve,
        number=results.about.figures.index(curve) + 1,
        panels=panels,
        lines=[name for line in lines for name in named.get(line, [line])],
        xs=xs,
        planned=frozenset([*planned, *values]),
        values=dict(values),
        evaluated_by={name: sorted(by) for name, by in evaluated_by.items()},
        without_value=without_value,
    )


def _fits(curve: Curve, fields: dict[str, Any]) -> bool:
    """Return whether a run is one of those that the figure is about."""
    return all(fields[name] == value for name, value in curve.where.items())
