"""What each test sample adds to a run's accuracy: kept in a row, in few bytes, in every world."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

import syncnorm
from syncnorm import worlds
from syncnorm.config import Clients, Data, Devices, Domains, Optim, Run
from syncnorm.data import load
from syncnorm.data.domain_pool import load_pool
from syncnorm.samples import Chance, chance_of, sample_details, samples_of

SMALL = Run(
    data=Data("digits", size=8, train_limit=120, test_limit=60),
    model_options={"width": 4},
    optim=Optim(epochs=2),
    world=Devices(ranks=2, per_device_batch=8),
)
SITES = Clients(count=4, rounds=2, domains=("digits", "digits-inverted"), skew="dirichlet_by_class", alpha=0.3)
SHARED = Domains(("digits", "digits-inverted", "digits-noisy"), unseen=("digits-noisy", "digits"))
RUNS = [
    SMALL,
    replace(SMALL, world=SITES),
    replace(SMALL, world=replace(SITES, skew="iid", alpha=None, noise=0.5)),
    replace(SMALL, world=SHARED),
]


@pytest.mark.parametrize("run", RUNS, ids=["devices", "clients", "clients-iid", "domains"])
def test_the_mean_of_the_scores_is_the_accuracy_in_every_world(run: Run) -> None:
    result = syncnorm.fit(run)
    worlds.forget()
    details = json.loads(json.dumps(result.details))
    samples, chance = samples_of(details), chance_of(details)
    assert samples is not None
    assert chance is not None
    assert samples.score.mean() == pytest.approx(result.metrics["accuracy"], abs=1e-6)
    assert samples.weight.mean() == pytest.approx(1)
    assert (samples.score <= samples.weight + 1e-6).all()
    assert chance.samples <= len(samples.score)
    assert 0.1 <= chance.share < 1


def test_the_devices_row_has_right_or_wrong_of_every_test_sample_in_order() -> None:
    details = syncnorm.fit(SMALL).details
    samples = samples_of(details)
    assert samples is not None
    labels = load("digits", size=8, train_limit=120, test_limit=60).test_y
    assert set(samples.score) <= {0.0, 1.0}
    assert len(set(samples.origin.tolist())) == 60, "each test image shows a digit of its own"
    assert chance_of(details) == Chance(torch.bincount(labels).max().item() / 60, 60)


def test_clients_that_differ_in_size_and_classes_weigh_their_samples() -> None:
    weighed = samples_of(syncnorm.fit(RUNS[1]).details)
    alike = samples_of(syncnorm.fit(RUNS[2]).details)
    worlds.forget()
    assert weighed is not None
    assert alike is not None
    assert np.ptp(weighed.weight) > 0.1
    assert np.ptp(alike.weight) < 1e-6
    assert (weighed.weight > 0).all()


def test_an_origin_of_the_data_is_in_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    import syncnorm.domains.prepare as prepare

    def marked(*args: object) -> object:
        pool = load_pool(*args)  # type: ignore[arg-type]
        return replace(pool, origin=torch.arange(len(pool.test_y)) % 60 + 1000)

    monkeypatch.setattr(prepare, "load_pool", marked)
    samples = samples_of(syncnorm.fit(RUNS[3]).details)
    worlds.forget()
    assert samples is not None
    numbers, counts = np.unique(samples.origin, return_counts=True)
    assert (numbers.min(), numbers.max()) == (1000, 1059)
    assert set(counts) == {2}, "two unseen domains show the same digits"


def test_what_is_packed_is_what_is_read_and_small() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(10, size=360)
    right = rng.random(360) < 0.9
    weight = rng.random(360) + 0.1
    weight /= weight.mean()
    origin = rng.permutation(360) + 4_000_000_000
    details = sample_details(weight * right, labels, weight, origin)
    samples = samples_of(details)
    assert samples is not None
    np.testing.assert_allclose(samples.score, weight * right, rtol=1e-7)
    np.testing.assert_allclose(samples.weight, weight, rtol=1e-7)
    assert samples.origin.tolist() == origin.tolist()
    assert len(json.dumps(sample_details(right, labels, origin=rng.permutation(360)))) < 2000
    assert len(json.dumps(sample_details(weight * right, labels))) < 2500
    many = sample_details(rng.random(10_000) < 0.9, rng.integers(10, size=10_000))
    assert len(json.dumps(many)) < 2000


def test_a_row_without_samples_says_so() -> None:
    assert samples_of({}) is None
    assert chance_of({"profiles": {}}) is None


def test_chance_is_the_most_frequent_answer_and_its_bound_is_a_binomial_quantile() -> None:
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    chance = chance_of(sample_details(np.ones(100), labels))
    assert chance == Chance(0.5, 100)
    right = round(chance.bound * 100)
    assert stats.binom.sf(right, 100, 0.5) <= 0.01 < stats.binom.sf(right - 1, 100, 0.5)
    weighed = chance_of(sample_details(np.ones(100), labels, np.where(labels == 2, 5.0, 1.0)))
    assert weighed is not None
    assert weighed.share == pytest.approx(100 / 180)
    assert weighed.samples == int(180**2 / (80 + 20 * 25)), "Kish's effective number"
