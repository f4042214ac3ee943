"""What the rows of the registry say of a norm is what its layer does."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from syncnorm import domain, make_norm
from syncnorm.norms import NORMS, NormSpec, norm_names, norm_options, stream
from syncnorm.norms.registry import spec_of

C = 6
OPTIONS: dict[str, dict[str, Any]] = {
    "ghost_bn": {"virtual_ranks": 2},
    "domain_bn": {"domains": 2},
    "eval_norm": {"batch": 2},
}


def sample(seed: int = 0) -> Tensor:
    return torch.randn(4, C, 5, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 + 1


def trained(name: str) -> nn.Module:
    """A layer that has seen two batches, and whose parameters and statistics did not start at ones and zeros."""
    torch.manual_seed(0)
    layer = make_norm(name, C, **OPTIONS.get(name, {})).double()
    with torch.no_grad():
        running = [buffer for name, buffer in layer.named_buffers() if name in ("running_mean", "running_var")]
        for tensor in (*layer.parameters(), *running):
            tensor.add_(torch.rand_like(tensor) / 2)
    for seed in (1, 2):
        call(layer, behind_a_layer(sample(seed)) if name == "cbn" else sample(seed))
    return layer


def behind_a_layer(x: Tensor) -> Tensor:
    """What cross-iteration batch norm asks for: the output of a convolution."""
    weight = torch.eye(C, dtype=torch.float64).view(C, C, 1, 1).requires_grad_()
    return nn.functional.conv2d(x, weight)


def call(layer: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(0)
    with domain(1):
        y: Tensor = layer(x)
    return y.detach()


@pytest.mark.parametrize("name", [name for name, spec in NORMS.items() if spec.by_channel])
def test_a_norm_by_channel_treats_every_channel_by_itself(name: str) -> None:
    layer, x = trained(name), sample()
    other = x.clone()
    other[:, 1:] = sample(5)[:, 1:]
    for mode in (True, False):
        first, second = (call(copy.deepcopy(layer).train(mode), values) for values in (x, other))
        assert torch.equal(first[:, 0], second[:, 0])
        assert not torch.equal(first[:, 1], second[:, 1])
    assert layer.num_features == C
    assert all(parameter.shape == (C,) for parameter in layer.parameters())
    assert all(buffer.shape[-1:] in ((), (C,)) for buffer in layer.buffers())


@pytest.mark.parametrize("name", [name for name, spec in NORMS.items() if callable(spec.fold)])
def test_what_folds_evaluates_as_the_row_says(name: str) -> None:
    layer, x = trained(name).eval(), sample()
    fold = NORMS[name].fold
    assert callable(fold)
    scale, shift = (values.detach().view(1, C, 1, 1) for values in fold(layer))
    torch.testing.assert_close(call(layer, x), x * scale + shift, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", norm_names())
def test_what_normalises_in_evaluation_is_as_told(name: str) -> None:
    """By what an evaluation changes with: the running statistics, the sample's other positions, the batch."""
    layer, x = trained(name).eval(), sample()
    fresh = make_norm(name, C, **OPTIONS.get(name, {})).double().eval()
    fresh.load_state_dict({**fresh.state_dict(), **dict(layer.named_parameters())})
    other = x.clone()
    other[:, :, 1:] = sample(5)[:, :, 1:]
    uses_running = not torch.allclose(call(layer, x), call(fresh, x))
    first = [evaluated(layer, values)[0, :, 0] for values in (x, other)]
    uses_what_is_at_hand = not torch.allclose(*first)
    evaluates = NORMS[name].evaluates
    assert uses_running == (evaluates in ("running", "domain", "corrected") and name != "prediction_bn")
    assert uses_what_is_at_hand == (evaluates in ("corrected", "sample") and not isinstance(layer, nn.Identity))
    if evaluates == "nothing":
        assert torch.equal(call(layer, x), x)
    if evaluates == "domain":
        with domain(0):
            assert not torch.allclose(layer(x), call(layer, x))


def evaluated(layer: nn.Module, x: Tensor) -> Tensor:
    """Evaluate a copy of the layer, which follows a stream if it is one that does."""
    layer = copy.deepcopy(layer)
    if "horizon" not in vars(layer):
        return call(layer, x)
    with stream(layer):
        return call(layer, x)


@pytest.mark.parametrize("name", [name for name, spec in NORMS.items() if spec.weight is not None])
def test_a_norm_of_weights_keeps_the_parameters_of_the_convolution(name: str) -> None:
    convolution = nn.Conv2d(3, C, 3)
    on_weight = NORMS[name].weight
    assert on_weight is not None
    new = on_weight(convolution, {})
    held = {id(parameter) for parameter in new.parameters()}
    assert {id(parameter) for parameter in convolution.parameters()} <= held
    x = torch.randn(2, 3, 6, 6)
    assert new(x).shape == (2, C, 4, 4)
    assert not torch.allclose(new(x), convolution(x)) or name == "weight_norm"
    assert NORMS[name].side == "weights"


def test_options_from_the_world_and_layers_on_ranks_exist() -> None:
    for name, spec in NORMS.items():
        assert set(spec.from_world) <= set(norm_options(name))
        if spec.on_ranks is not None:
            assert {"virtual_ranks", "buffers"} <= set(norm_options(spec.on_ranks))
            assert set(norm_options(name)) - {"bias"} <= set(norm_options(spec.on_ranks))


def test_a_layer_is_found_by_its_class_or_its_bases() -> None:
    class Own(nn.BatchNorm1d):
        pass

    assert spec_of(nn.BatchNorm3d(2)) is NORMS["bn"]
    assert spec_of(Own(2)) is NORMS["bn"]
    assert spec_of(make_norm("hybrid_bn", 2)) is NORMS["hybrid_bn"]
    assert spec_of(nn.SyncBatchNorm(2)) is None
    assert spec_of(nn.Linear(2, 2)) is None


def test_the_defaults_are_the_safe_ones() -> None:
    spec = NormSpec(nn.BatchNorm2d)
    assert spec.sees_batch
    assert spec.by_device({})
    assert not spec.by_channel
    assert isinstance(spec.fold, str)
    assert not spec.adapts
