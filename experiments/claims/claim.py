"""A claim, what was measured of it, and the rule by which its verdict is computed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, log
from typing import Literal

from experiments.claims.evidence import Evidence
from syncnorm.study.report.inference.comparisons import LEVEL, holm, t_test
from syncnorm.study.report.inference.statistics import Estimate, geometric, summarise
from syncnorm.study.report.inference.verdict import SEEDS

HOLDS, FAILS, OPEN = "holds", "does not hold here", "not resolved"
UNTESTABLE, MISSING = "not testable here", "not measured yet"
VERDICTS = (HOLDS, FAILS, OPEN, UNTESTABLE, MISSING)
Kind = Literal["seeds", "repetitions", "exact"]


@dataclass(frozen=True)
class Region:
    """The numbers for which a claim holds, both ends included; None is no end."""

    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if self.low is None and self.high is None:
            raise ValueError("a region needs an end: every number would be in it")

    def holds(self, value: float) -> bool:
        """Return whether a number is in the region."""
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    @property
    def ends(self) -> tuple[float, ...]:
        """The ends that there are."""
        return tuple(end for end in (self.low, self.high) if end is not None)


@dataclass(frozen=True)
class Measured:
    """The values of a measurement.

    `kind` says what each value is of: a seed or a repetition, whose mean has a 95 % t interval; or "exact", where
    nothing varies but what was tried, and the interval is that of the smallest and the largest value.
    """

    values: tuple[float, ...]
    kind: Kind = "seeds"
    log: bool = False
    """Whether values are ratios: their mean is geometric, and the interval is one of logarithms."""
    note: str = ""
    """What must be said with it."""

    @property
    def estimate(self) -> Estimate:
        """The mean and its interval; of exact values the middle one, and the smallest and the largest."""
        if self.kind == "exact":
            ordered = sorted(self.values)
            return Estimate(len(ordered), ordered[len(ordered) // 2], (ordered[0], ordered[-1]))
        if self.log:
            return geometric(self.values)
        summary = summarise(self.values)
        return Estimate(summary.n, summary.mean, summary.interval)

    def p(self, region: Region) -> float | None:
        """Return the two-sided p-value of the mean lying at the end of the region that decides; None where exact.

        If the mean is in the region, every end could decide, and the largest p-value counts; else the nearest end.
        Equal values give 0 unless they lie at that end, for there is no spread to say otherwise.
        """
        if self.kind == "exact" or len(self.values) < 2:
            return None
        scale: Callable[[float], float] = log if self.log else float
        ends = [scale(end) for end in region.ends if not self.log or end > 0]
        values = [scale(value) for value in self.values]
        if not region.holds(self.estimate.value):
            mean = sum(values) / len(values)
            ends = [min(ends, key=lambda end: abs(mean - end))]
        p_values = [t_test(summarise([value - end for value in values])) for end in ends]
        return max((0.0 if p is None else p for p in p_values), default=0.0)


@dataclass(frozen=True)
class Claim:
    """One number that is asserted, and how it is measured here."""

    name: str
    """Its anchor: "steps-x5"."""
    text: str
    """What is claimed."""
    source: str
    published: str
    """The published number in words; empty if the source has none."""
    how: str
    """What is measured here."""
    unit: str
    """"points", "%", "times", or "" for a plain number."""
    region: Region
    """The rule: the claim holds if the interval lies in it, and does not hold here if it lies outside."""
    measure: Callable[[Evidence], Measured | None]
    mark: float | None = None
    """The published number, for the figure."""
    untestable: str = ""
    """Why it cannot be tested here; empty if it can."""


@dataclass(frozen=True)
class Judged:
    """A claim with its measurement and its verdict."""

    claim: Claim
    measured: Measured | None
    verdict: str
    why: str
    """Why it is not resolved, not testable or not measured; empty otherwise."""
    p_holm: float | None = None


def judge(claims: Sequence[Claim], measured: Mapping[str, Measured | None]) -> list[Judged]:
    """Return the verdict on every claim.

    A claim holds if the interval of its measurement lies in its region, and does not hold here if it lies outside.
    Where values are those of seeds or repetitions, there must be five of them, and the p-value of the end that
    decides must be below 5 % after Holm's correction for all such claims. Otherwise it is not resolved.
    """
    p_values = {
        claim.name: p
        for claim in claims
        if not claim.untestable and (one := measured.get(claim.name)) and (p := one.p(claim.region)) is not None
    }
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    found = []
    for claim in claims:
        one, p = measured.get(claim.name), adjusted.get(claim.name)
        if claim.untestable:
            found.append(Judged(claim, None, UNTESTABLE, claim.untestable))
        elif one is None:
            found.append(Judged(claim, None, MISSING, "its rows are not there"))
        else:
            found.append(Judged(claim, one, *verdict(claim.region, one, p), p))
    return found


def verdict(region: Region, measured: Measured, p_holm: float | None) -> tuple[str, str]:
    """Return the verdict on one measurement, and why it is not resolved."""
    estimate = measured.estimate
    if measured.kind != "exact" and estimate.n < SEEDS:
        return OPEN, f"{estimate.n} {measured.kind}, {SEEDS} are needed"
    low, high = estimate.interval or (-inf, inf)
    inside = region.holds(low) and region.holds(high)
    outside = (region.low is not None and high < region.low) or (region.high is not None and low > region.high)
    if not inside and not outside:
        return OPEN, "the interval holds an end of the region"
    if measured.kind != "exact" and (p_holm is None or p_holm >= LEVEL):
        return OPEN, "no p-value" if p_holm is None else f"p = {p_holm:.2g} after Holm's correction"
    return (HOLDS if inside else FAILS), ""
