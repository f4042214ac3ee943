"""Gradient norms layer by layer: what they are, and that measuring them changes nothing."""

import copy
import json
import random
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syncnorm import convert, domain
from syncnorm.config import Data, Devices, Norm, Optim, Run
from syncnorm.errors import UserError
from syncnorm.models import make_model
from syncnorm.norms import norm_names
from syncnorm.training import fit
from syncnorm.training.profiles.gradients import gradient_norms, gradient_profile

OPTIONS = {"ghost_bn": {"virtual_ranks": 2}, "domain_bn": {"domains": 1}, "eval_norm": {"batch": 8}}
SHORT = Run(
    data=Data("digits", train_limit=160, test_limit=60),
    model_options={"width": 4},
    world=Devices(ranks=2, per_device_batch=4),
    optim=Optim(epochs=1),
)


def batch(samples: int = 8, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 1, 8, 8, generator=generator, dtype=dtype)
    return x, torch.randint(10, (samples,), generator=generator)


def test_they_are_the_gradients_by_each_layers_output() -> None:
    """Two linear layers in float64, against derivatives written out: p - onehot over N, and back through the ReLU."""
    x, y = batch(dtype=torch.float64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 10)).double()
    hidden = model[1](model[0](x))
    at_logits = (model[3](hidden.relu()).softmax(1) - F.one_hot(y, 10)) / len(x)
    at_hidden = (at_logits @ model[3].weight) * (hidden > 0)
    norms = gradient_norms(model, x, y)
    assert list(norms) == ["1", "3"]
    assert norms["1"] == pytest.approx(at_hidden.norm().item(), rel=1e-12)
    assert norms["3"] == pytest.approx(at_logits.norm().item(), rel=1e-12)


class Twice(nn.Module):
    """Calls its layers against the order of their names, one of them twice, and overwrites outputs in place."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(10, 10), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(self.a(self.b(x.flatten(1)).relu_()).relu_())


def test_layers_come_in_the_order_of_their_calls_and_a_layer_called_twice_counts_both() -> None:
    x, y = batch(dtype=torch.float64)
    model = Twice().double()
    b = model.b(x.flatten(1))
    first = model.a(b.relu())
    second = model.a(first.relu())
    at = torch.autograd.grad(F.cross_entropy(second, y), [b, first, second])
    norms = gradient_norms(model, x, y)
    assert list(norms) == ["b", "a"]
    assert norms["b"] == pytest.approx(at[0].norm().item(), rel=1e-12)
    assert norms["a"] == pytest.approx((at[1].square().sum() + at[2].square().sum()).sqrt().item(), rel=1e-12)


def test_frozen_layers_have_a_gradient_at_their_output() -> None:
    x, y = batch()
    model = make_model("mlp", (1, 8, 8), 10)
    expected = gradient_norms(model, x, y)
    assert gradient_norms(model.requires_grad_(False), x, y) == expected
    assert min(expected.values()) > 0


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("norm", norm_names())
@domain(0)
def test_a_model_with_any_norm_is_left_as_it_was(norm: str) -> None:
    """Also in the middle of training, where a norm remembers steps: the next step is the one without measuring."""
    torch.manual_seed(0)
    model = convert(make_model("small_cnn", (1, 8, 8), 10, width=4), norm, **OPTIONS.get(norm, {}))
    x, y = batch()
    for _ in range(3):
        F.cross_entropy(model(x), y).backward()
    unmeasured = copy.deepcopy(model)
    model.features[0].eval()
    before, modes = state_of(model), [layer.training for layer in model.modules()]
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    seeds = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    norms = gradient_norms(model, x, y)
    assert len(norms) == 4
    assert all(value >= 0 for value in norms.values())
    assert torch.equal(seeds[0], torch.get_rng_state())
    assert seeds[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    assert modes == [layer.training for layer in model.modules()]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(torch.equal(gradients[name], p.grad) for name, p in model.named_parameters() if name in gradients)
    torch.manual_seed(1)
    after = model.train()(x)
    torch.manual_seed(1)
    assert torch.equal(after, unmeasured(x))


def test_dropout_acts_and_is_what_the_next_step_would_draw() -> None:
    x, y = batch()
    model = make_model("ic_mlp", (1, 8, 8), 10, dropout=0.5)
    assert gradient_norms(model, x, y) == gradient_norms(model.eval(), x, y)
    torch.manual_seed(7)
    other = gradient_norms(model, x, y)
    torch.manual_seed(8)
    assert gradient_norms(model, x, y) != other


def test_what_overflows_is_said_as_none() -> None:
    x, y = batch()
    model = make_model("mlp", (1, 8, 8), 10, "none")
    with torch.no_grad():
        model.layers[1].weight.fill_(float("inf"))
    assert not all(map(np.isfinite, gradient_norms(model, x, y).values()))
    profile = gradient_profile(model, x, y)
    assert profile is not None
    assert profile["layers"] == ["layers.1", "layers.4", "layers.7"]
    assert None in profile["values"]
    json.dumps(profile, allow_nan=False)


class Uncopied(nn.Module):
    """A user's own model that cannot be copied: it holds a tensor with a history."""

    def __init__(self, pixels: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(pixels, classes)
        self.norm = nn.BatchNorm1d(classes)
        self.kept = self.linear.weight * 2

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x.flatten(1)))


def test_a_model_that_cannot_be_copied_trains_without_a_profile() -> None:
    with pytest.raises(UserError, match="measured on a copy, and Uncopied cannot be copied"):
        gradient_norms(Uncopied(64, 10), *batch())
    result = fit(replace(SHORT, model="test_gradients:Uncopied", model_options={}))
    assert "profiles" not in result.details


@pytest.mark.parametrize("norm", ["bn", "gn", "cbn", "mabn"])
def test_a_run_has_its_profiles(norm: str) -> None:
    world = Devices(per_device_batch=8)
    result = fit(replace(SHORT, norm=Norm(norm), world=world))
    profiles = result.details["profiles"]
    gradients, samples = list(profiles)[:2], list(profiles)[2:]
    assert gradients == ["gradient_norm_initial", "gradient_norm_final"]
    assert samples == ["effective_samples", "values_per_channel"]
    assert profiles["values_per_channel"]["layers"] == ["features.1", "features.5", "features.9"]
    assert result.details["layers"]["features.5"]["depth"] == 2
    for profile in map(profiles.__getitem__, gradients):
        assert profile["layers"] == ["features.0", "features.4", "features.8", "classifier"]
        assert all(value > 0 for value in profile["values"])
    assert profiles["gradient_norm_initial"] != profiles["gradient_norm_final"]
    json.dumps(asdict(result), allow_nan=False)


@pytest.mark.parametrize(
    ("model", "norm", "options"),
    [
        ("small_cnn", "bn", {}),
        ("small_cnn", "sync_bn", {}),
        ("small_cnn", "brn", {}),
        ("ic_mlp", "bn", {"dropout": 0.4}),
        ("binary_mlp", "bn", {"depth": 2}),
    ],
)
def test_measuring_changes_no_number_of_a_run(
    model: str, norm: str, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = replace(SHORT, model=model, model_options=options, norm=Norm(norm))
    measured = fit(run)
    assert "profiles" in measured.details
    monkeypatch.setattr(sys.modules["syncnorm.devices.training"], "gradient_profile", lambda *_: None)
    unmeasured = fit(run)
    assert "profiles" not in unmeasured.details
    assert measured.metrics == unmeasured.metrics  # with the norm of all parameters
    assert measured.history == unmeasured.history
