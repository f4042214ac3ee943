"""How far a mean moves from one set of runs to another: another machine, other seeds, another version.

Functions import scipy themselves, so that importing a study file stays fast.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from syncnorm.study.report.inference.comparisons import LEVEL, holm, t_test
from syncnorm.study.report.inference.statistics import summarise

Place = TypeVar("Place", bound=Hashable)
BySeed = Mapping[int, float]


@dataclass(frozen=True)
class Shift:
    """The difference of two means, second minus first."""

    value: float
    half_width: float | None
    """Half of the 95 % t interval; None if a side has too few seeds for one."""
    p: float | None
    """Two-sided, of no difference; None without an interval, or without any spread."""
    paired: bool
    """Whether both sides have the same seeds, so that the interval is that of their differences."""
    adjusted: float | None = None
    """p after Holm's correction for all shifts."""

    @property
    def real(self) -> bool:
        """Whether the means differ by more than their spread: after Holm's correction, or without any spread."""
        if self.adjusted is not None:
            return self.adjusted < LEVEL
        return self.half_width == 0 and self.value != 0


def shifts(pairs: Mapping[Place, tuple[BySeed, BySeed]]) -> dict[Place, Shift]:
    """Return the shift of every pair (first, second) of values by seed; p-values are adjusted for all of them.

    The same seeds on both sides are paired. Other seeds are compared by Welch's t test, which takes them as
    independent.
    """
    found = {at: _shift(first, second) for at, (first, second) in pairs.items() if first and second}
    tested = [at for at, one in found.items() if one.p is not None]
    adjusted = holm([found[at].p or 0.0 for at in tested])
    return found | {at: replace(found[at], adjusted=p) for at, p in zip(tested, adjusted, strict=True)}


def _shift(first: BySeed, second: BySeed) -> Shift:
    if first.keys() == second.keys():
        moved = summarise([second[seed] - first[seed] for seed in sorted(first)])
        return Shift(moved.mean, moved.half_width, t_test(moved), paired=True)
    before, after = summarise(list(first.values())), summarise(list(second.values()))
    value = after.mean - before.mean
    if before.std is None or after.std is None or before.std + after.std == 0:
        return Shift(value, None, None, paired=False)
    from scipy import stats

    test = stats.ttest_ind(list(second.values()), list(first.values()), equal_var=False)
    low, high = test.confidence_interval(0.95)
    return Shift(value, float(high - low) / 2, float(test.pvalue), paired=False)
