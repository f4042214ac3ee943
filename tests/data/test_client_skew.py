"""The definitions of client skew: what each promises, at both ends of its dial."""

import numpy as np
import pytest
import torch

from syncnorm.data import METHODS, label_histogram, partition
from syncnorm.data.partitions.methods import DRAWS, draw_partition
from syncnorm.errors import UserError
from syncnorm.seeds import derive

LABELS = torch.from_numpy(np.random.default_rng(0).integers(0, 10, 1000))


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"natural"}))
@pytest.mark.parametrize("clients", [1, 7, 20])
def test_every_index_lands_on_one_client_and_the_seed_decides(method: str, clients: int) -> None:
    options = {"classes_per_client": 10} if method == "pathological" and clients == 1 else {}
    parts = partition(LABELS, method, clients, seed=3, **options)
    assert len(parts) == clients
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(1000))
    again = partition(LABELS, method, clients, seed=3, **options)
    assert all(torch.equal(a, b) for a, b in zip(parts, again, strict=True))
    if clients > 1:
        other = partition(LABELS, method, clients, seed=4, **options)
        assert any(not torch.equal(a, b) for a, b in zip(parts, other, strict=True))


def skew(method: str, **options: float) -> float:
    """Mean total-variation distance between a client's mix of classes and that of the data."""
    counts = label_histogram(LABELS, partition(LABELS, method, 10, seed=0, **options), 10).double()
    mixes = counts / counts.sum(1, keepdim=True)
    whole = torch.bincount(LABELS).double() / len(LABELS)
    return (mixes - whole).abs().sum(1).mean().item() / 2


@pytest.mark.parametrize("method", ["dirichlet_by_class", "dirichlet_by_client"])
def test_alpha_is_a_dial_from_one_class_to_iid(method: str) -> None:
    dial = [skew(method, alpha=alpha) for alpha in (0.1, 1.0, 1000.0)]
    # One class of ten alone is at a distance of 0.9; a hundred samples drawn IID are at about 0.12.
    assert 0.9 > dial[0] > dial[1] > dial[2]
    assert dial[0] > 0.6
    assert dial[2] < 0.15


def test_by_class_and_by_client_differ_in_sizes() -> None:
    by_class = [len(part) for part in partition(LABELS, "dirichlet_by_class", 8, seed=1, alpha=0.3)]
    by_client = [len(part) for part in partition(LABELS, "dirichlet_by_client", 8, seed=1, alpha=0.3)]
    balanced = [len(part) for part in partition(LABELS, "dirichlet_by_class", 8, seed=1, alpha=0.3, balance=True)]
    assert max(by_client) - min(by_client) <= 1
    assert np.std(by_client) < np.std(balanced) < np.std(by_class)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_pathological_gives_exactly_so_many_classes(count: int) -> None:
    histogram = label_histogram(LABELS, partition(LABELS, "pathological", 20, seed=0, classes_per_client=count), 10)
    assert (histogram > 0).sum(1).tolist() == [count] * 20


def test_shards_bound_the_number_of_classes() -> None:
    histogram = label_histogram(LABELS, partition(LABELS, "shards", 10, seed=0, shards_per_client=2), 10)
    assert (histogram > 0).sum(1).max() <= 4
    assert histogram.sum(1).tolist() == [100] * 10


def test_quantity_varies_sizes_and_not_classes() -> None:
    parts = partition(LABELS, "quantity", 10, seed=0, beta=2, min_size=20)
    sizes = sorted(len(part) for part in parts)
    assert sizes[0] >= 20
    assert sizes[-1] > 2 * sizes[0]


@pytest.mark.parametrize(
    ("method", "options", "sentence"),
    [
        ("dirichlet_by_class", {"alpha": 0.001, "min_size": 30}, "alpha 0.001 left a client with fewer than 30"),
        ("dirichlet_by_class", {"alpha": 0}, "alpha is 0: it must be a number above 0"),
        ("dirichlet_by_client", {"alpha": "x"}, "alpha is 'x'"),
        ("dirichlet_by_client", {"alhpa": 1}, "did you mean 'alpha'?"),
        ("pathological", {"classes_per_client": 11}, "between 1 and the 10 classes there"),
        ("shards", {"shards_per_client": 0}, "must be at least 1"),
        ("quantity", {"beta": -1}, "beta is -1"),
        ("dirichlet", {}, "did you mean 'dirichlet_by_cl"),
    ],
)
def test_mistakes_get_a_sentence(method: str, options: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        partition(LABELS, method, 10, seed=0, **options)
    assert sentence in str(caught.value)


def test_the_number_of_draws_and_all_options_come_with_a_dealing() -> None:
    """The draws are counted by hand here: one stream, cut as the definition says, until nobody is left empty."""
    dealt = draw_partition(LABELS, "quantity", 8, 1, {"beta": 0.3}, {})
    rng, draws, smallest = np.random.default_rng(derive("partition", 1)), 0, 0
    while smallest < 1:
        cuts = (np.cumsum(rng.dirichlet(np.full(8, 0.3)))[:-1] * 1000).round().astype(int)
        rng.permutation(1000)
        draws, smallest = draws + 1, np.diff([0, *cuts, 1000]).min()
    assert 1 < draws <= DRAWS
    assert dealt.draws == draws
    assert dealt.options == {"beta": 0.3, "min_size": 1}
    assert min(map(len, dealt.parts)) == smallest


def test_an_alpha_that_leaves_clients_empty_says_so_with_the_sizes() -> None:
    with pytest.raises(UserError) as caught:
        partition(LABELS, "dirichlet_by_class", 500, seed=0, alpha=0.05)
    assert str(caught.value) == (
        "the dirichlet_by_class partition with alpha 0.05 left a client without a sample in each of 100 "
        "draws (smallest clients of the last: 0, 0, 0, 0, 0, 0, 0, 0): raise alpha, or use fewer of the 500 clients."
    )


def test_too_few_clients_for_the_classes_are_refused() -> None:
    with pytest.raises(UserError, match="3 clients with 2 classes each cannot hold 10 classes"):
        partition(LABELS, "pathological", 3, seed=0, classes_per_client=2)


def test_labels_are_one_class_a_sample() -> None:
    with pytest.raises(UserError, match=r"labels have shape \(1000, 10\).*labels.argmax\(1\)"):
        partition(torch.eye(10)[LABELS], "dirichlet_by_class", 5, 0)
    with pytest.raises(UserError, match=r"20 of 40 labels are NaN.*: leave them out"):
        partition(np.array([1.0, np.nan] * 20), "dirichlet_by_class", 4, 0)
    names = np.array([f"class {label}" for label in LABELS])
    for labels in (names, names.tolist(), names.astype(object), LABELS.tolist()):
        parts = partition(labels, "dirichlet_by_class", 5, 0)
        expected = partition(LABELS, "dirichlet_by_class", 5, 0)
        assert all(torch.equal(a, b) for a, b in zip(parts, expected, strict=True))


def test_numbers_of_numpy_are_numbers() -> None:
    for method, name in (("dirichlet_by_class", "alpha"), ("dirichlet_by_client", "alpha"), ("quantity", "beta")):
        parts = partition(LABELS, method, np.int64(5), np.int64(2), **{name: np.float32(0.5)})
        expected = partition(LABELS, method, 5, 2, **{name: 0.5})
        assert all(torch.equal(a, b) for a, b in zip(parts, expected, strict=True))


def test_pathological_clients_are_never_empty() -> None:
    labels = torch.cat([torch.zeros(95), torch.arange(1, 6)]).long()
    with pytest.raises(UserError, match="got no sample from the pathological partition"):
        partition(labels, "pathological", 50, 0, classes_per_client=1)
