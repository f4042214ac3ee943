"""MovingAverageBatchNorm against its recursion in NumPy, forward and backward."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from syncnorm import convert, make_norm, revert
from syncnorm.errors import UserError
from syncnorm.norms import MovingAverageBatchNorm

C = 3
SHAPES = [(7, C), (4, C, 5), (4, C, 3, 2), (2, C, 2, 3, 2)]
CLOSE: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}


def sample(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * (1 + seed) - 1


def layer_of(**options: Any) -> MovingAverageBatchNorm:
    layer = MovingAverageBatchNorm(C, **{"eps": 1e-3, **options}).double()
    with torch.no_grad():
        for p, values in zip(layer.parameters(), ([0.5, -1.5, 2.0], [0.1, 0.2, -3.0]), strict=False):
            p.copy_(torch.tensor(values))
    return layer


class InNumpy:
    """The recursion, with lists of what the last steps had."""

    def __init__(self, buffer: int, warmup: int, renorm_after: int, momentum: float | None) -> None:
        self.m, self.warmup, self.renorm_after, self.momentum = buffer, warmup, renorm_after, momentum
        self.running, self.chis, self.psis = np.ones(C), [], []

    def step(self, x: np.ndarray, dy: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return y, dx, dweight and dbias."""

        def laid(v: np.ndarray) -> np.ndarray:
            return v.reshape(1, -1, *[1] * (x.ndim - 2))

        axes = (0, *range(2, x.ndim))
        self.chis.append((x**2).mean(axes))
        t = len(self.chis)
        alone = t <= self.m or t < self.warmup
        chi = self.chis[-1] if alone else np.mean(self.chis[-self.m :], 0)
        z = x / np.sqrt(laid(chi) + 1e-3)
        r = np.clip(np.sqrt(chi + 1e-3) / np.sqrt(self.running + 1e-3), 1 / 5, 5)
        if t <= max(self.renorm_after, self.warmup):
            r = np.ones(C)
        newest = 1 / t if self.momentum is None else self.momentum
        self.running = self.running + newest * (chi - self.running)
        g = dy * laid(weight * r)
        self.psis.append((g * z).mean(axes))
        psi = self.psis[-1] if alone else np.mean(self.psis[-self.m :], 0)
        dx = (g - z * laid(psi)) / np.sqrt(laid(chi) + 1e-3)
        return z * laid(weight * r) + laid(bias), dx, (dy * z * laid(r)).sum(axes), dy.sum(axes)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("momentum", [0.3, None])
def test_recursion(shape: tuple[int, ...], momentum: float | None) -> None:
    """Nine steps: own batch up to the fourth, averages from the fifth, r from the seventh."""
    layer, right = layer_of(buffer=3, warmup=5, renorm_after=6, momentum=momentum), InNumpy(3, 5, 6, momentum)
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    for seed in range(9):
        x, dy = sample(*shape, seed=seed).requires_grad_(), sample(*shape, seed=seed + 20)
        y = layer(x)
        found = (y, *torch.autograd.grad(y, (x, layer.weight, layer.bias), dy))
        for one, other in zip(found, right.step(x.detach().numpy(), dy.numpy(), weight, bias), strict=True):
            np.testing.assert_allclose(one.detach().numpy(), other, **CLOSE)
        np.testing.assert_allclose(layer.running_square.numpy(), right.running, **CLOSE)
    assert layer.steps == 9
    x = sample(*shape, seed=3)
    expected = x.numpy() / np.sqrt(right.running.reshape(1, -1, *[1] * (x.dim() - 2)) + 1e-3)
    found_hat = (layer.eval()(x) - layer.bias.view(1, -1, *[1] * (x.dim() - 2))) / layer.weight.view(
        1, -1, *[1] * (x.dim() - 2)
    )
    np.testing.assert_allclose(found_hat.detach().numpy(), expected, rtol=1e-11, atol=1e-11)


def test_alone_it_has_the_gradient_of_its_output() -> None:
    """With a batch of its own, the backward is the derivative of x / sqrt(mean(x^2) + eps)."""
    layer, x, dy = layer_of(), sample(4, C, 2).requires_grad_(), sample(4, C, 2, seed=2)
    found = torch.autograd.grad(layer(x), x, dy)[0]
    plain = x / (x.square().mean((0, 2), keepdim=True) + 1e-3).sqrt() * layer.weight.view(1, -1, 1)
    torch.testing.assert_close(found, torch.autograd.grad(plain, x, dy)[0], **CLOSE)


def test_without_affine() -> None:
    layer, x = layer_of(affine=False), sample(4, C, 2)
    expected = x / (x.square().mean((0, 2), keepdim=True) + 1e-3).sqrt()
    torch.testing.assert_close(layer(x), expected, **CLOSE)


def test_convert_centres_convolutions_and_revert_gives_them_back() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, C, 3), nn.BatchNorm2d(C), nn.ReLU()).double()
    x = sample(4, 2, 6, 6)
    model(x)
    model.eval()
    before, first = model(x), model[0]
    convert(model, "mabn", buffer=2, warmup=0)
    raw = first.weight.detach().numpy()
    centred = torch.from_numpy(raw - raw.reshape(C, -1).mean(1).reshape(C, 1, 1, 1))
    torch.testing.assert_close(model[0](x), nn.functional.conv2d(x, centred, first.bias), **CLOSE)
    assert model[1].weight is not None
    assert model[1].buffer == 2
    assert model[1].steps == 0
    assert torch.equal(revert(model)(x), before)
    assert model[0] is first
    model = convert(model, "mabn", buffer=2, warmup=0).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for seed in range(5):
        optimizer.zero_grad()
        model(sample(4, 2, 6, 6, seed=seed)).square().mean().backward()
        optimizer.step()
    learnt = first.weight.clone()
    assert torch.equal(revert(model)[0].weight, learnt)
    assert not torch.equal(model.eval()(x), before)


def test_copies_and_states_go_on_where_they_were() -> None:
    options: dict[str, Any] = {"buffer": 2, "warmup": 0, "renorm_after": 2}
    layer, loaded = layer_of(**options), layer_of(**options)
    for seed in range(4):
        layer(sample(4, C, seed=seed).requires_grad_()).square().sum().backward()
    loaded.load_state_dict(layer.state_dict())
    twins, x = [copy.deepcopy(layer), loaded], sample(5, C, seed=7)
    results = []
    for each in (layer, *twins):
        leaf = x.clone().requires_grad_()
        y = each(leaf)
        results.append((y, torch.autograd.grad(y.square().sum(), leaf)[0]))
    for y, dx in results[1:]:
        assert torch.equal(y, results[0][0])
        assert torch.equal(dx, results[0][1])


def test_two_forwards_before_their_backwards_have_a_row_each() -> None:
    layer = layer_of(buffer=2, warmup=0)
    inputs = [sample(4, C, seed=seed).requires_grad_() for seed in range(2)]
    outputs = [layer(x) for x in inputs]
    outputs[1].sum().backward()
    assert layer.gradients[0].abs().sum() == 0
    outputs[0].sum().backward()
    assert (layer.gradients != 0).all()


def test_mixed_precision() -> None:
    model = nn.Sequential(nn.Conv2d(2, C, 3), MovingAverageBatchNorm(C, buffer=2, warmup=0))
    x = torch.randn(8, 2, 6, 6)
    twin = copy.deepcopy(model)
    for _ in range(3):
        expected = twin(x)
        with torch.autocast("cpu", torch.bfloat16):
            y = model(x)
        y.float().square().sum().backward()
        expected.square().sum().backward()
    assert y.dtype == torch.bfloat16
    assert model[1].squares.dtype == torch.float32
    torch.testing.assert_close(y.float(), expected, rtol=5e-2, atol=5e-2)
    torch.testing.assert_close(model[1].weight.grad, twin[1].weight.grad, rtol=5e-2, atol=5e-2)


def test_mistakes_get_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"MovingAverageBatchNorm\(3\) got an input of shape \(4, 2\)"):
        MovingAverageBatchNorm(C)(torch.randn(4, 2))
    with pytest.raises(ValueError, match=r"MovingAverageBatchNorm\(3\) got an empty batch"):
        MovingAverageBatchNorm(C)(torch.randn(0, C))
    for options in ({"buffer": 0}, {"warmup": -1}, {"renorm_after": -1}):
        with pytest.raises(UserError, match=f"{next(iter(options))} is .*: it must be at least"):
            make_norm("mabn", C, **options)
    with pytest.raises(UserError, match="norm 'mabn' normalises the weights of convolutions, and the model has none"):
        convert(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), "mabn")
