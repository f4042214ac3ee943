"""What a model's layers are, as rows record it."""

import pytest
from torch import nn

from syncnorm import convert
from syncnorm.models import make_model
from syncnorm.training.profiles.layers import described_layers


def test_layers_have_their_type_place_and_channels() -> None:
    found = described_layers(make_model("small_cnn", (1, 8, 8), 10, width=8))
    assert found["features.0"] == {"type": "convolution", "depth": 1, "channels": 8}
    assert found["features.9"] == {"type": "batch norm", "depth": 3, "channels": 32}
    assert found["classifier"] == {"type": "linear layer", "depth": 1, "channels": 10}
    assert all(isinstance(layer, dict) for layer in found.values())


@pytest.mark.parametrize(("norm", "words"), [("gn", "group norm"), ("ln", "layer norm"), ("brn", "batch norm")])
def test_norms_in_place_of_batch_norm_are_named(norm: str, words: str) -> None:
    model = convert(make_model("small_cnn", (1, 8, 8), 10), norm)
    assert described_layers(model)["features.5"]["type"] == words


def test_a_norm_of_another_kind_has_its_class_and_counts_as_a_norm() -> None:
    model = convert(make_model("small_cnn", (1, 8, 8), 10), "frn")
    assert described_layers(model)["features.5"] == {"type": "FilterResponseNorm", "depth": 2, "channels": 32}


def test_containers_and_activations_are_no_layers() -> None:
    assert described_layers(nn.Sequential(nn.ReLU(), nn.Sequential(nn.Dropout()))) == {}
