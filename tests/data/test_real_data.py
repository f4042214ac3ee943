"""Real data sets, from the folder that SYNCNORM_TEST_DATA names; skipped where it names none."""

import os
from pathlib import Path

import pytest
import torch

from syncnorm.config import Clients, Data
from syncnorm.data import load, make_federated_dataset, partition_card


def real(name):
    root = os.environ.get("SYNCNORM_TEST_DATA", "")
    if not root:
        pytest.skip("SYNCNORM_TEST_DATA names no folder with real data")
    if not (Path(root) / name).exists():
        pytest.skip(f"{name} is not in SYNCNORM_TEST_DATA")
    return str(Path(root) / name)


@pytest.mark.parametrize(
    ("name", "shape", "train", "test"),
    [
        ("usps", (1, 16, 16), 7291, 2007),
        ("mnist10k", (1, 28, 28), 8000, 2000),
        ("cifar10", (3, 32, 32), 50_000, 10_000),
        ("office_caltech10/webcam.parquet", (3, 128, 128), 236, 59),
    ],
)
def test_real_data_load_whole(name, shape, train, test):
    data = load("real", path=real(name))
    assert data.shape == shape
    assert (len(data.train_y), len(data.test_y), data.classes) == (train, test, 10)
    assert torch.bincount(data.train_y, minlength=10).min() > 0
    std, mean = torch.std_mean(data.train_x[:, 0].double(), correction=0)
    assert mean.abs() < 1e-4
    assert (std - 1).abs() < 1e-4


def test_size_and_limits_apply_to_real_data():
    data = load("real", path=real("office_caltech10/amazon.parquet"), size=32, train_limit=100, test_limit=20)
    assert (data.shape, len(data.train_y), len(data.test_y)) == ((3, 32, 32), 100, 20)


def test_office_caltech_by_the_protocol_of_fedbn():
    """Training is half of the smallest domain's (arXiv 2102.07623), validation two fifths of the domain's own."""
    domains = ("amazon", "caltech10", "dslr", "webcam")
    data = Data("office_caltech10", path=real("office_caltech10"), size=32, validation=0.4)
    world = Clients(count=4, domains=domains, equal_size=0.5)
    population = make_federated_dataset(data, world, seed=0)
    held = {one["name"]: (one["train"], one["test"]) for one in partition_card(population)["domains"]}
    assert {name: sum(both) for name, both in held.items()} == {
        "amazon": 958,
        "caltech10": 1123,
        "dslr": 157,
        "webcam": 295,
    }
    smallest = held["dslr"][0]
    for client, name in enumerate(domains):
        train, validation = population.train(client), population.validation(client)
        assert (len(train), len(validation)) == (int(smallest * 0.5), int(held[name][0] * 0.4))
        assert not set(train.tolist()) & set(validation.tolist())
        assert len(population.test(client)[1]) == held[name][1]
    assert population.shape == (3, 32, 32)
