"""Each mistake in who holds what gets one sentence that says what to write instead."""

from dataclasses import replace

import pytest

from syncnorm.config import Clients, Data
from syncnorm.data import make_federated_dataset
from syncnorm.errors import UserError

DIGITS = Data("digits", train_limit=100, test_limit=50)


@pytest.mark.parametrize(
    ("world", "words"),
    [
        ({"count": 0}, ["world.count is 0", "at least 1"]),
        ({"count": 101}, ["100 training samples", "101 clients", "resampled"]),
        ({"held_out": -1}, ["world.held_out is -1"]),
        ({"noise": float("nan")}, ["world.noise is nan"]),
        ({"noise": 0.1, "skew": "resampled"}, ["world.noise is 0.1", "share images", "leave noise out"]),
        ({"equal_size": 1.5}, ["world.equal_size is 1.5", "from 0 to 1"]),
        ({"equal_size": 0.1}, ["world.equal_size is 0.1", "5 samples", "none"]),
        ({"unseen": ("digits-noisy",)}, ["world.unseen names 1 of them", "held_out is 0"]),
        ({"domains": ("digits", "digits-noisy"), "count": 1}, ["names 2 of them", "count to 2"]),
        ({"domains": ("digits", "digits")}, ["'digits' twice"]),
        ({"domains": ("digits", "digits-noisi")}, ["digits-noisi", "did you mean 'digits-noisy'"]),
        ({"skew": "dirichlet_by_clas"}, ["unknown skew", "did you mean 'dirichlet_by_class'"]),
        ({"skew": "resample"}, ["did you mean 'resampled'"]),
        ({"skew": "pathological", "alpha": 0.1}, ["world.alpha is 0.1", "'pathological'", "dirichlet_by_client"]),
        ({"skew": "dirichlet_by_class", "skew_options": {"alpha": 0.1}}, ["world.skew_options", "world.alpha"]),
        ({"skew": "dirichlet_by_class", "alpha": 0.0}, ["alpha is 0.0", "above 0"]),
        ({"skew": "dirichlet_by_class", "alpha": 1e-3}, ["alpha 0.001 left a client", "100 draws", "of the 20"]),
        ({"skew": "resampled", "alpha": -1.0}, ["alpha is -1.0"]),
        ({"skew": "resampled", "skew_options": {"samples": 0}}, ["samples of the resampled", "0"]),
        ({"skew": "resampled", "skew_options": {"sample": 9}}, ["did you mean 'samples'"]),
        ({"skew": "pathological", "skew_options": {"classes_per_client": 2}, "count": 99}, ["got no sample"]),
        ({"domains": ("digits", "digits-noisy"), "skew": "sorted", "skew_options": {"percent": 101}}, ["'digits': "]),
    ],
)
def test_mistakes_get_a_sentence(world, words):
    with pytest.raises(UserError) as error:
        make_federated_dataset(DIGITS, Clients(**world), seed=0)
    sentence = str(error.value)
    assert all(word in sentence for word in words), sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("data", "world", "words"),
    [
        ({"validation": 1.0}, {}, ["data.validation is 1.0", "below 1"]),
        ({"validation": 0.4}, {"equal_size": 0.7}, ["equal_size 0.7", "data.validation 0.4", "at most 1"]),
        (
            {"validation": 0.1},
            {"count": 50},
            ["data.validation is 0.1", "a client needs 10 samples", "none of 50 clients"],
        ),
    ],
)
def test_mistakes_in_validation_get_a_sentence(data, world, words):
    with pytest.raises(UserError) as error:
        make_federated_dataset(replace(DIGITS, **data), Clients(**world), seed=0)
    assert all(word in str(error.value) for word in words), error.value


def test_a_client_none_of_whose_classes_is_tested_is_found_before_training():
    world = Clients(count=10, skew="pathological", skew_options={"classes_per_client": 1})
    with pytest.raises(UserError, match=r"no class that client \d trains on has a test image.*data\.test_limit"):
        make_federated_dataset(Data("digits", test_limit=3), world, seed=0)
