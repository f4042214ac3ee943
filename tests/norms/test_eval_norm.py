"""EvalNorm against every batch there could be, ExampleWeighedBatchNorm against its formula in NumPy."""

import copy
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from stacked_norms import assert_stacked_equals_loop, small_networks
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from syncnorm import convert, make_norm, revert
from syncnorm.errors import UserError
from syncnorm.norms import EvalNorm

C = 3
NAMES = ["eval_norm", "example_bn"]
OPTIONS: dict[str, dict[str, Any]] = {"eval_norm": {"batch": 3}, "example_bn": {"alpha": 0.3}}
SHAPES = [(6, C), (5, C, 4), (4, C, 3, 2), (3, C, 2, 3, 2)]
CLOSE: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}


def sample(*shape: int, seed: int = 1) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    offset = torch.randn(shape[0], shape[1], *[1] * (len(shape) - 2), dtype=torch.float64, generator=g)
    return torch.randn(shape, dtype=torch.float64, generator=g) * 2 + 3 * offset - 1


def layer_of(name: str, **options: Any) -> Any:
    layer: Any = make_norm(name, C, eps=1e-3, **{**OPTIONS[name], **options}).double()
    with torch.no_grad():
        for p, values in zip(layer.parameters(), ([0.5, -1.5, 2.0], [0.1, 0.2, -3.0]), strict=False):
            p.copy_(torch.tensor(values))
        layer.running_mean.copy_(torch.tensor([-0.9, -2.0, 0.25]))
        layer.running_var.copy_(torch.tensor([3.7, 0.5, 40.0]))
    return layer


def finished(layer: Any, x: np.ndarray, mean: np.ndarray, var: np.ndarray) -> np.ndarray:
    """Return y for samples x with statistics (N, C)."""
    laid = (*mean.shape, *[1] * (x.ndim - 2))
    y = (x - mean.reshape(laid)) / np.sqrt(var.reshape(laid) + 1e-3)
    if layer.weight is not None:
        shape = (1, -1, *[1] * (x.ndim - 2))
        y = y * layer.weight.detach().numpy().reshape(shape) + layer.bias.detach().numpy().reshape(shape)
    return y


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_eval_norm_is_the_mean_over_all_batches(shape: tuple[int, ...], batch: int) -> None:
    """The population is a handful of samples; the n - 1 others are each of them in turn, with replacement."""
    layer, x = layer_of("eval_norm", batch=batch).eval(), sample(*shape)
    values = x.numpy().reshape(*shape[:2], -1)
    mu, s2 = values.mean(2), values.var(2)
    with torch.no_grad():
        layer.running_mean.copy_(torch.from_numpy(mu.mean(0)))
        layer.running_within.copy_(torch.from_numpy(s2.mean(0)))
        layer.running_between.copy_(torch.from_numpy(mu.var(0)))
        layer.spreads_seen.fill_(1)
    mean, var = np.zeros_like(mu), np.zeros_like(mu)
    others = list(product(range(len(x)), repeat=batch - 1))
    for i in range(len(x)):
        for rest in others:
            together = values[[i, *rest]].transpose(1, 0, 2).reshape(C, -1)
            mean[i] += together.mean(1) / len(others)
            var[i] += together.var(1) / len(others)
    np.testing.assert_allclose(layer(x).detach().numpy(), finished(layer, x.numpy(), mean, var), **CLOSE)


@pytest.mark.parametrize("momentum", [0.3, None])
def test_spreads_follow_in_training(momentum: float | None) -> None:
    layer = layer_of("eval_norm", momentum=momentum)
    within, between = np.zeros(C), np.zeros(C)
    for step in range(3):
        x = sample(4, C, 3, 2, seed=step)
        layer(x)
        layer(sample(1, C, 3, 2))  # says nothing of the spread between samples
        values = x.numpy().reshape(4, C, -1)
        a = 1 if step == 0 else 1 / (step + 1) if momentum is None else momentum
        within += a * (values.var(2).mean(0) - within)
        between += a * (values.mean(2).var(0, ddof=1) - between)
    np.testing.assert_allclose(layer.running_within.numpy(), within, **CLOSE)
    np.testing.assert_allclose(layer.running_between.numpy(), between, **CLOSE)
    assert layer.spreads_seen == 3


def test_before_training_all_variance_is_within() -> None:
    layer, x = layer_of("eval_norm", batch=2).eval(), sample(4, C, 5)
    values = x.numpy()
    mu, s2 = values.mean(2), values.var(2)
    mean, total = layer.running_mean.numpy(), layer.running_var.numpy()
    expected = finished(layer, values, (mu + mean) / 2, s2 / 2 + total / 2 + (mu - mean) ** 2 / 4)
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, **CLOSE)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("affine", [True, False])
def test_example_weighing(shape: tuple[int, ...], alpha: float, affine: bool) -> None:
    layer, x = layer_of("example_bn", alpha=alpha, affine=affine).eval(), sample(*shape)
    values = x.numpy().reshape(*shape[:2], -1)
    running = layer.running_mean.numpy()
    first = (1 - alpha) * running + alpha * values.mean(2)
    second = (1 - alpha) * (layer.running_var.numpy() + running**2) + alpha * (values**2).mean(2)
    expected = finished(layer, x.numpy(), first, second - first**2)
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_training_is_batch_norm(name: str) -> None:
    layer, x = layer_of(name), sample(4, C, 3, 2).requires_grad_()
    plain = nn.BatchNorm2d(C, eps=1e-3).double()
    plain.load_state_dict(layer.state_dict(), strict=False)
    dy = sample(4, C, 3, 2, seed=4)
    y, expected = layer(x), plain(x)
    torch.testing.assert_close(y, expected, **CLOSE)
    found = torch.autograd.grad(y, (x, *layer.parameters()), dy)
    for one, other in zip(found, torch.autograd.grad(expected, (x, *plain.parameters()), dy), strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[key], value, **CLOSE)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_evaluation(name: str) -> None:
    layer = layer_of(name).eval()
    assert torch.autograd.gradcheck(layer, (sample(3, C, 2, 2).requires_grad_(),))


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_is_evaluated_alike_in_any_batch(name: str) -> None:
    layer, x = layer_of(name), sample(6, C, 3, 2)
    layer(sample(4, C, 3, 2, seed=3))
    layer.eval()
    torch.testing.assert_close(layer(x[2:3]), layer(x)[2:3], **CLOSE)
    assert layer(x[:0]).shape == (0, C, 3, 2)


@pytest.mark.parametrize("name", NAMES)
def test_a_recomputed_batch_counts_once(name: str) -> None:
    layer, twin, x = layer_of(name), layer_of(name), sample(4, C).requires_grad_()
    checkpoint(nn.Sequential(layer, nn.Sigmoid()), x, use_reentrant=False).sum().backward()
    twin(x)
    for key, value in twin.state_dict().items():
        assert torch.equal(layer.state_dict()[key], value)


@pytest.mark.parametrize("name", NAMES)
def test_copies_states_and_the_way_back(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, C, 3), nn.BatchNorm2d(C), nn.ReLU()).double().eval()
    x = sample(4, 2, 6, 6)
    before = model(x)
    convert(model, name, **OPTIONS[name])
    assert not torch.allclose(model(x), before)
    assert torch.equal(revert(model)(x), before)
    convert(model, name, **OPTIONS[name]).train()(x)
    loaded = convert(nn.Sequential(nn.Conv2d(2, C, 3), nn.BatchNorm2d(C), nn.ReLU()), name, **OPTIONS[name]).double()
    loaded.load_state_dict(model.state_dict())
    y = model.eval()(x)
    assert all(torch.equal(twin.eval()(x), y) for twin in (copy.deepcopy(model), loaded))


@pytest.mark.parametrize("name", NAMES)
def test_stacked_models_train_as_one_by_one(name: str) -> None:
    assert_stacked_equals_loop(small_networks(partial(make_norm, name, **OPTIONS[name])), (2, 6, 6))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [True, False])
def test_mixed_precision(name: str, training: bool) -> None:
    model = nn.Sequential(nn.Conv2d(2, C, 3), make_norm(name, C, **OPTIONS[name])).train(training)
    x = torch.randn(8, 2, 6, 6)
    expected = copy.deepcopy(model)(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=5e-2, atol=5e-2)


def test_mistakes_get_a_sentence() -> None:
    for training in (True, False):
        with pytest.raises(ValueError, match=r"EvalNorm\(3\) got an input of shape \(4, 2\)"):
            EvalNorm(C, batch=2).train(training)(torch.randn(4, 2))
    with pytest.raises(ValueError, match=r"EvalNorm\(3\) got one value per channel"):
        EvalNorm(C, batch=2)(torch.randn(1, C))
    for name, options, sentence in (
        ("eval_norm", {}, "batch"),
        ("eval_norm", {"batch": 0}, "batch is 0: it must be at least 1"),
        ("example_bn", {"alpha": 1.1}, "alpha is 1.1: it is a share, from 0 to 1"),
    ):
        with pytest.raises(UserError, match=sentence):
            make_norm(name, C, **options)
