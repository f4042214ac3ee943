"""Groups of two to four values are warned of before training, in every world, and trained all the same."""

import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

from syncnorm.config import Clients, Data, Devices, Domains, Norm, Run
from syncnorm.training.profiles.small_groups import small_groups
from syncnorm.worlds import check

DATA = Data("digits", size=16, train_limit=40, test_limit=20)
WORLDS = [Devices(ranks=1, per_device_batch=20), Clients(count=2), Domains(("digits", "digits-noisy"), batch=8)]
NARROW = Run(data=DATA, model="strided_cnn", model_options={"width": 8, "depth": 4}, norm=Norm("gn"))


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.kind)
def test_the_smallest_group_is_named(world: Devices | Clients | Domains) -> None:
    """Two channels a group by default; a depth of 4 leaves one position of 16x16, a depth of 3 four."""
    said = (
        r"^layer 'features\.10' of model 'strided_cnn' with norm 'gn' normalises groups of 2 values \(2 channels of "
        r"1 position\)"
    )
    with pytest.warns(UserWarning, match=said):
        check(replace(NARROW, world=world))


@pytest.mark.parametrize(
    "run",
    [
        replace(NARROW, norm=Norm("gn", {"groups": 4})),
        replace(NARROW, norm=Norm("ln")),
        replace(NARROW, norm=Norm("bn")),
        replace(NARROW, model_options={"width": 8, "depth": 3}),
    ],
    ids=["groups", "ln", "bn", "depth"],
)
def test_larger_groups_and_other_norms_are_not(run: Run) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(replace(run, world=WORLDS[0]))


def test_channels_times_positions_count() -> None:
    """Values a group: 2 of 4 channels at 9 positions; 2 channels at 1; 4 of 8 channels at 1; 8 channels at 1."""
    model = nn.Sequential(
        nn.GroupNorm(2, 4),
        nn.AdaptiveAvgPool2d(1),
        nn.GroupNorm(2, 4),
        nn.Flatten(),
        nn.Linear(4, 8),
        nn.GroupNorm(2, 8),
        nn.GroupNorm(1, 8),
    )
    before = [parameter.clone() for parameter in model.parameters()]
    assert small_groups(model, torch.randn(3, 4, 3, 3)) == {"2": (2, 1), "5": (4, 1)}
    assert all(map(torch.equal, before, model.parameters()))
    assert model.training
