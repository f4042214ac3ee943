"""RMSNorm, FilterResponseNorm and EvoNorm against their formulas in NumPy and in finite differences."""

import copy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from stacked_norms import assert_stacked_equals_loop, small_networks
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from syncnorm import convert, make_norm, revert
from syncnorm.errors import UserError

C = 4
NAMES = ["rms", "frn", "evonorm_s0", "evonorm_b0"]
SHAPES = [(4, C, 5), (4, C, 3, 2), (2, C, 2, 3, 2)]
CLOSE: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}
OPTIONS: dict[str, dict[str, Any]] = {"rms": {"bias": True}, "frn": {"learn_eps": True}, "evonorm_s0": {"groups": 2}}


def sample(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def layer_of(name: str, **options: Any) -> Any:
    layer: Any = make_norm(name, C, eps=1e-3, **{**OPTIONS.get(name, {}), **options}).double()
    with torch.no_grad():
        for place, p in enumerate(layer.parameters()):
            p.copy_(sample(C, seed=10 + place))
        for buffer in layer.buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.tensor([0.5, 4.0, 9.0, 1.0]))
    return layer


def in_numpy(name: str, layer: Any, x: np.ndarray) -> np.ndarray:
    """Return the formula's output without weight and bias, or the threshold."""
    positions = tuple(range(2, x.ndim))

    def laid(p: Tensor) -> np.ndarray:
        return p.detach().numpy().reshape(1, -1, *[1] * (x.ndim - 2))

    if name == "rms":
        return x / np.sqrt((x**2).mean((1, *positions), keepdims=True) + 1e-3)
    if name == "frn":
        eps = 1e-3 if layer.extra_eps is None else 1e-3 + np.abs(laid(layer.extra_eps))
        square = (x**2).mean(positions, keepdims=True) if positions else x**2
        return x / np.sqrt(square + eps)
    if name == "evonorm_s0":
        grouped = x.reshape(len(x), layer.groups, -1)
        std = np.sqrt(grouped.var(-1, keepdims=True) + 1e-3)
        gate = 1 / (1 + np.exp(-laid(layer.v) * x))
        return (grouped / std).reshape(x.shape) * gate
    var = x.var((0, *positions), keepdims=True) if layer.training else laid(layer.running_var)
    own = x.var(positions, keepdims=True)
    return x / np.maximum(np.sqrt(var + 1e-3), laid(layer.v) * x + np.sqrt(own + 1e-3))


def expected_of(name: str, layer: Any, x: Tensor) -> np.ndarray:
    y = in_numpy(name, layer, x.detach().numpy())
    for p, combine in ((layer.weight, np.multiply), (layer.bias, np.add), (getattr(layer, "tau", None), np.maximum)):
        if p is not None:
            y = combine(y, p.detach().numpy().reshape(1, -1, *[1] * (x.ndim - 2)))
    return y


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_formula(name: str, shape: tuple[int, ...], affine: bool, training: bool) -> None:
    layer = layer_of(name, affine=affine).train(training)
    x = sample(*shape)
    expected = expected_of(name, layer, x)
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, **CLOSE)


@pytest.mark.parametrize(("name", "options"), [("rms", {}), ("evonorm_s0", {}), ("frn", {"learn_eps": True})])
def test_formula_for_vectors(name: str, options: dict[str, Any]) -> None:
    layer, x = layer_of(name, **options), sample(5, C)
    np.testing.assert_allclose(layer(x).detach().numpy(), expected_of(name, layer, x), **CLOSE)


def test_plain_filter_response_norm() -> None:
    layer, x = layer_of("frn", tlu=False, learn_eps=False), sample(2, C, 3, 3)
    assert layer.tau is layer.extra_eps is None
    np.testing.assert_allclose(layer(x).detach().numpy(), expected_of("frn", layer, x), **CLOSE)


def test_starting_values() -> None:
    frn = make_norm("frn", C, learn_eps=True)
    assert frn.tau.tolist() == [0] * C
    torch.testing.assert_close(frn.extra_eps, torch.full((C,), 1e-4))
    for name in ("evonorm_s0", "evonorm_b0"):
        assert make_norm(name, C).v.tolist() == [1] * C
    assert make_norm("rms", C).bias is None
    assert make_norm("evonorm_s0", 64).groups == 32


@pytest.mark.parametrize(("channels", "right"), [(64, 4), (48, 3), (24, 1), (8, 1), (1024, 32)])
def test_one_position_gets_groups_of_sixteen_channels_by_default(channels: int, right: int) -> None:
    layer, given = make_norm("evonorm_s0", channels), make_norm("evonorm_s0", channels, groups=right)
    for shape in ((5, channels), (5, channels, 1, 1)):
        x = torch.randn(shape)
        assert torch.equal(layer(x), given(x))
    wide = torch.randn(5, channels, 2, 1)
    assert torch.equal(layer(wide), make_norm("evonorm_s0", channels, groups=layer.groups)(wide))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [True, False])
def test_gradients(name: str, training: bool) -> None:
    """Against finite differences, which know nothing of autograd; second derivatives as well."""
    layer = layer_of(name).train(training)
    names = [key for key, _ in layer.named_parameters()]

    def output(x: Tensor, *parameters: Tensor) -> Tensor:
        twin = copy.deepcopy(layer)
        found: Tensor = torch.func.functional_call(twin, dict(zip(names, parameters, strict=True)), (x,))
        return found

    inputs = (sample(3, C, 2, 2).requires_grad_(), *[p.detach().clone().requires_grad_() for p in layer.parameters()])
    assert torch.autograd.gradcheck(output, inputs)
    assert torch.autograd.gradgradcheck(output, inputs)


@pytest.mark.parametrize("momentum", [0.3, None])
def test_the_running_variance_of_b0(momentum: float | None) -> None:
    layer = layer_of("evonorm_b0", momentum=momentum)
    expected = layer.running_var.numpy().copy()
    for step in range(3):
        x = sample(4, C, 3, 2, seed=step)
        layer(x)
        newest = 1 / (step + 1) if momentum is None else momentum
        expected += newest * (x.numpy().var((0, 2, 3), ddof=1) - expected)
    np.testing.assert_allclose(layer.running_var.numpy(), expected, **CLOSE)
    layer.eval()(sample(4, C, 3, 2, seed=8))
    np.testing.assert_allclose(layer.running_var.numpy(), expected, **CLOSE)


def test_a_recomputed_batch_counts_once() -> None:
    layer, twin, x = layer_of("evonorm_b0"), layer_of("evonorm_b0"), sample(4, C, 3).requires_grad_()
    checkpoint(nn.Sequential(layer, nn.Sigmoid()), x, use_reentrant=False).sum().backward()
    nn.Sigmoid()(twin(x)).sum().backward()
    for key, value in twin.state_dict().items():
        assert torch.equal(layer.state_dict()[key], value)
    assert torch.equal(layer.v.grad, twin.v.grad)


@pytest.mark.parametrize("name", NAMES)
def test_copies_and_states(name: str) -> None:
    layer, loaded = layer_of(name), make_norm(name, C, eps=1e-3, **OPTIONS.get(name, {})).double()
    layer(sample(3, C, 2, 2, seed=4))
    loaded.load_state_dict(layer.state_dict())
    twins, x = [copy.deepcopy(layer), loaded], sample(3, C, 2, 2)
    y = layer(x)
    assert all(torch.equal(twin(x), y) for twin in twins)


@pytest.mark.parametrize("name", NAMES)
def test_there_and_back_with_what_was_learnt(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, C, 3), nn.BatchNorm2d(C), nn.ReLU()).double().eval()
    x = sample(4, 2, 6, 6)
    before, norm = model(x), model[1]
    convert(model, name)
    assert not torch.allclose(model(x), before)
    assert torch.equal(revert(model)(x), before)
    convert(model, name)
    with torch.no_grad():
        model[1].weight.fill_(3)
    assert revert(model)[1] is norm
    assert norm.weight.tolist() == [3] * C


@pytest.mark.parametrize("name", NAMES)
def test_mixed_precision(name: str) -> None:
    model = nn.Sequential(nn.Conv2d(2, C, 3), make_norm(name, C))
    x = torch.randn(8, 2, 6, 6)
    expected = copy.deepcopy(model)(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=5e-2, atol=5e-2)
    assert model.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", NAMES)
def test_stacked_models_train_as_one_by_one(name: str) -> None:
    assert_stacked_equals_loop(small_networks(partial(make_norm, name)), (2, 6, 6))


def test_mistakes_get_a_sentence() -> None:
    for name in NAMES:
        layer = make_norm(name, C)
        with pytest.raises(ValueError, match=rf"{type(layer).__name__}\(4\) got an input of shape \(2, 3, 5\)"):
            layer(torch.randn(2, 3, 5))
    for name, options in (("frn", {}), ("evonorm_b0", {}), ("evonorm_s0", {"groups": C})):
        with pytest.raises(ValueError, match="got one value per channel and sample"):
            make_norm(name, C, **options)(torch.randn(2, C))
    with pytest.raises(ValueError, match=r"EvoNormB0\(4\) got no value per channel"):
        make_norm("evonorm_b0", C)(torch.randn(0, C, 3))
    with pytest.raises(UserError, match="4 channels do not divide into 3 groups: choose a divisor"):
        make_norm("evonorm_s0", C, groups=3)
    with pytest.raises(UserError, match="unknown option 'group': did you mean 'groups'"):
        make_norm("evonorm_s0", C, group=2)
