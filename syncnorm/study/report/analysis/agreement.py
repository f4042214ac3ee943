"""Claims that one field changes nothing: comparison of pairs of rows that differ only in that field, and its
table."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from syncnorm.study.plan.spec import flatten, has, path_in, value_at
from syncnorm.study.report.analysis.labels import field_label, listing, value_label
from syncnorm.study.rows import Agreement, Results, Row
from syncnorm.study.table import NOTHING, Cell, Table

LAYOUT = {"world.ranks", "world.per_device_batch"}
"""With a fixed global batch, none of these can change without the other."""


@dataclass(frozen=True)
class Comparison:
    """The pairs of an agreement, and the largest difference of every metric common to both rows of a pair."""

    agreement: Agreement
    pairs: list[tuple[Row, Row]]
    differences: dict[str, float]
    """Largest absolute difference, as stored; infinite if only one row has the number."""
    worst: dict[str, tuple[Row, Row]]
    """The pair with the largest difference."""

    @property
    def verdict(self) -> str:
        """ "agree", "differ", or "not compared" while there is no pair."""
        if not self.differences:
            return "not compared"
        return "agree" if max(self.differences.values()) <= self.agreement.tolerance else "differ"


def compare(agreement: Agreement, rows: Sequence[Row]) -> Comparison:
    """Compare every row with the first row that differs from it only in the agreement's field."""
    pairs = [(group[0], other) for group in _alike(agreement, rows) for other in group[1:]]
    differences: dict[str, float] = {}
    worst: dict[str, tuple[Row, Row]] = {}
    for first, other in pairs:
        for metric in sorted(first["metrics"].keys() & other["metrics"].keys()):
            a, b = first["metrics"][metric], other["metrics"][metric]
            if a is None or b is None:
                difference = 0.0 if a is b else inf
            else:
                difference = abs(a - b)
            if difference > differences.get(metric, -1.0):
                differences[metric], worst[metric] = difference, (first, other)
    return Comparison(agreement, pairs, differences, worst)


def repeats(agreement: Agreement, rows: Sequence[Row]) -> list[Row]:
    """Return the rows that differ from an earlier one only in the agreement's field."""
    return [row for group in _alike(agreement, rows) for row in group[1:]]


def without_repeats(rows: list[Row], results: Results, named: Sequence[str]) -> list[Row]:
    """Return the rows without those that differ from others only in an agreement's field, unless that is in
    `named`."""
    for agreement in results.about.agreements:
        if agreement.over not in named:
            again = {row["run_id"] for row in repeats(agreement, rows)}
            rows = [row for row in rows if row["run_id"] not in again]
    return rows


def agreement_table(results: Results) -> Table:
    """Return the table of claims that a field changes nothing: pairs, largest differences, verdict."""
    lines: list[list[Cell]] = []
    records: list[dict[str, Any]] = []
    for one in (compare(agreement, results.finished) for agreement in results.about.agreements):
        words, tolerance, pairs = _compared(one), one.agreement.tolerance, len(one.pairs)
        if not one.differences:
            texts = [words, NOTHING, str(pairs), NOTHING, f"{tolerance:.0e}", "not compared"]
            lines.append([Cell(text) for text in texts])
        for metric, difference in one.differences.items():
            verdict = "agree" if difference <= tolerance else "differ"
            size = f"{difference:.1e}" if difference else "0"
            texts = [words, metric, str(pairs), size, f"{tolerance:.0e}", verdict]
            lines.append([Cell(text) for text in texts])
            records.append(
                {
                    "over": one.agreement.over,
                    "metric": metric,
                    "pairs": pairs,
                    "largest_absolute_difference": difference,
                    "tolerance": tolerance,
                    "verdict": verdict,
                    "run_a": one.worst[metric][0]["run_id"],
                    "run_b": one.worst[metric][1]["run_id"],
                }
            )
    return Table(
        name="agreements",
        title="Agreement",
        caption="Runs that differ in one field alone: the largest absolute difference of every metric that "
        "both have, as stored (fractions and nats), against the tolerance.",
        corner="over",
        span="",
        header=["metric", "pairs", "largest difference", "tolerance", "verdict"],
        blocks=[("", lines)],
        records=records,
    )


def _compared(comparison: Comparison) -> str:
    """Return an agreement's field and the values that were compared: "engine: virtual and torchrun"."""
    over = comparison.agreement.over
    values = [value_label(value_at(row["config"], over)) for pair in comparison.pairs for row in pair]
    return f"{field_label(over)}: {listing(dict.fromkeys(values))}" if values else field_label(over)


def _alike(agreement: Agreement, rows: Sequence[Row]) -> list[list[Row]]:
    """Group rows that differ only in the agreement's field, keeping their order."""
    groups: defaultdict[str, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        if not has(row["config"], agreement.over):  # this world does not have the field
            continue
        path = ".".join(path_in(row["config"], agreement.over))
        rest = {
            name: value
            for name, value in flatten(row["config"]).items()
            if name != path and not name.startswith(f"{path}.") and not (path in LAYOUT and name in LAYOUT)
        }
        value = json.dumps(value_at(row["config"], agreement.over))
        groups[json.dumps(rest, sort_keys=True)].setdefault(value, row)
    return [list(group.values()) for group in groups.values()]
