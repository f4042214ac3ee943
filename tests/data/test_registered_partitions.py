"""Partition methods that other people's modules register: what they are given, and what they may return."""

import numpy as np
import pytest
import torch

import syncnorm
from syncnorm.config import Clients, Data
from syncnorm.data import METHODS, make_federated_dataset, partition, partition_card
from syncnorm.errors import UserError

LABELS = torch.arange(60) % 6


@pytest.fixture
def register(monkeypatch):
    """Register for one test."""
    monkeypatch.setattr(METHODS, "_items", dict(METHODS._items))
    monkeypatch.setattr(METHODS, "_sources", dict(METHODS._sources))
    return syncnorm.register_partition


def parity(labels, clients, seed, *, flip=False):
    return np.array_split(np.argsort((labels + flip) % 2, kind="stable"), clients)


def test_a_registered_method_is_reached_by_name_with_its_options(register):
    register("parity")(parity)
    even, odd = partition(LABELS, "parity", 2, seed=0)
    assert (LABELS[even] % 2 == 0).all()
    assert (LABELS[odd] % 2 == 1).all()
    flipped = partition(LABELS, "parity", 2, seed=0, flip=True)
    assert torch.equal(flipped[0], odd)
    with pytest.raises(UserError, match="unknown option of the parity partition 'flop': did you mean 'flip'"):
        partition(LABELS, "parity", 2, seed=0, flop=True)


def test_clients_are_partitioned_by_a_registered_method(register):
    register("parity")(parity)
    world = Clients(count=3, held_out=1, skew="parity", skew_options={"flip": True})
    made = make_federated_dataset(Data("digits"), world, seed=0)
    assert [sorted({int(label) % 2 for label in made.y[made.train(client)]}) for client in (0, 3)] == [[1], [0]]
    assert partition_card(made)["options"] == {"flip": True}
    assert partition_card(made)["method"] == "parity"


def test_a_method_is_given_labels_a_seed_and_the_columns_that_it_asks_for(register):
    got = {}

    @register("asking")
    def asking(labels, clients, seed, natural, domains=None, *, alpha=1.0, **more):
        got.update(labels=labels, seed=seed, natural=natural, domains=domains, alpha=alpha, more=more)
        labels[:] = 0  # its own copy
        return np.array_split(np.arange(len(labels)), clients)

    sites = ["a", "b", "c"] * 20
    partition(LABELS, "asking", 3, seed=2**40 + 7, natural=sites, alpha=2, beta=3)
    assert (got["seed"], got["alpha"], got["more"], got["domains"]) == (7, 2, {"beta": 3}, None)
    assert got["natural"].tolist() == sites
    assert LABELS.tolist() == (torch.arange(60) % 6).tolist()
    with pytest.raises(UserError, match="asking partition needs to know the natural of each sample"):
        partition(LABELS, "asking", 3, seed=0)
    with pytest.raises(UserError, match=r"natural has shape \(2,\) and there are 60 labels"):
        partition(LABELS, "asking", 3, seed=0, natural=["a", "b"])

    @register("by_domain")
    def by_domain(labels, clients, seed, *, domains):
        got.update(by_domain=domains)
        return np.array_split(np.arange(len(labels)), clients)

    world = Clients(count=4, domains=("digits", "digits-noisy"), skew="by_domain")
    make_federated_dataset(Data("digits", train_limit=30, test_limit=10), world, seed=0)
    assert got["by_domain"].tolist() == [1] * 30  # of the last domain, which is partitioned by itself


def test_an_option_without_a_default_is_needed(register):
    register("needy")(lambda labels, clients, seed, *, amount: [[k] for k in range(clients)])
    assert [part.tolist() for part in partition(LABELS, "needy", 3, seed=0, amount=1)] == [[0], [1], [2]]
    with pytest.raises(UserError, match="the needy partition needs the option 'amount'"):
        partition(LABELS, "needy", 3, seed=0)


WRONG = {
    "nothing": (None, "returned NoneType for 3 clients"),
    "too few": ([[0], [1]], "returned 2 parts for 3 clients"),
    "empty": ([[0], [], [1]], "client 1 got no sample from the mine partition"),
    "outside": ([[0], [60], [1]], "gave client 1 the sample 60: samples are numbered from 0 to 59"),
    "negative": ([[0], [1], [-1]], "gave client 2 the sample -1"),
    "twice": ([[0, 0], [1], [2]], "gave client 0 a sample twice"),
    "shared": ([[0, 5], [1], [2, 5]], "gave sample 5 to client 0 and to client 2"),
    "mask": ([np.ones(60, bool)] * 3, r"returned for client 0 an array of shape \(60,\) and type bool"),
    "fractions": ([[0.0], [1.0], [2.0]], "type float64: give sample indices"),
    "numbers": ([0, 1, 2], r"shape \(\)"),
    "ragged": ([[[0], [1, 2]], [1], [2]], "returned for client 0 list: give a list or an array"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_a_method_returns_is_checked(register, case):
    value, words = WRONG[case]
    register("mine")(lambda labels, clients, seed: value)
    with pytest.raises(UserError, match=words) as error:
        partition(LABELS, "mine", 3, seed=0)
    assert "mine" in str(error.value)


def test_a_sentence_calls_a_client_by_its_number_in_the_run(register):
    register("mine")(lambda labels, clients, seed: [[0], []])
    world = Clients(count=4, domains=("digits", "digits-noisy"), skew="mine")
    with pytest.raises(UserError, match="domain 'digits': client 2 got no sample"):
        make_federated_dataset(Data("digits", train_limit=30, test_limit=10), world, seed=0)


def test_what_cannot_be_a_method_is_refused(register):
    with pytest.raises(
        UserError, match=r'syncnorm.register_partition needs a name: write @syncnorm.register_partition\("parity"\)'
    ):
        register(parity)
    with pytest.raises(UserError, match="the short partition must take labels, clients and seed"):
        register("short")(lambda labels, clients: [])
    with pytest.raises(UserError, match="partition method 'iid' is registered already, by syncnorm itself"):
        register("iid")(parity)


def test_samples_may_be_left_out_and_parts_may_be_of_any_kind(register):
    register("some")(lambda labels, clients, seed: (range(2), torch.tensor([5, 3]), (7,)))
    assert [part.tolist() for part in partition(LABELS, "some", 3, seed=0)] == [[0, 1], [5, 3], [7]]


def test_the_natural_column_deals_each_value_to_one_client():
    sites = np.array(["b", "a", "c"] * 20)
    parts = partition(LABELS, "natural", 3, seed=0, natural=sites)
    assert [set(sites[part]) for part in parts] == [{"a"}, {"b"}, {"c"}]
    two = {
        tuple(sites[part[0]] for part in partition(LABELS, "natural", 2, seed, natural=sites)) for seed in range(9)
    }
    assert two == {("a", "b"), ("a", "c"), ("b", "c")}


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(UserError, match="the table partition must take labels, clients and seed"):
        syncnorm.register_partition("table")({"train": None})  # type: ignore[type-var]


def test_the_name_of_the_skew_that_is_no_partition_is_refused() -> None:
    with pytest.raises(UserError, match="the resampled skew is syncnorm's own: choose another name"):
        syncnorm.register_partition("resampled")
