"""Who holds what: complete, disjoint, the same everywhere, and as skewed, noisy and large as was asked for."""

import hashlib
import json
import os
import subprocess
import sys
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch

from syncnorm.config import Clients, Data
from syncnorm.data import load, make_federated_dataset, partition_card
from syncnorm.data.partitions.build import forget
from syncnorm.seeds import derive

DIGITS = Data("digits")
SHARED = Data("digits", content="shared")
THREE = ("digits", "digits-rotated", "digits-noisy")
SKEWS = {
    "iid": {},
    "sorted": {"percent": 60},
    "dirichlet_by_class": {},
    "dirichlet_by_client": {},
    "pathological": {},
    "shards": {},
    "quantity": {"beta": 2.0},
}


def parts(population):
    clients = range(population.count + population.held_out)
    return [torch.cat([population.train(k), population.validation(k)]) for k in clients]


@pytest.mark.parametrize("skew", SKEWS)
@pytest.mark.parametrize("domains", [(), THREE])
def test_every_sample_of_every_domain_lies_with_one_client_of_that_domain(skew, domains):
    world = Clients(count=15, held_out=3, domains=domains, skew=skew, skew_options=SKEWS[skew], alpha=None)
    population = make_federated_dataset(replace(DIGITS, validation=0.3, content="shared"), world, seed=1)
    held = parts(population)
    assert torch.equal(torch.cat(held).sort().values, torch.arange(len(population.y)))
    names = domains or ("digits",)
    assert len(population.y) == 1437 * len(names)
    for client, part in enumerate(held):
        assert population.domain(client) == names[client % len(names)]
        assert set((part // 1437).tolist()) == {client % len(names)}


def test_without_limits_of_size_a_population_deals_what_the_partition_method_says():
    """Sets of samples against the method's own law: two classes a client, all classes dealt."""
    population = make_federated_dataset(DIGITS, Clients(count=20, skew="pathological"), seed=0)
    classes = [population.y[population.train(k)].unique().tolist() for k in range(20)]
    assert all(len(one) == 2 for one in classes)
    assert set().union(*classes) == set(range(10))
    assert (population.classes, population.shape) == (10, (3, 16, 16))


def test_one_domain_is_normalised_by_itself_and_several_by_the_same_numbers():
    alone = make_federated_dataset(DIGITS, Clients(count=4), seed=0)
    own = load("digits")
    assert torch.equal(alone.x, own.train_x)
    assert torch.equal(alone.global_test[0], own.test_x)
    together = make_federated_dataset(DIGITS, Clients(count=4, domains=("digits", "digits-inverted")), seed=0)
    assert not torch.allclose(together.x[:718], -together.x[718:1436], atol=0.1)
    together = make_federated_dataset(SHARED, Clients(count=4, domains=("digits", "digits-inverted")), seed=0)
    clean, inverted = together.x[:1437], together.x[1437:]
    assert (clean + inverted).abs().max() < 0.02  # an inverted image is the negative of the clean one
    assert partition_card(together)["scale"] == "fixed"
    assert partition_card(alone)["scale"] == "own"


def test_one_more_domain_moves_no_sample_of_another():
    world = {"skew": "dirichlet_by_class", "alpha": 0.3, "noise": 0.0}
    two = make_federated_dataset(SHARED, Clients(count=8, domains=THREE[:2], **world), seed=5)
    three = make_federated_dataset(SHARED, Clients(count=12, domains=THREE, **world), seed=5)
    for d in range(2):
        for j in range(4):
            before, after = 2 * j + d, 3 * j + d
            assert torch.equal(two.train(before), three.train(after))
    assert not torch.equal(two.train(0), two.train(1) - 1437)


def test_validation_and_equal_sizes_move_no_sample_between_clients():
    plain = make_federated_dataset(DIGITS, Clients(count=6, skew="quantity"), seed=2)
    world = Clients(count=6, skew="quantity", equal_size=0.5)
    cut = make_federated_dataset(replace(DIGITS, validation=0.4), world, seed=2)
    smallest = min(len(plain.train(k)) for k in range(6))
    for client in range(6):
        whole, validation = plain.train(client), cut.validation(client)
        left = whole[~torch.isin(whole, validation)]
        assert len(validation) == int(0.4 * len(whole))
        assert len(left) == len(whole) - len(validation)
        assert torch.equal(cut.train(client), left[: smallest // 2])


def test_the_first_half_of_a_client_has_its_mix_of_classes():
    """Sorted and Dirichlet partitions go class by class; cutting must not cut classes."""
    world = Clients(count=2, skew="dirichlet_by_class", alpha=100.0, equal_size=0.5)
    half = make_federated_dataset(DIGITS, world, seed=0)
    assert (half.histogram(0) > 10).all()


def test_seeds_decide_and_nothing_else():
    world = Clients(count=5, skew="dirichlet_by_client", alpha=0.5, noise=0.3)
    first, again, other = (make_federated_dataset(DIGITS, world, seed) for seed in (3, 3, 4))
    assert partition_card(first) == partition_card(again)
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.test(4)[0], again.test(4)[0])
    assert partition_card(first)["sha256"] != partition_card(other)["sha256"]
    double = make_federated_dataset(DIGITS, world, 3, dtype=torch.float64)
    assert double.x.dtype == torch.float64
    assert (double.x - first.x).abs().max() < 1e-5
    assert partition_card(double) == partition_card(first)


def fingerprint():
    worlds = {
        "dirichlet": Clients(count=6, held_out=2, skew="dirichlet_by_class", alpha=0.3),
        "domains": Clients(count=6, domains=THREE, skew="sorted", equal_size=0.5),
        "resampled": Clients(count=40, skew="resampled", alpha=0.5),
    }
    return {
        name: partition_card(make_federated_dataset(replace(DIGITS, validation=0.2), world, seed=7))["sha256"]
        for name, world in worlds.items()
    }


@pytest.mark.dist
def test_a_fresh_process_deals_the_same():
    code = (
        "import sys, json; sys.path.insert(0, sys.argv[1])\n"
        "from test_federated_dataset import fingerprint\n"
        "print(json.dumps(fingerprint()))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, os.path.dirname(__file__)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
        check=True,
    )
    assert json.loads(run.stdout) == fingerprint()


def test_the_card_says_what_the_clients_hold():
    world = Clients(count=6, held_out=3, domains=THREE[:2], unseen=THREE[2:], skew="quantity", noise=0.8)
    population = make_federated_dataset(replace(SHARED, validation=0.5), world, seed=0)
    card = partition_card(population)
    assert json.loads(json.dumps(card)) == card
    assert [one["domain"] for one in card["clients"]] == [*THREE[:2] * 3, *THREE[2:] * 3]
    assert [one["held_out"] for one in card["clients"]] == [False] * 6 + [True] * 3
    digest = hashlib.sha256()
    for client, one in enumerate(card["clients"]):
        train, validation = population.train(client), population.validation(client)
        assert (one["train"], one["validation"]) == (len(train), len(validation))
        assert one["histogram"] == [(population.y[train] == c).sum().item() for c in range(10)]
        start = 1437 * THREE.index(one["domain"])
        digest.update((train - start).numpy().tobytes() + (validation - start).numpy().tobytes())
    assert card["sha256"] == digest.hexdigest()
    assert card["draws"].keys() == set(THREE)
    assert (card["method"], card["alpha"], card["options"]) == ("quantity", None, {"beta": 0.5, "min_size": 1})
    assert [(one["name"], one["train"]) for one in card["domains"]] == [(name, 1437) for name in THREE]


def test_the_card_states_the_alpha_that_was_used_also_when_it_is_the_default():
    card = partition_card(make_federated_dataset(DIGITS, Clients(count=4, skew="dirichlet_by_class"), seed=0))
    assert (card["alpha"], card["options"]) == (0.5, {"balance": False, "min_size": 1})


@pytest.mark.parametrize(
    ("skew", "options"),
    [("dirichlet_by_class", {"alpha": 0.3}), ("pathological", {}), ("resampled", {"alpha": 0.3}), ("sorted", {})],
)
def test_weights_reproduce_a_clients_mix_of_classes(skew, options):
    population = make_federated_dataset(DIGITS, Clients(count=10, skew=skew, **options), seed=0)
    for client in range(10):
        x, y, weights = population.test(client)
        assert (len(x), len(y), len(weights), weights.dtype) == (360, 360, 360, torch.float64)
        train = population.y[population.train(client)].tolist()
        for c in range(10):
            expected = train.count(c) / len(train)
            assert weights[y == c].sum().item() == pytest.approx(expected, abs=1e-12)
            assert len(weights[y == c].unique()) == 1


@pytest.mark.parametrize("world", [Clients(skew="iid"), Clients(count=6, skew="quantity"), Clients(skew="resampled")])
def test_weights_are_uniform_where_labels_are_alike(world):
    x, _, weights = make_federated_dataset(DIGITS, world, seed=0).test(3)
    assert torch.equal(weights, torch.full((len(x),), 1 / len(x), dtype=torch.float64))


def test_weighted_accuracy_is_unbiased_for_the_clients_own_labels():
    """A classifier that is right on some classes alone: its accuracy on the client's labels is known exactly."""
    population = make_federated_dataset(DIGITS, Clients(count=5, skew="dirichlet_by_class", alpha=0.3), seed=1)
    for client in range(5):
        _, y, weights = population.test(client)
        train = population.y[population.train(client)]
        assert (weights * (y < 4)).sum().item() == pytest.approx((train < 4).double().mean().item(), abs=1e-12)


def test_a_class_without_test_images_leaves_its_weight_to_the_others():
    data = Data("digits", test_limit=6)
    tested = load("digits", test_limit=6).test_y
    population = make_federated_dataset(data, Clients(count=2, skew="dirichlet_by_class", alpha=5.0), seed=0)
    _, y, weights = population.test(0)
    assert torch.equal(y, tested)
    assert weights.sum().item() == pytest.approx(1, abs=1e-12)
    train = population.y[population.train(0)]
    share = {c: (train == c).sum().item() for c in set(tested.tolist())}
    for c, count in share.items():
        assert weights[y == c].sum().item() == pytest.approx(count / sum(share.values()), abs=1e-12)


def test_the_global_test_set_is_that_of_the_training_domains_and_clean():
    world = Clients(count=4, held_out=1, domains=THREE[:2], unseen=THREE[2:], noise=1.0)
    x, y = make_federated_dataset(SHARED, world, seed=0).global_test
    sets = [load(name, scale="fixed") for name in THREE[:2]]
    assert torch.equal(x, torch.cat([one.test_x for one in sets]))
    assert torch.equal(y, torch.cat([one.test_y for one in sets]))


def test_noise_grows_with_the_client_in_training_validation_and_own_test():
    data = Data("digits-photo", validation=0.3)
    clean = make_federated_dataset(data, Clients(count=5, held_out=2), seed=0)
    noisy = make_federated_dataset(data, Clients(count=5, held_out=2, noise=0.8), seed=0)
    assert torch.equal(clean.train(3), noisy.train(3))
    levels = [0, 0.2, 0.4, 0.6, 0.8, 0.2, 0.6]  # the held-out clients': a quarter and three quarters of 0.8
    for client, level in enumerate(levels):
        added = {
            "train": noisy.x[noisy.train(client)] - clean.x[clean.train(client)],
            "validation": noisy.x[noisy.validation(client)] - clean.x[clean.validation(client)],
            "test": noisy.test(client)[0] - clean.test(client)[0],
        }
        for name, noise in added.items():
            if noise.numel():
                # 1e5 values and more: their standard deviation is known to 3 parts in 1000, four times over.
                assert noise.double().std().item() == pytest.approx(level, rel=0.012, abs=1e-9), (client, name)
                assert noise.double().mean().item() == pytest.approx(0, abs=0.012)
    one, other = (noisy.test(k)[0] - clean.test(k)[0] for k in (3, 4))
    assert abs(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]) < 0.01
    assert torch.equal(noisy.global_test[0], clean.global_test[0])
    assert [one["noise"] for one in partition_card(noisy)["clients"]] == pytest.approx(levels)


def test_noise_leaves_the_data_that_other_runs_share_alone():
    make_federated_dataset(DIGITS, Clients(count=3, noise=1.0), seed=0)
    assert torch.equal(make_federated_dataset(DIGITS, Clients(count=3), seed=0).x, load("digits").train_x)


def test_a_million_clients_cost_nothing_until_they_are_asked(monkeypatch):
    draws = []
    original = np.random.default_rng
    make_federated_dataset(DIGITS, Clients(), seed=0)
    monkeypatch.setattr(np.random, "default_rng", lambda seed: draws.append(seed) or original(seed))
    tracemalloc.start()
    population = make_federated_dataset(
        DIGITS, Clients(count=1_000_000, held_out=10, skew="resampled", alpha=0.1), seed=0
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert draws == []
    assert peak < 500_000  # bytes: half of one a client
    assert len(population.train(999_999)) == len(population.train(1_000_009)) == 32
    assert draws == [derive("client's samples", 0, 999_999), derive("client's samples", 0, 1_000_009)]
    card = partition_card(population)
    assert "clients" not in card
    assert card["summary"] == {"first": 1000, "train": 32_000, "smallest": 32, "median": 32, "largest": 32}
    assert len(draws) < 5000


def test_resampled_clients_draw_without_replacement_for_themselves():
    population = make_federated_dataset(
        DIGITS, Clients(count=3, skew="resampled", skew_options={"samples": 1437}), seed=0
    )
    for client in range(3):
        assert torch.equal(population.train(client).sort().values, torch.arange(1437))
    more = make_federated_dataset(DIGITS, Clients(count=3, skew="resampled", skew_options={"samples": 2000}), seed=0)
    counts = torch.bincount(more.train(1), minlength=1437)
    assert (counts.min(), counts.max(), counts.sum()) == (1, 2, 2000)


def test_resampled_clients_hold_their_own_domain_and_follow_the_seed():
    world = Clients(count=9, domains=THREE, skew="resampled", skew_options={"samples": 50})
    first, other = (make_federated_dataset(SHARED, world, seed) for seed in (0, 1))
    for client in range(9):
        assert set((first.train(client) // 1437).tolist()) == {client % 3}
        assert torch.equal(first.train(client), first.train(client))
        assert not torch.equal(first.train(client), other.train(client))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 20.0])
def test_resampled_mixes_have_the_spread_of_their_dirichlet(alpha):
    """For q ~ Dirichlet(alpha p) and n draws, E[sum f_c^2] = 1/n + (1 - 1/n) (alpha sum p_c^2 + 1) / (alpha + 1)."""
    clients, n = 3000, 20
    world = Clients(count=clients, skew="resampled", alpha=alpha, skew_options={"samples": n})
    population = make_federated_dataset(DIGITS, world, seed=0)
    shares = torch.stack([population.histogram(k) for k in range(clients)]).double() / n
    prior = torch.bincount(population.y, minlength=10).double() / len(population.y)
    expected = 1 / n + (1 - 1 / n) * (alpha * prior.square().sum() + 1) / (alpha + 1)
    found = shares.square().sum(1)
    assert abs(found.mean() - expected) < 4 * found.std() / clients**0.5
    assert (shares.mean(0) - prior).abs().max() < 4 * shares.std() / clients**0.5


def test_validation_of_resampled_clients_is_disjoint_from_training_even_where_samples_repeat():
    world = Clients(count=20, skew="resampled", alpha=0.01, skew_options={"samples": 400})
    population = make_federated_dataset(replace(DIGITS, validation=0.25), world, seed=0)
    for client in range(20):
        train, validation = population.train(client), population.validation(client)
        assert len(train) + len(validation) == 400
        different = len(train.unique()) + len(validation.unique())
        assert len(validation.unique()) == int(0.25 * different)
        assert not set(train.tolist()) & set(validation.tolist())


def test_the_office_protocol_in_units_of_the_smallest_domain():
    data = Data("mixed", size=16, validation=0.4, content="shared")
    world = Clients(count=3, domains=("digits", "digits-photo", "digits-fonts"), equal_size=0.5)
    population = make_federated_dataset(data, world, seed=0)
    smallest = min(len(load(name).train_y) for name in world.domains)
    for client in range(3):
        train, validation = population.train(client), population.validation(client)
        own = len(load(world.domains[client]).train_y)
        assert len(train) == smallest // 2
        assert len(validation) == pytest.approx(0.4 * own, abs=3)  # the three crops of a digit stay together
        assert not set(train.tolist()) & set(validation.tolist())


def test_held_out_clients_neither_choose_the_round_nor_set_the_sizes():
    world = Clients(count=2, held_out=4, domains=THREE[:1], unseen=THREE[1:2], equal_size=1.0)
    population = make_federated_dataset(SHARED, world, seed=0)
    assert [len(population.train(k)) for k in range(6)] == [718, 718, 360, 359, 359, 359]
    validated = make_federated_dataset(replace(DIGITS, validation=0.5), Clients(count=2, held_out=1), seed=0)
    assert len(validated.validation(2)) == 0


def test_forget_drops_what_was_loaded():
    first = make_federated_dataset(DIGITS, Clients(), seed=0)
    assert make_federated_dataset(DIGITS, Clients(count=9), seed=0).x is first.x
    forget()
    assert make_federated_dataset(DIGITS, Clients(), seed=0).x is not first.x
