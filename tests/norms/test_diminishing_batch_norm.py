"""DiminishingBatchNorm and FullNorm, which train with running statistics, against their recursions."""

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
from syncnorm.norms import DiminishingBatchNorm, FullNorm

C = 3
NAMES = ["diminishing_bn", "full_norm"]
SHAPES = [(7, C), (4, C, 5), (4, C, 3, 2), (2, C, 2, 3, 2)]
CLOSE: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}


def sample(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * (2 + seed) - 1


def layer_of(name: str, **options: Any) -> Any:
    layer: Any = make_norm(name, C, eps=1e-3, **options).double()
    with torch.no_grad():
        for p, values in zip(layer.parameters(), ([0.5, -1.5, 2.0], [0.1, 0.2, -3.0]), strict=False):
            p.copy_(torch.tensor(values))
        layer.running_mean.copy_(torch.tensor([-0.9, -2.0, 0.25]))
        layer.running_var.copy_(torch.tensor([3.7, 0.5, 40.0]))
    return layer


def axes_of(x: Any) -> tuple[int, ...]:
    return (0, *range(2, x.ndim))


def laid(values: Any, x: Any) -> Any:
    return values.reshape(1, -1, *[1] * (x.ndim - 2))


def affine(layer: Any, xhat: Tensor) -> Tensor:
    if layer.weight is None:
        return xhat
    return xhat * laid(layer.weight, xhat) + laid(layer.bias, xhat)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("alpha", "power"), [(1.0, 1.0), (1.0, 2.001), (0.25, 0.0)])
def test_diminishing(shape: tuple[int, ...], alpha: float, power: float) -> None:
    """Outputs, statistics, and gradients for which the statistics are numbers."""
    layer = layer_of("diminishing_bn", alpha=alpha, power=power)
    mu, sigma = layer.running_mean.numpy().copy(), np.sqrt(layer.running_var.numpy() + 1e-3)
    for m in range(1, 5):
        x = sample(*shape, seed=m).requires_grad_()
        values = x.detach().numpy()
        a = alpha / m**power
        mu = a * values.mean(axes_of(x)) + (1 - a) * mu
        sigma = a * np.sqrt(values.var(axes_of(x)) + 1e-3) + (1 - a) * sigma
        expected = affine(layer, (x - laid(torch.from_numpy(mu), x)) / laid(torch.from_numpy(sigma), x))
        y = layer(x)
        torch.testing.assert_close(y, expected, **CLOSE)
        np.testing.assert_allclose(layer.running_mean.numpy(), mu, **CLOSE)
        np.testing.assert_allclose(np.sqrt(layer.running_var.numpy() + 1e-3), sigma, **CLOSE)
        dy = sample(*shape, seed=m + 9)
        inputs = (x, layer.weight, layer.bias)
        for one, other in zip(
            torch.autograd.grad(y, inputs, dy), torch.autograd.grad(expected, inputs, dy), strict=True
        ):
            torch.testing.assert_close(one, other, **CLOSE)
    torch.testing.assert_close(copy.deepcopy(layer).eval()(x), y, **CLOSE)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("affine_", [True, False])
def test_full_norm(shape: tuple[int, ...], momentum: float | None, affine_: bool) -> None:
    """The compositional gradient in its two parts: that of y at fixed moments, and dy/du through the batch's u."""
    layer = layer_of("full_norm", momentum=momentum, affine=affine_)
    u = torch.stack([layer.running_mean, layer.running_var + layer.running_mean.square()])
    for m in range(1, 5):
        x, dy = sample(*shape, seed=m).requires_grad_(), sample(*shape, seed=m + 9)
        batch = torch.stack([x.mean(axes_of(x)), x.square().mean(axes_of(x))])
        a = 1 / m if momentum is None else momentum
        u = ((1 - a) * u + a * batch.detach()).requires_grad_()
        xhat = (x - laid(u[0], x)) / (laid(u[1] - u[0].square(), x) + 1e-3).sqrt()
        expected = affine(layer, xhat)
        inputs = (x, u, *layer.parameters())
        direct, to_moments, *to_parameters = torch.autograd.grad(expected, inputs, dy)
        through = torch.autograd.grad(batch, x, to_moments)[0]
        y = layer(x)
        torch.testing.assert_close(y, expected, **CLOSE)
        found = torch.autograd.grad(y, (x, *layer.parameters()), dy)
        for one, other in zip(found, (direct + through, *to_parameters), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)
        u = u.detach()
        torch.testing.assert_close(layer.running_mean, u[0], **CLOSE)
        torch.testing.assert_close(layer.running_var, u[1] - u[0].square(), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(layer.eval()(x), expected, rtol=1e-11, atol=1e-11)


def test_full_norm_of_the_newest_batch_alone_is_batch_norm() -> None:
    layer, x = layer_of("full_norm", momentum=1.0), sample(4, C, 5).requires_grad_()
    plain = nn.BatchNorm1d(C, eps=1e-3).double()
    plain.load_state_dict(layer.state_dict())
    dy = sample(4, C, 5, seed=3)
    torch.testing.assert_close(layer(x), plain(x), **CLOSE)
    found, right = (torch.autograd.grad(norm(x), x, dy)[0] for norm in (layer, plain))
    torch.testing.assert_close(found, right, **CLOSE)


def test_divergence_is_said() -> None:
    layer = layer_of("diminishing_bn")
    layer(sample(4, C))
    state = copy.deepcopy(layer.state_dict())
    x = sample(4, C)
    x[2, 1] = float("inf")
    with pytest.raises(ValueError, match=r"DiminishingBatchNorm\(3\) diverged: the batch of step 2 has statistics"):
        layer(x)
    assert all(torch.equal(layer.state_dict()[key], value) for key, value in state.items())


def test_full_norm_models_train_stacked_as_one_by_one() -> None:
    assert_stacked_equals_loop(small_networks(partial(make_norm, "full_norm")), (2, 6, 6))


@pytest.mark.parametrize("name", NAMES)
def test_two_forwards_before_their_backwards(name: str) -> None:
    layer, twin = layer_of(name), layer_of(name)
    inputs = [sample(4, C, seed=seed).requires_grad_() for seed in range(2)]
    first, _ = [layer(x) for x in inputs]
    found = torch.autograd.grad(first.square().sum(), inputs[0])[0]
    right = torch.autograd.grad(twin(inputs[0]).square().sum(), inputs[0])[0]
    torch.testing.assert_close(found, right, **CLOSE)


@pytest.mark.parametrize("name", NAMES)
def test_copies_states_and_the_way_back(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, C, 3), nn.BatchNorm2d(C), nn.ReLU()).double().eval()
    x = sample(4, 2, 6, 6)
    before = model(x)
    assert torch.equal(convert(model, name)(x), before)
    model.train()(x)
    loaded = convert(nn.Sequential(nn.Conv2d(2, C, 3), nn.BatchNorm2d(C), nn.ReLU()).double(), name)
    loaded.load_state_dict(model.state_dict())
    twins, y = [copy.deepcopy(model), loaded], model(x)
    assert all(torch.equal(twin(x), y) for twin in twins)
    learnt = model.eval()(x)
    assert not torch.equal(learnt, before)
    assert torch.equal(revert(model)(x), learnt)


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


def test_mistakes_get_a_sentence() -> None:
    for kind in (DiminishingBatchNorm, FullNorm):
        with pytest.raises(ValueError, match=rf"{kind.__name__}\(3\) got an input of shape \(4, 2\)"):
            kind(C)(torch.randn(4, 2))
        with pytest.raises(ValueError, match=rf"{kind.__name__}\(3\) got one value per channel"):
            kind(C)(torch.randn(1, C))
        x = torch.randn(4, C, requires_grad=True)
        y = checkpoint(nn.Sequential(kind(C), nn.Sigmoid()), x, use_reentrant=False)
        with pytest.raises(ValueError, match=f"{kind.__name__} under activation checkpointing"):
            y.sum().backward()
    for options in ({"alpha": 0}, {"alpha": 1.5}, {"power": -1}):
        key, value = next(iter(options.items()))
        with pytest.raises(UserError, match=f"{key} is {value}: it must be"):
            make_norm("diminishing_bn", C, **options)


def test_its_training_is_exported_as_one_graph() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), DiminishingBatchNorm(4)).double()
    x, twin = torch.randn(5, 3, 4, 4, dtype=torch.float64), copy.deepcopy(model)
    exported = torch.export.export(model, (x,)).module()
    for _ in range(2):
        torch.testing.assert_close(exported(x), twin(x))
    torch.testing.assert_close(dict(exported.named_buffers())["1.running_var"], twin[1].running_var)
