from itertools import pairwise
from math import nan, sqrt

import numpy as np
import pytest
from scipy import stats

from syncnorm.study.report.inference.statistics import (
    Estimate,
    Share,
    Summary,
    fieller,
    geometric,
    overlap,
    paired,
    share_closed,
    summarise,
)

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


def t_statistic(a: list[float], b: list[float], ratio: float) -> float:
    """Return that of the mean of a - ratio b against zero."""
    return abs(float(stats.ttest_1samp(np.subtract(a, np.multiply(ratio, b)), 0.0).statistic))


@pytest.mark.parametrize("seed", range(12))
def test_fieller_holds_just_the_ratios_that_the_t_test_does_not_reject(seed: int) -> None:
    draw = np.random.default_rng(seed)
    n = int(draw.integers(3, 9))
    shared = draw.normal(0, 0.02, n)
    b = list(draw.choice([-0.2, 0.2]) + shared + draw.normal(0, 0.02, n))
    a = list(draw.uniform(-0.2, 0.3) + shared + draw.normal(0, 0.03, n))
    interval = fieller(a, b)
    assert interval is not None
    quantile = stats.t.ppf(0.975, n - 1)
    ratios = np.linspace(-6, 6, 2401)
    held = np.array([t_statistic(a, b, ratio) <= quantile for ratio in ratios])
    np.testing.assert_array_equal(held, (interval[0] <= ratios) & (ratios <= interval[1]))
    assert held.any()
    assert [t_statistic(a, b, end) for end in interval] == pytest.approx([quantile, quantile])


@pytest.mark.parametrize("b", [[0.1, -0.1, 0.2], [-0.01, 0.3, 0.3]])
def test_fieller_is_unbounded_where_the_interval_of_the_gap_holds_zero(b: list[float]) -> None:
    low, high = summarise(b).interval or (nan, nan)
    assert low <= 0 <= high
    assert fieller([0.5, 0.6, 0.7], b) is None
    quantile = stats.t.ppf(0.975, 2)
    assert all(t_statistic([0.5, 0.6, 0.7], b, ratio) <= quantile for ratio in (-1e6, 1e6))
    assert fieller([0.5, 0.6, 0.7], [0.0, 0.0, 0.0]) is None


def test_fieller_covers_the_true_ratio_in_95_of_100_samples() -> None:
    draw = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        shared = draw.normal(0, 0.03, 5)
        interval = fieller(
            list(0.12 + shared + draw.normal(0, 0.02, 5)), list(0.2 + shared + draw.normal(0, 0.01, 5))
        )
        covered += interval is not None and interval[0] <= 0.6 <= interval[1]
    assert 0.935 < covered / 2000 < 0.965


def test_a_share_is_a_ratio_of_means_over_the_seeds_that_all_have() -> None:
    line, low, high = (
        {0: 0.80, 1: 0.82, 2: 0.81, 7: 0.1},
        {0: 0.7, 1: 0.7, 2: 0.72},
        {0: 0.9, 1: 0.92, 2: 0.9, 3: 0.0},
    )
    share = share_closed(line, low, high)
    assert share is not None
    assert share.closed is not None
    assert share.closed.value == pytest.approx(0.31 / 0.60)
    assert share.gap == summarise([0.9 - 0.7, 0.92 - 0.7, 0.9 - 0.72])
    assert share.closed.n == 3
    assert share.closed.interval == pytest.approx(fieller([0.10, 0.12, 0.09], [0.2, 0.22, 0.18]))
    assert share_closed({5: 0.1}, low, high) is None


def test_ends_of_a_gap_are_0_and_1_without_spread_and_one_seed_has_no_interval() -> None:
    low, high = {0: 0.70, 1: 0.71, 2: 0.69}, {0: 0.9, 1: 0.93, 2: 0.9}
    for line, value in ((low, 0.0), (high, 1.0)):
        share = share_closed(line, low, high)
        assert share is not None
        assert share.closed is not None
        assert share.closed.interval == pytest.approx((value, value), abs=1e-12)
    alone = share_closed({0: 0.8}, low, high)
    assert alone is not None
    assert alone.closed is not None
    assert alone.closed == Estimate(1, pytest.approx(0.5), None)
    assert share_closed({0: 0.8}, low, low) == Share(None, Summary(1, 0.0, None, None))


def test_a_gap_that_may_be_zero_has_no_share() -> None:
    low, high = {0: 0.7, 1: 0.9, 2: 0.8}, {0: 0.8, 1: 0.8, 2: 0.9}
    share = share_closed({0: 0.8, 1: 0.85, 2: 0.8}, low, high)
    assert share is not None
    assert share.closed is None
    assert share.gap.mean == pytest.approx(0.1 / 3)


def test_the_geometric_mean_is_that_of_logarithms() -> None:
    values = list(np.random.default_rng(3).lognormal(-5, 1, 6))
    one = geometric(values)
    assert one.value == pytest.approx(stats.gmean(values))
    expected = stats.t.interval(0.95, 5, np.mean(np.log(values)), stats.sem(np.log(values)))
    assert one.interval == pytest.approx(tuple(np.exp(expected)))
    assert geometric([0.01]) == Estimate(1, pytest.approx(0.01), None)
