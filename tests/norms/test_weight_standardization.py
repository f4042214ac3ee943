"""Scaled weight standardisation against its formula in NumPy, and convolutions that use it."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from stacked_norms import assert_stacked_equals_loop
from torch import Tensor, nn

from syncnorm import convert
from syncnorm.norms import ScaledWSConv1d, ScaledWSConv2d, ScaledWSConv3d, scaled_weight_standardization

CLOSE: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}
KINDS: list[Any] = [(ScaledWSConv1d, F.conv1d), (ScaledWSConv2d, F.conv2d), (ScaledWSConv3d, F.conv3d)]


def in_numpy(weight: Tensor, gain: Tensor) -> np.ndarray:
    """Return gain (W - mean) / (std sqrt(fan_in)), unit by unit."""
    units = weight.detach().numpy().reshape(len(weight), -1)
    std = units.std(1, keepdims=True)
    result = (units - units.mean(1, keepdims=True)) / (std * np.sqrt(units.shape[1]))
    return (gain.detach().numpy()[:, None] * result).reshape(weight.shape)


@pytest.mark.parametrize("shape", [(4, 5), (4, 3, 2), (4, 3, 3, 3), (2, 2, 1, 2, 2)], ids=str)
def test_formula_and_gradients(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weight = (torch.randn(shape, dtype=torch.float64) * 0.3 + 2).requires_grad_()
    gain = torch.randn(shape[0], dtype=torch.float64, requires_grad=True)
    found = scaled_weight_standardization(weight, gain)
    np.testing.assert_allclose(found.detach().numpy(), in_numpy(weight, gain), **CLOSE)
    rows = found.flatten(1)
    torch.testing.assert_close(rows.sum(1), torch.zeros_like(gain), **CLOSE)
    torch.testing.assert_close(rows.norm(dim=1), gain.abs(), **CLOSE)
    assert torch.autograd.gradcheck(scaled_weight_standardization, (weight, gain))
    assert torch.autograd.gradgradcheck(scaled_weight_standardization, (weight, gain))


def test_eps_is_a_floor() -> None:
    """n var = 2 d^2 for a unit (m - d, m + d)."""
    weight = torch.tensor([[5 - 1e-3, 5 + 1e-3], [5 - 1e-1, 5 + 1e-1], [5.0, 5.0]], dtype=torch.float64)
    found = scaled_weight_standardization(weight, torch.ones(3, dtype=torch.float64), eps=1e-4)
    expected = [[-1e-3 / 1e-2, 1e-3 / 1e-2], [-np.sqrt(0.5), np.sqrt(0.5)], [0, 0]]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("kind", "function"), KINDS)
@pytest.mark.parametrize("bias", [True, False])
def test_convolutions_use_it(kind: Any, function: Any, bias: bool) -> None:
    ndim = KINDS.index((kind, function)) + 1
    torch.manual_seed(0)
    layer = kind(4, 6, 3, stride=2, padding=1, groups=2, bias=bias).double()
    assert layer.gain.tolist() == [1] * 6
    with torch.no_grad():
        layer.gain.uniform_(-2, 2)
    x = torch.randn(2, 4, *[5] * ndim, dtype=torch.float64)
    weight = torch.from_numpy(in_numpy(layer.weight, layer.gain))
    expected = function(x, weight, layer.bias, stride=2, padding=1, groups=2)
    torch.testing.assert_close(layer(x), expected, **CLOSE)
    layer(x).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in layer.parameters())


def networks() -> list[nn.Module]:
    models: list[nn.Module] = []
    for seed in range(3):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
        models.append(convert(model.double(), "scaled_ws"))
    return models


def test_stacked_models_train_as_one_by_one() -> None:
    assert_stacked_equals_loop(networks(), (2, 6, 6), steps=3)


def test_copies_pickles_and_states() -> None:
    model, other = networks()[:2]
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    before = model(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), before)
        with torch.no_grad():
            twin[0].gain.add_(1)
        assert torch.equal(model(x), before)
    assert list(model.state_dict()) == ["0.weight", "0.bias", "0.gain", "4.weight", "4.bias"]
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), before)


def test_shorter_types() -> None:
    layer = ScaledWSConv2d(3, 4, 3)
    x = torch.randn(2, 3, 5, 5)
    expected = layer(x)
    y = layer.bfloat16()(x.bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=5e-2, atol=5e-2)
