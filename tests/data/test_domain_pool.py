"""Domains that lie side by side in a folder, and those that do not go together."""

import numpy as np
import pytest
from PIL import Image

from syncnorm.config import Clients, Data
from syncnorm.data import make_federated_dataset, partition_card
from syncnorm.errors import UserError


def images(folder, value, classes=("cat", "dog"), side=8, mode="L", count=10):
    for name in classes:
        (folder / name).mkdir(parents=True)
        for index in range(count):
            grey = Image.fromarray(np.full((side, side), value + index, np.uint8))
            grey.convert(mode).save(folder / name / f"{index}.png")


def test_a_domain_is_a_folder_under_the_path_and_keeps_its_brightness(tmp_path):
    images(tmp_path / "dark", 0)
    images(tmp_path / "bright", 240)
    data = Data("sites", path=str(tmp_path))
    population = make_federated_dataset(data, Clients(count=2, domains=("dark", "bright")), seed=0)
    assert population.domains == ("dark", "bright")
    assert partition_card(population)["classes"] == ["cat", "dog"]
    assert population.x[population.train(0)].max() < -0.9
    assert population.x[population.train(1)].min() > 0.85


def test_an_unseen_domain_lies_beside_the_one_that_trains(tmp_path):
    images(tmp_path / "dark", 0)
    images(tmp_path / "bright", 240)
    world = Clients(count=3, held_out=2, unseen=("bright",))
    population = make_federated_dataset(Data("dark", path=str(tmp_path)), world, seed=0)
    assert [population.domain(k) for k in range(5)] == ["dark"] * 3 + ["bright"] * 2
    assert population.global_test[0].max() < -0.9


def test_grey_images_beside_colour_have_three_equal_channels(tmp_path):
    images(tmp_path / "grey", 0)
    images(tmp_path / "colour", 0, mode="RGB")
    data = Data("sites", path=str(tmp_path))
    x = make_federated_dataset(data, Clients(count=2, domains=("grey", "colour")), seed=0).x
    assert x.shape[1:] == (3, 8, 8)
    assert (x == x[:, :1]).all()
    assert make_federated_dataset(data, Clients(count=1, domains=("grey",)), seed=0).x.shape[1] == 1


def test_an_embedded_domain_stands_beside_those_of_a_folder(tmp_path):
    images(tmp_path / "own", 0, classes=tuple("0123456789"), side=16)
    data = Data("sites", path=str(tmp_path))
    population = make_federated_dataset(data, Clients(count=2, domains=("own", "digits")), seed=0)
    assert population.domain(1) == "digits"
    assert len(population.train(1)) == 1437


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"side": 9}, ["'first' and 'other'", "(1, 8, 8)", "(1, 9, 9)", "data.size"]),
        ({"classes": ("cat", "cow")}, ["cat, dog; cat, cow", "one task"]),
    ],
)
def test_domains_that_differ_are_named(tmp_path, other, words):
    images(tmp_path / "first", 0)
    images(tmp_path / "other", 0, **other)
    with pytest.raises(UserError) as error:
        make_federated_dataset(Data("x", path=str(tmp_path)), Clients(count=2, domains=("first", "other")), seed=0)
    assert all(word in str(error.value) for word in words), error.value


def test_a_domain_that_is_not_there_gets_the_nearest(tmp_path):
    images(tmp_path / "amazon", 0)
    data = Data("office", path=str(tmp_path))
    with pytest.raises(UserError, match=r"unknown domain in .*'amazn': did you mean 'amazon'"):
        make_federated_dataset(data, Clients(domains=("amazn",)), seed=0)
    with pytest.raises(UserError, match=r"is no folder: give the folder in which each domain lies"):
        make_federated_dataset(Data("office", path=str(tmp_path / "none")), Clients(domains=("amazon",)), seed=0)
