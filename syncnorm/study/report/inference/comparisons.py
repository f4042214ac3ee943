"""Comparisons of lines with a reference: differences paired by seed, their p-values, and how many survive.

Functions import numpy and scipy themselves, so that importing a study file stays fast.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt
from typing import TypeVar

from syncnorm.study.report.inference.sampling import Clusters, Combined, effects, over_both, over_test_samples
from syncnorm.study.report.inference.statistics import Summary, paired

LEVEL = 0.05
"""Probability of any false difference in a table, by Holm's correction."""
Place = TypeVar("Place", bound=Hashable)


@dataclass(frozen=True)
class Line:
    """A line's numbers at one place: its values by seed, and the test samples of those seeds that have them."""

    values: Mapping[int, float]
    tests: Mapping[int, Clusters] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """The difference of a line to a reference, over the seeds that both have."""

    difference: Summary
    correlation: float | None
    """Pearson's, of the two lines' values over seeds; None with fewer than 3, or where a line's values are equal."""
    over_tests: tuple[float, float] | None
    """95 % bootstrap interval over test samples; None where rows have no scores of them."""
    over_both: Combined | None
    """The difference over seeds and test samples; None where rows have no scores of them, or with one seed."""
    p: float | None
    """Two-sided, of no difference: over seeds and test samples, else over seeds alone. None with one seed, or without
    any spread."""
    adjusted: float | None = None
    """p after Holm's correction for all comparisons of the table."""

    @property
    def survives(self) -> bool:
        """Whether there is a difference after Holm's correction."""
        return self.adjusted is not None and self.adjusted < LEVEL

    @property
    def narrowed(self) -> bool | None:
        """Whether pairing narrows the difference: var(a - b) < var(a) + var(b) just if the lines are correlated
        positively."""
        return None if self.correlation is None else self.correlation > 0


def compared(pairs: Mapping[Place, tuple[Line, Line]]) -> dict[Place, Comparison]:
    """Return the comparison of every pair (line, reference) that has a seed in common; p-values are adjusted for all.

    Differences are always paired by seed: that is valid whether or not the lines are correlated, while taking the
    narrower of two intervals after looking would not be.
    """
    found = {at: one for at, (line, reference) in pairs.items() if (one := _compare(line, reference))}
    tested = [at for at, one in found.items() if one.p is not None]
    adjusted = holm([found[at].p or 0.0 for at in tested])
    return found | {at: replace(found[at], adjusted=p) for at, p in zip(tested, adjusted, strict=True)}


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted by Holm's step-down correction (Holm 1979), in the given order.

    With the m values in ascending order, adjusted_i = max over j <= i of min(1, (m - j + 1) p_j). Calling those below
    5 % differences makes any false one with a probability of at most 5 %, whatever the dependence between them.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def t_test(summary: Summary) -> float | None:
    """Return the two-sided p-value of a mean of zero; None with one value, or equal ones; 1 if all are zero."""
    from scipy import stats

    if summary.std is None:
        return None
    if summary.std == 0:
        return None if summary.mean else 1.0
    return float(2 * stats.t.sf(abs(summary.mean) / summary.std * sqrt(summary.n), summary.n - 1))


def _compare(line: Line, reference: Line) -> Comparison | None:
    difference = paired(line.values, reference.values)
    if difference is None:
        return None
    seeds = line.values.keys() & reference.values.keys()
    ours, theirs = ({seed: one.tests[seed] for seed in seeds if seed in one.tests} for one in (line, reference))
    sampled = effects(ours, theirs) if len(ours) == len(theirs) == len(seeds) else None
    both = over_both(sampled) if sampled else None
    return Comparison(
        difference,
        _correlation(
            [line.values[seed] for seed in sorted(seeds)], [reference.values[seed] for seed in sorted(seeds)]
        ),
        over_test_samples(sampled) if sampled else None,
        both,
        both.p if both else t_test(difference),
    )


def _correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    import numpy as np

    if len(a) < 3 or min(np.ptp(a), np.ptp(b)) < 1e-12:
        return None
    return float(np.corrcoef(a, b)[0, 1])
