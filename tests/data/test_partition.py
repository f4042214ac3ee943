import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from syncnorm.data import METHODS, label_histogram, partition
from syncnorm.errors import UserError

BALANCED = torch.arange(1000) % 10


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    share=st.floats(0, 1),
    percent=st.floats(0, 100),
    seed=st.integers(0, 5),
)
def test_every_sample_goes_to_exactly_one_client_and_sizes_differ_by_at_most_one(labels, share, percent, seed):
    clients = 1 + int(share * (len(labels) - 1))
    parts = partition(torch.tensor(labels), "sorted", clients, seed, percent=percent)
    sizes = [len(part) for part in parts]
    assert len(parts) == clients
    assert sorted(torch.cat(parts).tolist()) == list(range(len(labels)))
    assert max(sizes) - min(sizes) <= 1


def test_all_of_the_data_sorted_runs_through_the_labels_in_order():
    labels = BALANCED[torch.randperm(1000, generator=torch.Generator().manual_seed(0))]
    parts = partition(labels, "sorted", 7, seed=3, percent=100)
    dealt = torch.cat([labels[part] for part in parts])
    assert torch.equal(dealt, labels.sort().values)


def test_the_dial_sets_how_much_of_a_client_is_its_own_class():
    """Ten clients, ten classes: client k's piece of the sorted part is class k, but for chance at the edges."""
    own = {}
    for percent in (0, 50, 100):
        parts = partition(BALANCED, "sorted", 10, seed=0, percent=percent)
        own[percent] = label_histogram(BALANCED, parts, 10).diagonal().double().mean().item()
    assert own[100] == 100
    assert own[0] == pytest.approx(10, abs=3)
    assert 40 < own[50] < 60


def test_zero_percent_is_iid():
    iid = partition(BALANCED, "iid", 6, seed=1)
    dialled = partition(BALANCED, "sorted", 6, seed=1, percent=0)
    assert all(torch.equal(a, b) for a, b in zip(iid, dialled, strict=True))


def test_seeds_give_other_partitions_and_break_ties_in_another_order():
    first, again, other = (partition(BALANCED, "sorted", 4, seed, percent=100) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], first[0].sort().values)  # samples of one class are mixed


def test_partition_is_the_same_in_every_release():
    """Results are compared between releases: who holds what must not move."""
    parts = partition(torch.arange(12) % 3, "sorted", 3, seed=0, percent=50)
    assert [part.tolist() for part in parts] == [[9, 6, 3, 0], [1, 7, 10, 4], [5, 11, 2, 8]]


def test_label_histogram_counts_classes_that_nobody_holds():
    labels = torch.tensor([0, 0, 2, 2, 2])
    parts = [torch.tensor([0, 2]), torch.tensor([1, 3, 4])]
    expected = [[np.count_nonzero(labels[p] == c) for c in range(4)] for p in parts]
    assert label_histogram(labels, parts, 4).tolist() == expected == [[1, 0, 1, 0], [1, 0, 2, 0]]


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (("sortd", 4, 0), {}, ["sortd", "did you mean 'sorted'"]),
        (("sorted", 4, 0), {"percnt": 5}, ["percnt", "did you mean 'percent'"]),
        (("iid", 4, 0), {"percent": 5}, ["percent", "takes no options"]),
        (("sorted", 4, 0), {"percent": 101}, ["101", "between 0 and 100"]),
        (("sorted", 4, 0), {"percent": float("nan")}, ["nan", "between 0 and 100"]),
        (("iid", 1001, 0), {}, ["1000", "1001"]),
        (("iid", 0, 0), {}, ["0", "whole number from 1"]),
        (("iid", 2.5, 0), {}, ["2.5", "whole number from 1"]),
        (("sorted", 4, 0), {"percent": "half"}, ["percent is 'half'", "a number"]),
        (("pathological", 4, 0), {"classes_per_client": 2.5}, ["classes_per_client is 2.5", "a whole number"]),
        (("shards", 4, 0), {"shards_per_client": "2"}, ["shards_per_client is '2'", "a whole number"]),
        (("quantity", 4, 0), {"min_size": True}, ["min_size is True", "a whole number"]),
        (("dirichlet_by_class", 4, 0), {"balance": "yes"}, ["balance is 'yes'", "True or False"]),
    ],
)
def test_mistakes_say_what_to_write_instead(arguments, options, words):
    with pytest.raises(UserError) as error:
        partition(BALANCED, *arguments, **options)
    assert all(word in str(error.value) for word in words), error.value


def test_all_methods_are_reached_by_name():
    assert set(METHODS) >= {"iid", "sorted"}
    assert all(len(partition(BALANCED, method, 5, seed=0)) == 5 for method in METHODS if method != "natural")


def test_labels_and_options_may_be_those_of_numpy() -> None:
    expected = partition(BALANCED, "shards", 4, 0, shards_per_client=2)
    for labels in (BALANCED.numpy(), BALANCED.tolist()):
        found = partition(labels, "shards", np.int64(4), 0, shards_per_client=np.int64(2))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
