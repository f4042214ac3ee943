"""Claims that one field changes nothing: pairs of rows that differ in that field alone, compared."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from syncnorm.study.exhibits import Agreement
from syncnorm.study.plan.spec import flatten, has, path_in, value_at
from syncnorm.study.rows import Row

LAYOUT = {"world.ranks", "world.per_device_batch"}
"""With the same global batch, one of these cannot change without the other."""


@dataclass(frozen=True)
class Comparison:
    """The pairs of an agreement, and the largest difference of every metric that both rows of a pair have."""

    agreement: Agreement
    pairs: list[tuple[Row, Row]]
    differences: dict[str, float]
    """Largest absolute difference, as stored; infinite where one row has a number and the other has none."""
    worst: dict[str, tuple[Row, Row]]
    """The pair that has it."""

    @property
    def verdict(self) -> str:
        """ "agree", "differ", or "not compared" while there is no pair."""
        if not self.differences:
            return "not compared"
        return "agree" if max(self.differences.values()) <= self.agreement.tolerance else "differ"


def compare(agreement: Agreement, rows: Sequence[Row]) -> Comparison:
    """Compare every row with the first of those that differ from it in the agreement's field alone."""
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
    """Return the rows that differ from an earlier one in the agreement's field alone."""
    return [row for group in _alike(agreement, rows) for row in group[1:]]


def _alike(agreement: Agreement, rows: Sequence[Row]) -> list[list[Row]]:
    """Group rows that differ in the agreement's field alone, keeping their order."""
    groups: defaultdict[str, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        if not has(row["config"], agreement.over):  # of a world without that field
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
