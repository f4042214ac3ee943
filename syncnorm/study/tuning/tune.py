"""What a study tunes: ranges of fields, and the budget that every line gets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import prod
from typing import Any

from syncnorm.checks import check_types, check_value
from syncnorm.errors import UserError
from syncnorm.study.tuning.ranges import Choice, Range, positions

LOWER_IS_BETTER = ("loss", "error")
"""Parts of the names of metrics of which less is better."""


@dataclass(frozen=True)
class Tune:
    """How a study tunes every line on validation data, each with the same budget.

    A line is a set of points (runs without their seed) that agree in the fields of `per`. Each line trains `trials`
    configurations on `seeds` seeds of their own, at the points that `at` selects. The configuration with the best
    mean of `by` is chosen, the earlier one if several are equal; a trial with a run that failed or diverged comes
    after all others. All points of the line are then trained with the chosen values, on the study's own seeds, and
    these runs alone are reported.

    Wrong types, empty ranges and impossible budgets raise `UserError`.
    """

    ranges: dict[str, Range]
    """Ranges of the fields that every line tunes, by field (as in `vary`)."""
    trials: int | None = None
    """Number of trials of a line; None: what `total` pays for, else every combination of ranges that are all
    `Choice`."""
    per: tuple[str, ...] = ()
    """Fields whose values make a line. With the x of a figure among them, every point gets its own choice."""
    own: dict[str, dict[str, Range]] = field(default_factory=dict)
    """Further ranges of the lines that have this value in one of `per`: {"gn": {"norm.options.groups": ...}}."""
    seeds: int = 2
    """Number of seeds of a trial."""
    first_seed: int = 10_000
    """The first of these seeds; none of them may be a seed that the study reports."""
    at: dict[str, Any] = field(default_factory=dict)
    """Selects the points at which trials train, by values of fields: {"alpha": [0.1]}. Empty: all points of the
    line."""
    by: str = "validation_accuracy"
    """The metric that chooses. More is better, except for losses and errors."""
    halve: bool = False
    """Successive halving: all trials train on the first seed, the better half of them on the next, and so on."""
    shared: bool = True
    """Also train every point at the base run's own values, for the report's comparison."""
    total: int | None = None
    """Number of runs that tuning may train in all, instead of `trials`: every line gets equally many trials of it."""

    def __post_init__(self) -> None:
        check_types(self)
        for line, more in self.own.items():
            check_value(more, dict, f"tune.own[{line!r}]")
        for name, value in self._all():
            if not isinstance(value, Range):
                kinds = "LogUniform(LOW, HIGH), Uniform(LOW, HIGH) or Choice([...])"
                raise UserError(f"tune has {value!r} for {name}: write {kinds}.")
        if not self.fields():
            raise UserError("tune has no ranges: write Tune({FIELD: RANGE}), or leave tune out.")
        if self.trials is not None and self.total is not None:
            raise UserError("tune has both trials and total: set trials, of each line, or total, of all runs.")
        for name, number in (("trials", self.trials), ("seeds", self.seeds), ("total", self.total)):
            if number is not None and number < 1:
                raise UserError(f"tune.{name} is {number}: it must be at least 1.")
        if self.first_seed < 0:
            raise UserError(f"tune.first_seed is {self.first_seed}: it must be at least 0.")
        if self.trials is None and self.total is None:
            self._check_combinations()

    @property
    def higher_is_better(self) -> bool:
        """Whether more of `by` is better."""
        return not any(part in self.by for part in LOWER_IS_BETTER)

    def fields(self) -> list[str]:
        """Return all tuned fields, those of every line first."""
        return list(dict.fromkeys(name for name, _ in self._all()))

    def trial_values(self, study: str, ranges: Mapping[str, Range]) -> list[dict[str, Any]]:
        """Return the values of every trial of a line with these ranges."""
        if self.trials is None:
            combinations = product(*(one.probes() for one in ranges.values()))
            return [dict(zip(ranges, values, strict=True)) for values in combinations]
        order = self.fields()
        found = {
            name: [one.at(position) for position in positions(study, name, order.index(name), self.trials)]
            for name, one in ranges.items()
        }
        return [{name: values[trial] for name, values in found.items()} for trial in range(self.trials)]

    def without(self, fields: list[str]) -> "Tune | None":
        """Return the same without these fields; None if nothing is left to tune."""
        ranges = {name: one for name, one in self.ranges.items() if name not in fields}
        own = {
            value: {name: one for name, one in more.items() if name not in fields} for value, more in self.own.items()
        }
        own = {value: more for value, more in own.items() if more}
        return replace(self, ranges=ranges, own=own) if ranges or own else None

    def budget(self, trials: int) -> int:
        """Return how many pairs of a trial and a seed a line with so many trials trains."""
        total = 0
        for _ in range(self.seeds):
            total += trials
            trials = half(trials) if self.halve else trials
        return total

    def paid(self, points: Sequence[int]) -> "Tune":
        """Return the same with the number of trials that `total` pays for, for lines that try at so many points.

        A total that pays for no trial of each line raises `UserError`.
        """
        if self.total is None or not points:
            return self
        trials, each = 0, sum(points)
        while self.budget(trials + 1) * each <= self.total:
            trials += 1
        if not trials:
            raise UserError(
                f"tune.total is {self.total}, and one trial of each of the {len(points)} lines takes "
                f"{self.budget(1) * each} runs: set it to that or more, or tune fewer lines."
            )
        return replace(self, trials=trials, total=None)

    def _all(self) -> list[tuple[str, Range]]:
        own = [pair for more in self.own.values() for pair in more.items()]
        return [*self.ranges.items(), *own]

    def _check_combinations(self) -> None:
        """Raise `UserError` if lines would not have equally many combinations, or infinitely many."""
        for name, one in self._all():
            if not isinstance(one, Choice):
                raise UserError(f"tune needs trials=NUMBER: {name} has a range {one}, not a Choice.")
        for value, more in self.own.items():
            if (count := prod(len(one.probes()) for one in more.values())) > 1:
                raise UserError(
                    f"tune needs trials=NUMBER: the lines with {value} would have {count} times the others' trials."
                )


def half(trials: int) -> int:
    """Return how many of so many trials successive halving keeps."""
    return -(-trials // 2)
