"""Lines over many settings: interquartile mean and probability of improvement, as in rliable (arXiv 2108.13264).

Functions import numpy and scipy themselves, so that importing a study file stays fast.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from syncnorm.seeds import derive
from syncnorm.study.report.inference.statistics import Estimate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Runs = list[NDArray[np.float64]]
    """One array for each setting: (..., n), the runs in the last dimension."""

RESAMPLES = 2000
Seeds = Mapping[int, float]
"""A line's metric by seed, in one setting."""


@dataclass(frozen=True)
class Aggregate:
    """A line beside the reference, over all settings and seeds that both have."""

    settings: int
    mean: Estimate
    """Interquartile mean of the line; n is the smallest number of seeds in a setting."""
    reference: Estimate
    """Interquartile mean of the reference."""
    difference: Estimate
    """The line's interquartile mean minus the reference's."""
    improvement: Estimate
    """Probability that a run of the line is better than a run of the reference, in a random setting."""


def aggregate(
    line: Mapping[Any, Seeds], reference: Mapping[Any, Seeds], *, higher_is_better: bool = True
) -> Aggregate | None:
    """Return a line's aggregates over the settings and seeds that the reference has too; None without any.

    With x_mi the i-th run in the m-th of M settings, the interquartile mean is the mean of the middle half of all
    x_mi. The probability of improvement is the mean over settings of Mann and Whitney's statistic:

        1 / M * sum_m 1 / n_m^2 * sum_ij ([x_mi > y_mj] + [x_mi = y_mj] / 2).

    The intervals are 95 % bootstrap intervals, stratified by setting: the settings stay, and runs are drawn with
    replacement within each. rliable draws each setting's runs by themselves; here settings with the same seeds get
    the same draw, for line and reference alike, since a seed's split and initialisation go into all its runs.
    Percentile intervals of few seeds are too narrow, so their levels are those at which a normal mean gets its t
    interval (the expanded percentile interval, arXiv 1411.5279); with 5 seeds they still cover about 92 %, not 95.
    They are over what a seed redraws, and over no other settings than these.
    """
    import numpy as np

    shared = {at: seeds for at in line if (seeds := tuple(sorted(line[at].keys() & reference.get(at, {}).keys())))}
    if not shared:
        return None
    ours, theirs = (
        [np.array([of[at][seed] for seed in seeds]) for at, seeds in shared.items()] for of in (line, reference)
    )
    sign = 1.0 if higher_is_better else -1.0
    count = min(map(len, shared.values()))
    draws = _draws(set(shared.values()))
    a, b = ([runs[draws[seeds]] for runs, seeds in zip(of, shared.values(), strict=True)] for of in (ours, theirs))
    pairs = [
        (iqm(ours), iqm(a)),
        (iqm(theirs), iqm(b)),
        (iqm(ours) - iqm(theirs), iqm(a) - iqm(b)),
        (improvement(ours, theirs, sign), improvement(a, b, sign)),
    ]
    return Aggregate(len(shared), *(_estimate(float(value), resampled, count) for value, resampled in pairs))


def iqm(runs: "Runs") -> "NDArray[np.float64]":
    """Return the interquartile mean of the runs of all settings: (...)."""
    import numpy as np
    from scipy import stats

    found: NDArray[np.float64] = stats.trim_mean(np.concatenate(runs, axis=-1), 0.25, axis=-1)
    return found


def improvement(line: "Runs", reference: "Runs", sign: float = 1.0) -> "NDArray[np.float64]":
    """Return the probability of improvement of a line over a reference: (...); sign -1 if less is better."""
    import numpy as np

    won = [
        (np.sign(sign * (a[..., :, None] - b[..., None, :])) / 2 + 0.5).mean((-2, -1))
        for a, b in zip(line, reference, strict=True)
    ]
    found: NDArray[np.float64] = np.mean(won, axis=0)
    return found


def _draws(groups: set[tuple[int, ...]]) -> "dict[tuple[int, ...], NDArray[np.int64]]":
    """Return, for each set of seeds, the places of the seeds that are drawn: (RESAMPLES, n)."""
    import numpy as np

    found = {}
    for seeds in groups:
        rng = np.random.default_rng(derive("bootstrap over seeds", 0, *seeds))
        found[seeds] = rng.integers(len(seeds), size=(RESAMPLES, len(seeds)))
    return found


def _estimate(value: float, resampled: "NDArray[np.float64]", count: int) -> Estimate:
    import numpy as np
    from scipy import stats

    if count < 2:
        return Estimate(count, value, None)
    level = stats.norm.cdf(stats.t.ppf(0.025, count - 1) * (count / (count - 1)) ** 0.5)
    low, high = np.quantile(resampled, (level, 1 - level))
    return Estimate(count, value, (float(low), float(high)))
