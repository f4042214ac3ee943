"""What a handful of seeds allows one to say: means, intervals, and differences paired by seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Summary:
    """A sample's mean and its spread. With n = 1 there is none: `std` and `half_width` are None, never 0."""

    n: int
    mean: float
    std: float | None
    """Sample standard deviation, with n - 1 in the denominator."""
    half_width: float | None
    """Half of the 95 % t interval of the mean: t(0.975, n - 1) * std / sqrt(n)."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval (low, high) of the mean, or None where one value cannot give one."""
        if self.half_width is None:
            return None
        return self.mean - self.half_width, self.mean + self.half_width


def summarise(values: Sequence[float]) -> Summary:
    """Return n, mean, sample standard deviation and 95 % t interval of at least one finite value."""
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0 or not np.isfinite(sample).all():
        raise ValueError("a summary needs at least one value, all of them finite")
    n = int(sample.size)
    if n == 1:
        return Summary(1, float(sample[0]), None, None)
    std = float(sample.std(ddof=1))
    return Summary(n, float(sample.mean()), std, float(stats.t.ppf(0.975, n - 1)) * std / n**0.5)


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Summary | None:
    """Summarise a - b over the seeds that both have; None when they share none.

    Two runs of one seed share initialisation and data order, so their difference varies less than either.
    """
    seeds = sorted(a.keys() & b.keys())
    return summarise([a[seed] - b[seed] for seed in seeds]) if seeds else None


def overlap(a: Summary, b: Summary) -> bool:
    """Return whether two 95 % intervals share a point; without an interval nothing is told apart."""
    if a.interval is None or b.interval is None:
        return True
    return a.interval[0] <= b.interval[1] and b.interval[0] <= a.interval[1]
