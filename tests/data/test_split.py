"""The one place that draws splits: by the seed, stratified, by writers; digits of a run's domains; validation."""

import difflib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import syncnorm
from syncnorm.config import Clients, Data
from syncnorm.data import Dataset, load, load_config, make_federated_dataset, partition_card
from syncnorm.data.domain_pool import Pool, load_pool
from syncnorm.data.embedded.digits import DOMAINS, PAGES
from syncnorm.data.sources.load import MEMORY
from syncnorm.data.sources.registered import embedded_pixels
from syncnorm.data.split import Share, split_samples, stratified_order
from syncnorm.errors import UserError

CPU = torch.device("cpu")
UCI = tuple(name for name in DOMAINS if name != "digits-fonts")


@pytest.fixture
def register(registries: None) -> Iterator[Callable[..., Any]]:
    yield syncnorm.register_data
    MEMORY.clear()
    load_pool.cache_clear()


def pool_of(names: tuple[str, ...], seed: int = 0, **fields: Any) -> Pool:
    return load_pool(Data("pool", **fields), names, False, CPU, torch.float32, (), seed)


def numbered(register: Callable[..., Any], y: Any, **columns: Any) -> None:
    """Register the data set "numbered", whose k-th sample has the one feature k."""
    x = np.arange(len(y), dtype=np.float32)[:, None] @ np.ones((1, 2), np.float32)
    register("numbered")(lambda: {"x": x, "y": np.asarray(y), **columns})


def rows(data: Dataset) -> list[list[int]]:
    """Return the numbers of training, validation and test samples of "numbered" in the fixed scale."""
    return [part[:, 0].round().long().tolist() for part in (data.train_x, data.validation_x, data.test_x)]


def test_a_seed_redraws_the_split_and_fixed_keeps_that_of_seed_0() -> None:
    origins = [load("digits", seed=seed, split=split).origin for split in ("random", "fixed") for seed in (0, 1)]
    zero, one, fixed, also = (set(origin.tolist()) for origin in origins if origin is not None)
    assert zero != one
    assert zero == fixed == also
    assert len(zero & one) < 0.4 * len(zero)  # a fifth by chance
    limited = [load("digits", seed=s, train_limit=50, test_limit=20, split="fixed") for s in (0, 1)]
    assert torch.equal(limited[0].train_x, limited[1].train_x)
    drawn = [load("digits", seed=s, train_limit=50, test_limit=20) for s in (0, 1)]
    assert drawn[0].train_origin is not None
    assert drawn[1].train_origin is not None
    assert set(drawn[0].train_origin.tolist()) != set(drawn[1].train_origin.tolist())


def test_parts_are_disjoint_and_complete_and_each_class_has_its_share(register: Callable[..., Any]) -> None:
    y = np.repeat([0, 1, 2], [50, 100, 250])
    numbered(register, y)
    train, validation, test = rows(load("numbered", validation=0.25, seed=3, scale="fixed"))
    assert sorted(train + validation + test) == list(range(400))
    assert np.bincount(y[test]).tolist() == [10, 20, 50]
    assert np.bincount(y[validation]).tolist() == [10, 20, 50]
    whole = rows(load("numbered", seed=3, scale="fixed"))
    assert whole[1] == []
    assert whole[2] == test  # holding out moves no test sample


def test_every_beginning_of_the_order_is_stratified() -> None:
    rng = np.random.default_rng(0)
    strata = rng.choice(5, 300, p=[0.5, 0.2, 0.2, 0.07, 0.03])
    order = stratified_order(strata, rng.permutation(300))
    assert sorted(order.tolist()) == list(range(300))
    share = np.bincount(strata) / 300
    for count in range(1, 301):
        assert np.abs(np.bincount(strata[order[:count]], minlength=5) - count * share).max() <= 1.51


def test_limits_differ_by_domain_are_stratified_and_nested(register: Callable[..., Any]) -> None:
    pool = pool_of(("digits", "digits-noisy"), train_limit=100, test_limit=50, content="shared")
    assert pool.train_origin is not None
    first, second = (set(pool.train_origin[:100].tolist()), set(pool.train_origin[100:].tolist()))
    assert first != second
    assert torch.bincount(pool.labels(0)).tolist() == [10] * 10
    numbered(register, np.arange(400) % 4)
    parts = {n: rows(load("numbered", train_limit=n, validation=0.2, scale="fixed")) for n in (100, 50)}
    assert [len(part) for part in parts[100][:2]] == [80, 20]
    assert [len(part) for part in parts[50][:2]] == [40, 10]
    assert set(parts[50][0]) < set(parts[100][0])


def test_pages_of_the_file_are_one_form_filled_in_again_and_again() -> None:
    labels = "".join(map(str, load_digits().target))
    ends = (*PAGES[1:], len(labels))
    pages = [labels[start:end] for start, end in zip(PAGES, ends, strict=True)]
    for page in pages:
        same = difflib.SequenceMatcher(None, pages[0], page, autojunk=False).get_matching_blocks()
        assert sum(block.size for block in same) >= len(page) - 1  # the first one, some left out, one label changed
        assert 122 <= len(page) <= 130


@pytest.mark.parametrize("name", UCI)
@pytest.mark.parametrize("seed", [0, 1])
def test_no_writer_crosses_the_split(name: str, seed: int) -> None:
    pixels = embedded_pixels(name)
    assert pixels.origin is not None
    parts = split_samples(pixels, Data(name, split="writers", validation=0.2), seed, name)
    writers = [set(pixels.origin.writer[part].tolist()) for part in parts]
    assert [len(one) for one in writers] == [9, 2, 3]
    assert set.union(*writers) == set(range(14))
    assert sum(map(len, parts)) == len(pixels.train_y)


def test_writers_are_values_of_a_natural_column_or_are_refused(register: Callable[..., Any]) -> None:
    y, natural = np.arange(400) % 4, np.arange(400) // 40
    numbered(register, y, natural=natural)
    parts = rows(load("numbered", split="writers", validation=0.25, scale="fixed"))
    values = [set((np.array(part) // 40).tolist()) for part in parts]
    assert [len(one) for one in values] == [6, 2, 2]
    assert sum(map(len, parts)) == 400
    with pytest.raises(UserError, match=r"data\.split is writers, and data set 'digits-fonts' does not say who"):
        load("digits-fonts", split="writers")
    register("two")(lambda: {"x": np.ones((8, 2)), "y": [0, 1] * 4, "natural": [0, 1] * 4})
    with pytest.raises(UserError, match="has 2 of them: 1 for the test and 1 for validation leave none"):
        load("two", split="writers", validation=0.5)


@pytest.mark.parametrize("split", ["random", "writers"])
def test_domains_of_one_run_show_no_digit_twice(split: Any) -> None:
    pixels = {name: embedded_pixels(name) for name in UCI}
    taken: list[np.ndarray[Any, Any]] = []
    for turn, name in enumerate(UCI):
        parts = split_samples(pixels[name], Data(split=split, validation=0.2), 5, name, Share(turn, len(UCI)))
        origin = pixels[name].origin
        assert origin is not None
        digits = [np.unique(origin.number[part]) for part in parts]
        assert min(map(len, digits)) > 40
        taken += digits
    everything = np.concatenate(taken)
    assert len(everything) == len(np.unique(everything)) == 1797


def test_a_pool_deals_the_digits_unless_they_are_shared() -> None:
    names = ("digits", "digits-inverted")
    own, shared = pool_of(names, 2), pool_of(names, 2, content="shared")
    assert len(own.y) + len(own.test_y) == 1797
    assert len(shared.y) + len(shared.test_y) == 2 * 1797
    for pool in (own, shared):
        assert pool.origin is not None
        assert pool.train_origin is not None
        assert not set(pool.origin.tolist()) & set(pool.train_origin.tolist())
    assert own.origin is not None
    assert len(own.origin.unique()) == len(own.test_y)
    images = [own.x[own.starts[k] : own.starts[k + 1]] for k in (0, 1)]
    negatives = {tuple((-x).mul(127.5).round().int().flatten().tolist()) for x in images[0]}
    inverted = {tuple(x.mul(127.5).round().int().flatten().tolist()) for x in images[1]}
    assert not negatives & inverted
    other = pool_of(names, 3)
    assert other.origin is not None
    assert set(other.origin.tolist()) != set(own.origin.tolist())


def test_what_has_no_origin_gets_numbers_of_its_own_beside_digits() -> None:
    pool = pool_of(("digits-photo", "digits-fonts"))
    assert pool.origin is not None
    photo, fonts = (pool.origin[pool.tests(k)] for k in (0, 1))
    assert len(photo) == 3 * len(photo.unique())
    assert len(fonts) == len(fonts.unique())
    assert not set(photo.tolist()) & set(fonts.tolist())
    assert pool_of(("digits-fonts",)).origin is None
    assert load("activity-01").origin is None


def test_crops_of_a_digit_stay_on_one_side() -> None:
    pixels = embedded_pixels("digits-photo")
    assert pixels.origin is not None
    parts = split_samples(pixels, Data("digits-photo", validation=0.1), 1, "digits-photo")
    train, validation, test = (set(pixels.origin.number[part].tolist()) for part in parts)
    assert not train & validation
    assert not train & test
    assert not validation & test
    assert len(parts.validation) == 3 * len(validation)


def test_training_samples_alone_normalise() -> None:
    data = load("digits", validation=0.3)
    std, mean = torch.std_mean(data.train_x.double(), dim=(0, 2, 3), correction=0)
    assert mean.abs().max() < 1e-5
    assert (std - 1).abs().max() < 1e-5
    federated = make_federated_dataset(Data("digits", validation=0.3), Clients(count=4, skew="sorted"), seed=0)
    index = torch.cat([federated.train(client) for client in range(4)])
    std, mean = torch.std_mean(federated.x[index].double(), dim=(0, 2, 3), correction=0)
    assert mean.abs().max() < 1e-5
    assert (std - 1).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("fraction", "words"),
    [(0.01, "class '2' of data set 'numbered' without a validation sample.*raise"), (0.95, "without a training")],
)
def test_a_fraction_that_leaves_a_class_out_is_a_mistake(
    register: Callable[..., Any], fraction: float, words: str
) -> None:
    numbered(register, np.repeat([0, 1, 2], [200, 200, 10]))
    with pytest.raises(UserError, match=words):
        load("numbered", validation=fraction)
    with pytest.raises(UserError, match=rf"data\.validation is {fraction:g}, which leaves class"):
        load_pool(Data("numbered", validation=fraction), ("numbered", "digits")[:1], False, CPU, torch.float32)


def test_each_client_holds_out_of_its_own_stratified() -> None:
    data = Data("digits", validation=0.2, train_limit=150)
    world = Clients(count=12, skew="dirichlet_by_class", alpha=0.1, held_out=2)
    made = make_federated_dataset(data, world, seed=1)
    small = 0
    for client in range(12):
        train, validation = made.train(client), made.validation(client)
        own = torch.cat([train, validation])
        assert len(validation) == int(0.2 * len(own) + 1e-9)
        held = torch.bincount(made.y[validation], minlength=10).double()
        assert (held - 0.2 * torch.bincount(made.y[own], minlength=10)).abs().max() <= 1.5
        small += len(validation) == 0
    assert [len(made.validation(client)) for client in (12, 13)] == [0, 0]
    assert small > 0  # else the next lines say nothing
    assert partition_card(made)["without_validation"] == small
    assert f"0.2 of each for validation ({small} of 12 too small for it)" in made.summary()
    assert "without_validation" not in partition_card(make_federated_dataset(Data("digits"), world, seed=1))


def test_the_fingerprint_covers_validation() -> None:
    data = load("digits", validation=0.2)
    assert data.fingerprint != load("digits").fingerprint
    moved = replace(data, validation_y=data.validation_y.flip(0))
    assert moved.fingerprint != data.fingerprint
    assert pool_of(("digits",), validation=0.2).fingerprint != pool_of(("digits",)).fingerprint
    worlds = (Clients(count=4), Clients(count=7, skew="sorted"))
    made = [make_federated_dataset(Data("digits", validation=0.2), world, seed=0) for world in worlds]
    assert not torch.equal(made[0].x, made[1].x)  # each is normalised by its own training samples
    assert made[0].fingerprint == made[1].fingerprint  # which follow from the run


def test_another_seed_reads_nothing_again(register: Callable[..., Any]) -> None:
    calls: list[int] = []

    @register("counted")
    def counted() -> Any:
        calls.append(1)
        return np.arange(80.0)[:, None] @ np.ones((1, 3)), np.arange(80) % 4

    for seed in range(4):
        load_config(Data("counted"), seed=seed)
        load_pool(Data("counted"), ("counted",), False, CPU, torch.float32, (), seed)
    assert calls == [1]


def test_an_official_test_set_stays_whole(register: Callable[..., Any]) -> None:
    x, y = np.random.default_rng(0).normal(size=(90, 3)), np.arange(90) % 3
    register("official")(lambda: ((x[:60], y[:60]), (x[60:], y[60:])))
    sets = [load("official", seed=seed, validation=0.2, scale="fixed") for seed in (0, 1)]
    for data in sets:
        assert data.test_x.numpy() == pytest.approx(x[60:])
        assert (len(data.train_y), len(data.validation_y)) == (48, 12)
    assert not torch.equal(sets[0].validation_x, sets[1].validation_x)
