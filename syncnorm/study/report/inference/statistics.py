"""Statistics over seeds: means, intervals, and differences paired by seed.

Functions import numpy and scipy themselves, so that importing a study file stays fast.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import exp, nan, sqrt


@dataclass(frozen=True)
class Summary:
    """A sample's mean and spread. With n = 1, `std` and `half_width` are None, never 0."""

    n: int
    mean: float
    std: float | None
    """Sample standard deviation, with n - 1 in the denominator."""
    half_width: float | None
    """Half of the 95 % t interval of the mean: t(0.975, n - 1) * std / sqrt(n)."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval (low, high) of the mean, or None with n = 1."""
        if self.half_width is None:
            return None
        return self.mean - self.half_width, self.mean + self.half_width


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval, which may be asymmetric; None with n = 1."""

    n: int
    value: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Share:
    """The share of a gap that is closed, over paired seeds."""

    closed: Estimate | None
    """Fraction of the gap; None if the gap's 95 % interval contains zero, so that there may be no gap."""
    gap: Summary
    """The gap in the metric's unit."""


def summarise(values: Sequence[float]) -> Summary:
    """Return n, mean, sample standard deviation and 95 % t interval of one or more finite values."""
    import numpy as np

    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0 or not np.isfinite(sample).all():
        raise ValueError("a summary needs at least one value, all of them finite")
    n = int(sample.size)
    if n == 1:
        return Summary(1, float(sample[0]), None, None)
    std = float(sample.std(ddof=1))
    return Summary(n, float(sample.mean()), std, _t(n) * std / n**0.5)


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Summary | None:
    """Summarise a - b over the seeds that both have; None when they share none.

    Two runs of one seed share split, initialisation and data order. Their difference varies less than that of
    unpaired runs where this makes them correlated positively; it is valid in any case.
    """
    seeds = sorted(a.keys() & b.keys())
    return summarise([a[seed] - b[seed] for seed in seeds]) if seeds else None


def overlap(a: Summary, b: Summary) -> bool:
    """Return whether two 95 % intervals overlap; a missing interval counts as overlapping."""
    if a.interval is None or b.interval is None:
        return True
    return a.interval[0] <= b.interval[1] and b.interval[0] <= a.interval[1]


def geometric(values: Sequence[float]) -> Estimate:
    """Return the geometric mean of positive values with the back-transformed 95 % t interval of their logarithms."""
    import numpy as np

    summary = summarise(np.log(np.asarray(values, dtype=np.float64)).tolist())
    low, high = summary.interval or (nan, nan)
    return Estimate(summary.n, exp(summary.mean), (exp(low), exp(high)) if summary.interval else None)


def share_closed(line: Mapping[int, float], low: Mapping[int, float], high: Mapping[int, float]) -> Share | None:
    """Return (line - low) / (high - low), a ratio of means over the seeds that all three have; None without any.

    Its interval is Fieller's. With one seed there is no interval, and the ratio is returned unless the gap is zero.
    """
    seeds = sorted(line.keys() & low.keys() & high.keys())
    if not seeds:
        return None
    closed = [line[seed] - low[seed] for seed in seeds]
    gaps = [high[seed] - low[seed] for seed in seeds]
    gap, interval = summarise(gaps), fieller(closed, gaps)
    if gap.mean == 0 or (gap.n > 1 and interval is None):
        return Share(None, gap)
    return Share(Estimate(gap.n, summarise(closed).mean / gap.mean, interval), gap)


def fieller(a: Sequence[float], b: Sequence[float]) -> tuple[float, float] | None:
    """Return Fieller's 95 % interval of mean(a) / mean(b), paired; None with n = 1, or if it is unbounded.

    It contains the ratios r for which the t interval of mean(a - r b) contains zero, the solutions of

        (mean(a) - r mean(b))^2 <= t(0.975, n - 1)^2 (s_aa - 2 r s_ab + r^2 s_bb) / n

    These are bounded exactly if the t interval of mean(b) excludes zero (Fieller 1954).
    """
    import numpy as np

    n = len(b)
    if n == 1:
        return None
    mean_a, mean_b = float(np.mean(a)), float(np.mean(b))
    spread = _t(n) ** 2 / n * np.cov(a, b)
    square = mean_b**2 - float(spread[1, 1])
    middle = mean_a * mean_b - float(spread[0, 1])
    if square <= 0:
        return None
    root = sqrt(max(0.0, middle**2 - square * (mean_a**2 - float(spread[0, 0]))))
    return (middle - root) / square, (middle + root) / square


@cache
def _t(n: int) -> float:
    """Return t(0.975, n - 1)."""
    from scipy import stats

    return float(stats.t.ppf(0.975, n - 1))
