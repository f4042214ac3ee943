"""Effective samples: the estimator against numbers with a known dependence, and what a run stores of them."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from syncnorm import Moments, convert
from syncnorm.config import Data, Devices, Norm, Optim, Run
from syncnorm.models import make_model
from syncnorm.training import fit
from syncnorm.training.profiles.effective_samples import batch_moments, effective_profiles, effective_samples

RNG = np.random.default_rng(0)


def moments_of(values: np.ndarray) -> list[Moments]:
    """Batches (K, m, C) as moments."""
    return [Moments.of(torch.from_numpy(batch), 0) for batch in values]


def written_out(values: np.ndarray) -> float:
    """The formula of the docstring with NumPy, in float64."""
    count, size, _ = values.shape
    means = values.mean(1)
    between = means.var(0, ddof=1)
    variance = ((values - values.mean((0, 1))) ** 2).sum((0, 1)) / (count * size) + between / count
    return float(1 / (between / variance).mean())


def alike(correlation: float, shape: tuple[int, int, int]) -> np.ndarray:
    """Values (K, m, C) with mean 5, of which two of a batch have this correlation, and two of different ones none."""
    count, _, channels = shape
    own, shared = RNG.standard_normal(shape), RNG.standard_normal((count, 1, channels))
    return 5 + math.sqrt(1 - correlation) * own + math.sqrt(correlation) * shared


def test_it_is_the_formula() -> None:
    values = alike(0.3, (40, 6, 5)) * RNG.uniform(0.1, 10, 5)
    assert effective_samples(moments_of(values)) == pytest.approx(written_out(values), rel=1e-12)


@pytest.mark.parametrize("correlation", [0.0, 0.02, 0.25, 0.9])
def test_it_finds_the_design_effect(correlation: float) -> None:
    """The variance of a mean of m values with correlation r is (1 + (m - 1) r) / m of a value's: Kish 1965."""
    count, size, channels = 200, 32, 50
    truth = size / (1 + (size - 1) * correlation)
    error = math.sqrt(2 / (count * channels))
    assert effective_samples(moments_of(alike(correlation, (count, size, channels)))) == pytest.approx(
        truth, rel=4 * error
    )


def test_both_estimates_are_unbiased_with_few_batches() -> None:
    """Over many draws of three batches, V / var has the mean of its parts' ratio up to the ratio's own bias."""
    correlation, size = 0.5, 4
    values = alike(correlation, (3, size, 200_000))
    # All channels have the same truth, so that sums over channels estimate V and var without a ratio's bias.
    parts = moments_of(values)
    means = torch.stack([part.mean for part in parts])
    between = means.var(0).mean().item()
    together = Moments.pool(parts)
    variance = (together.m2 / (3 * size)).mean().item() + between / 3
    assert between == pytest.approx((1 + (size - 1) * correlation) / size, rel=0.01)
    assert variance == pytest.approx(1, rel=0.01)


def test_limits() -> None:
    copies = np.repeat(RNG.standard_normal((100, 1, 20)), 8, 1)
    assert effective_samples(moments_of(copies)) == pytest.approx(1, rel=0.02)
    balanced = np.concatenate([copies[:, :4], -copies[:, :4]], 1)
    assert effective_samples(moments_of(balanced)) > 1e6
    assert math.isnan(effective_samples(moments_of(np.zeros((5, 8, 2)))))
    with_constant = copies.copy()
    with_constant[..., 3] = 7
    assert effective_samples(moments_of(with_constant)) == pytest.approx(1, rel=0.02)
    with pytest.raises(ValueError, match="1 batches"):
        effective_samples(moments_of(copies[:1]))


def batches(count: int, samples: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(samples, 3, 8, 8, generator=generator, dtype=torch.float64) for _ in range(count)]


def test_each_device_has_moments_of_its_own_and_the_model_is_left_as_it_is() -> None:
    """Of two devices, device r has every second sample from r on; the first layer's input is the convolution's."""
    torch.manual_seed(0)
    model = make_model("small_cnn", (3, 8, 8), 10, width=4).double()
    before = copy.deepcopy(model.state_dict())
    x = batches(3, 4)
    found = batch_moments(model.eval(), x, parts=2)
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert list(found) == ["features.1", "features.5", "features.9"]
    seen = found["features.1"]
    assert len(seen) == 6
    with torch.no_grad():
        expected = model.features[0](x[1][1::2])
    torch.testing.assert_close(seen[3].mean, expected.mean((0, 2, 3)), rtol=1e-12, atol=1e-12)
    assert seen[3].count == 2 * 64


@pytest.mark.parametrize("norm", ["bn", "gn", "frozen_bn", "ws", "none"])
def test_layers_are_those_of_the_norm(norm: str) -> None:
    model = convert(make_model("small_cnn", (3, 8, 8), 10, width=4), norm).double()
    profiles = effective_profiles(batch_moments(model, batches(4, 2)))
    places = ["features.1", "features.5", "features.9"]
    assert profiles["values_per_channel"] == {"layers": places, "values": [128.0, 32.0, 8.0]}
    values = profiles["effective_samples"]["values"]
    assert profiles["effective_samples"]["layers"] == places
    assert all(value > 0 for value in values)


class Varying(nn.Module):
    """A user's model whose last norm gets another number of positions each time."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.calls = nn.BatchNorm2d(3), nn.BatchNorm2d(3), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y: Tensor = self.last(self.first(x)[..., : self.calls])
        return y


def test_a_layer_whose_batches_differ_in_size_is_left_out() -> None:
    assert effective_profiles(batch_moments(Varying().double(), batches(4, 2)))["effective_samples"]["layers"] == [
        "first"
    ]


RUN = Run(
    data=Data("shapes-photo", size=16),
    model="unet",
    model_options={"depth": 2},
    world=Devices(ranks=4, per_device_batch=2, natural_skew=100),
    optim=Optim(epochs=1, lr=1e-9),  # so that all runs have the same weights
    task="segmentation",
)


@pytest.mark.parametrize("norm", ["bn", "sync_bn", "gn", "mabn"])
def test_a_run_stores_what_a_device_or_all_devices_see(norm: str) -> None:
    """A device of a scene of its own sees fewer independent values than one of mixed scenes, and all devices more."""
    run = replace(RUN, norm=Norm(norm), data=replace(RUN.data, train_limit=320, test_limit=20))
    own = fit(run).details["profiles"]
    mixed = fit(replace(run, world=replace(run.world, natural_skew=0.0))).details["profiles"]
    images = 8 if norm == "sync_bn" else 2
    positions = [256, 64, 16, 64, 256]
    assert own["values_per_channel"]["values"] == [images * count for count in positions]
    assert len(own["effective_samples"]["layers"]) == 5
    first = own["effective_samples"]["values"][0], mixed["effective_samples"]["values"][0]
    assert first[0] < first[1] < images * 256 or norm == "sync_bn"
