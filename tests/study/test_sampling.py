"""Intervals over test samples and seeds beside numpy and scipy written out, and their coverage of a known truth."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from syncnorm.samples import Samples
from syncnorm.study.report.inference.sampling import (
    Effects,
    clusters_of,
    effects,
    over_both,
    over_test_samples,
    shared_variance,
)

Scores = NDArray[np.float64]


def samples(score: Scores, origin: NDArray[np.int64] | None = None) -> Samples:
    return Samples(score, np.ones(len(score)), np.arange(len(score)) if origin is None else origin)


def of(scores: Scores, origin: NDArray[np.int64] | None = None) -> Effects:
    """Return the effects of scores (S, N) whose samples have the origins (S, N)."""
    places = [None] * len(scores) if origin is None else list(origin)
    found = effects({seed: clusters_of([samples(*one)]) for seed, one in enumerate(zip(scores, places, strict=True))})
    assert found is not None
    return found


def test_the_values_are_the_means_and_what_moves_them_sums_to_zero() -> None:
    rng = np.random.default_rng(1)
    scores = (rng.random((4, 50)) < 0.7).astype(float)
    found = of(scores, rng.integers(9, size=(4, 50)))
    np.testing.assert_allclose(found.values, scores.mean(1))
    np.testing.assert_allclose(found.residuals.sum(1), 0, atol=1e-15)
    assert found.residuals.shape == (4, 9)


def test_with_a_fixed_test_set_the_variance_is_that_of_a_two_way_analysis() -> None:
    rng = np.random.default_rng(2)
    scores = rng.normal(size=(6, 1)) + rng.normal(size=(1, 40)) + rng.normal(size=(6, 40))
    s, g = scores.shape
    mean, rows, columns = scores.mean(), scores.mean(1, keepdims=True), scores.mean(0, keepdims=True)
    by_seed = g * np.square(rows - mean).sum() / (s - 1)
    by_sample = s * np.square(columns - mean).sum() / (g - 1)
    rest = np.square(scores - rows - columns + mean).sum() / ((s - 1) * (g - 1))
    both = over_both(of(scores))
    assert both is not None
    assert both.mean == pytest.approx(mean, abs=1e-12)
    assert both.error**2 == pytest.approx((by_seed + by_sample - rest) / (s * g), rel=1e-10)
    seeds, shared = by_seed / (s * g), (by_sample - rest) / (s * g)
    assert shared_variance(of(scores)) == pytest.approx(shared, rel=1e-10)
    freedom = (seeds + shared) ** 2 / (seeds**2 / (s - 1) + shared**2 / (g - 1))
    half = stats.t.ppf(0.975, freedom) * (seeds + shared) ** 0.5
    np.testing.assert_allclose(both.interval, (mean - half, mean + half))
    assert both.p == pytest.approx(2 * stats.t.sf(abs(mean) / both.error, freedom))


def test_seeds_that_share_no_test_sample_have_the_t_interval_over_seeds() -> None:
    rng = np.random.default_rng(3)
    scores = rng.random((5, 30))
    both = over_both(of(scores, np.arange(150).reshape(5, 30)))
    assert both is not None
    low, high = stats.t.interval(0.95, 4, scores.mean(), stats.sem(scores.mean(1)))
    np.testing.assert_allclose(both.interval, (low, high))
    assert both.p == pytest.approx(stats.ttest_1samp(scores.mean(1), 0).pvalue)


def test_the_bootstrap_is_scipys_over_clusters() -> None:
    rng = np.random.default_rng(4)
    for scores in (
        (rng.random((3, 200)) < 0.8).astype(float),
        rng.random((3, 200)),
    ):  # few, and many, kinds of numbers
        reference = stats.bootstrap((scores.mean(0),), np.mean, n_resamples=20_000, method="percentile", rng=rng)
        np.testing.assert_allclose(over_test_samples(of(scores)), reference.confidence_interval, atol=0.006)
        origin = np.broadcast_to(np.arange(200) // 4, (3, 200))
        means = scores.mean(0).reshape(50, 4).mean(1)
        reference = stats.bootstrap((means,), np.mean, n_resamples=20_000, method="percentile", rng=rng)
        clustered = over_test_samples(of(scores, origin))
        np.testing.assert_allclose(clustered, reference.confidence_interval, atol=0.006)
        assert clustered == over_test_samples(of(scores, origin)), "the same rows give the same interval"


def test_weights_move_the_mean_by_a_ratio() -> None:
    rng = np.random.default_rng(5)
    right, weight = (rng.random(300) < 0.6).astype(float), rng.random(300) + 0.2
    weight /= weight.mean()
    found = effects({0: clusters_of([Samples(right * weight, weight, np.arange(300))])})
    assert found is not None
    drawn = rng.integers(300, size=(20_000, 300))
    ratios = (right * weight)[drawn].sum(1) / weight[drawn].sum(1)
    np.testing.assert_allclose(over_test_samples(found), np.quantile(ratios, (0.025, 0.975)), atol=0.006)
    assert over_both(found) is None, "one seed"


def test_a_seed_of_several_runs_is_their_mean_and_their_samples_are_one_cluster() -> None:
    rng = np.random.default_rng(6)
    one, two = rng.random(20), rng.random(20)
    found = clusters_of([samples(one), samples(two)])
    assert found.value == pytest.approx((one.mean() + two.mean()) / 2)
    np.testing.assert_allclose(found.total, (one + two) / 40)
    np.testing.assert_allclose(found.weight, 1 / 20)


def test_a_difference_is_paired_by_seed_and_by_sample() -> None:
    rng = np.random.default_rng(7)
    ours, theirs = rng.random((5, 60)), rng.random((4, 60))
    line, other = ({seed: clusters_of([samples(one)]) for seed, one in enumerate(some)} for some in (ours, theirs))
    found = effects(line, other)
    assert found is not None
    gaps = of(ours[:4] - theirs)
    np.testing.assert_allclose(found.values, gaps.values)
    np.testing.assert_allclose(found.residuals, gaps.residuals, atol=1e-15)
    assert effects(line, {9: line[0]}) is None


def test_values_without_spread_have_no_width() -> None:
    found = of(np.ones((5, 30)))
    assert over_test_samples(found) == (1.0, 1.0)
    both = over_both(found)
    assert both is not None
    assert (both.interval, both.p) == ((1.0, 1.0), None)


def accuracy(difficulty: Scores, effect: Scores | float) -> Scores:
    return 1 / (1 + np.exp(-(1.0 + 1.2 * difficulty + effect)))


def truth(spread: float) -> float:
    """Return the mean accuracy over all samples and seeds, by quadrature in float64."""
    x, w = np.polynomial.hermite_e.hermegauss(60)
    w = w / w.sum()
    return float((w[:, None] * w * accuracy(x[:, None], spread * x)).sum())


Drawn = tuple[Scores, NDArray[np.int64]]


def fixed(rng: np.random.Generator, seeds: int, count: int) -> Drawn:
    """Every seed is tested on the same samples."""
    return np.broadcast_to(rng.normal(size=count), (seeds, count)), np.tile(np.arange(count), (seeds, 1))


def redrawn(rng: np.random.Generator, seeds: int, count: int) -> Drawn:
    """Every seed is tested on samples of its own."""
    return rng.normal(size=(seeds, count)), np.arange(seeds * count).reshape(seeds, count)


def resplit(rng: np.random.Generator, seeds: int, count: int) -> Drawn:
    """A fifth of the same pool is the test of each seed."""
    pool = rng.normal(size=5 * count)
    places = np.stack([rng.permutation(5 * count)[:count] for _ in range(seeds)])
    return pool[places], places


def direct(scores: Scores, places: NDArray[np.int64]) -> Effects:
    """Return the same as `of`, quickly, where every sample has an original of its own."""
    values, count = scores.mean(1), scores.shape[1]
    residuals = np.zeros((len(scores), places.max() + 1))
    np.put_along_axis(residuals, places, (scores - values[:, None]) / count, axis=1)
    return Effects(values, residuals, count)


def test_the_shortcut_of_these_simulations_is_the_same() -> None:
    rng = np.random.default_rng(9)
    for draw in (fixed, redrawn, resplit):
        scores, places = draw(rng, 4, 30)
        one, other = over_both(direct(scores, places)), over_both(of(scores, places))
        assert one is not None
        assert other is not None
        np.testing.assert_allclose((one.error, one.freedom), (other.error, other.freedom))


@pytest.mark.parametrize(("seeds", "spread"), [(5, 0.15), (10, 0.3)])
@pytest.mark.parametrize("draw", [fixed, redrawn, resplit])
def test_the_interval_over_both_covers_a_known_truth(
    draw: Callable[[np.random.Generator, int, int], Drawn], seeds: int, spread: float
) -> None:
    rng, wanted, hits, trials = np.random.default_rng([seeds, int(100 * spread)]), truth(spread), 0, 1000
    for _ in range(trials):
        difficulty, places = draw(rng, seeds, 150)
        scores = rng.random((seeds, 150)) < accuracy(difficulty, spread * rng.normal(size=(seeds, 1)))
        both = over_both(direct(scores.astype(float), places))
        assert both is not None
        hits += both.interval[0] <= wanted <= both.interval[1]
    assert 0.93 <= hits / trials <= 0.97


def test_over_seeds_alone_a_fixed_test_set_is_not_covered() -> None:
    rng, wanted, seeds, clustered = np.random.default_rng(8), truth(0.05), 0, 0
    for _ in range(250):
        difficulty, places = fixed(rng, 10, 200)
        drawn = rng.random((10, 200)) < accuracy(difficulty, 0.05 * rng.normal(size=(10, 1)))
        found = direct(drawn.astype(float), places)
        low, high = stats.t.interval(0.95, 9, found.values.mean(), stats.sem(found.values))
        seeds += low <= wanted <= high
        low, high = over_test_samples(found)
        clustered += low <= wanted <= high
    assert seeds / 250 < 0.8
    assert 0.92 <= clustered / 250 <= 0.97, "here the spread is that of the test set alone"
