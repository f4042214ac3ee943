from itertools import pairwise
from math import nan, sqrt

import numpy as np
import pytest
from scipy import stats

from syncnorm.study.statistics import Summary, overlap, paired, summarise

T_975 = {2: 12.7062047364, 3: 4.3026527297, 5: 2.7764451052, 10: 2.2621571628, 31: 2.0422724563}
"""Two-sided 95 % t quantiles from printed tables, by n."""


@pytest.mark.parametrize("n", T_975)
def test_interval_is_the_t_quantile_times_the_standard_error(n: int) -> None:
    values = list(np.random.default_rng(n).normal(0.8, 0.03, n))
    mean = sum(values) / n
    std = sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    summary = summarise(values)
    assert summary.n == n
    assert summary.mean == pytest.approx(mean, rel=1e-14)
    assert summary.std == pytest.approx(std, rel=1e-12)
    assert summary.half_width == pytest.approx(T_975[n] * std / sqrt(n), rel=1e-9)


def test_interval_covers_the_true_mean_in_95_of_100_samples() -> None:
    draw = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        interval = summarise(list(draw.normal(0.5, 1.0, 4))).interval
        assert interval is not None
        covered += interval[0] <= 0.5 <= interval[1]
    assert 0.935 < covered / 2000 < 0.965


def test_one_value_has_no_spread() -> None:
    assert summarise([0.7]) == Summary(1, 0.7, None, None)
    assert summarise([0.7]).interval is None


@pytest.mark.parametrize("values", [[], [0.1, nan]])
def test_nothing_and_nan_cannot_be_summarised(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        summarise(values)


def test_paired_difference_is_the_paired_t_test_of_the_common_seeds() -> None:
    draw = np.random.default_rng(1)
    a = {seed: float(draw.normal(0.9, 0.02)) for seed in (0, 1, 2, 4, 5, 7)}
    b = {seed: a.get(seed, 0.5) - 0.03 + float(draw.normal(0, 0.005)) for seed in (5, 4, 2, 1, 0, 6)}
    common = [0, 1, 2, 4, 5]
    interval = stats.ttest_rel([a[s] for s in common], [b[s] for s in common]).confidence_interval(0.95)
    summary = paired(a, b)
    assert summary is not None
    assert summary.n == 5
    assert summary.interval == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_no_common_seed_gives_no_difference() -> None:
    assert paired({0: 0.1}, {1: 0.1}) is None


def test_overlap_needs_two_intervals_that_do_not_touch() -> None:
    low, middle, high = Summary(3, 0.1, 0.1, 0.05), Summary(3, 0.2, 0.1, 0.06), Summary(3, 0.3, 0.1, 0.05)
    assert all(overlap(a, b) and overlap(b, a) for a, b in pairwise([low, middle, high]))
    assert not overlap(low, high)
    assert not overlap(high, low)
    assert overlap(Summary(2, 0.0, 0.1, 0.5), Summary(2, 1.0, 0.1, 0.5))
    assert overlap(summarise([0.0]), high)
