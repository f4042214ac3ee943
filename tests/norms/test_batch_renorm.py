"""BatchRenorm against its formula in NumPy and in plain autograd."""

import copy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from stacked_norms import assert_stacked_equals_loop, small_networks
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from syncnorm import convert, make_norm, revert
from syncnorm.errors import UserError
from syncnorm.norms import BatchRenorm

C = 3
SHAPES = [(7, C), (4, C, 5), (4, C, 3, 2), (2, C, 2, 3, 2)]
CLOSE: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}
AT_ONCE = {"warmup": 0, "r_end": 0, "d_end": 0}


def sample(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def layer_of(**options: Any) -> BatchRenorm:
    layer = BatchRenorm(C, **{"r_max": 1.5, "d_max": 0.4, **AT_ONCE, **options}).double()
    with torch.no_grad():
        for p, values in zip(layer.parameters(), ([0.5, -1.5, 2.0], [0.1, 0.2, -3.0]), strict=False):
            p.copy_(torch.tensor(values))
        layer.running_mean.copy_(torch.tensor([-0.9, -2.0, 0.25]))
        layer.running_var.copy_(torch.tensor([3.7, 0.5, 40.0]))
    return layer


def laid(values: Any, x: Any) -> Any:
    return values.reshape(1, -1, *[1] * (x.ndim - 2))


def in_numpy(x: Tensor, mu: np.ndarray, sigma: np.ndarray, r_max: float, d_max: float, eps: float) -> Any:
    """Return (xhat, m, s) as the paper's algorithm 1 has them."""
    values = x.detach().numpy()
    axes = (0, *range(2, values.ndim))
    m, s = values.mean(axes), np.sqrt(values.var(axes) + eps)
    r, d = np.clip(s / sigma, 1 / r_max, r_max), np.clip((m - mu) / sigma, -d_max, d_max)
    return (values - laid(m, values)) / laid(s, values) * laid(r, values) + laid(d, values), m, s


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("momentum", [0.3, None])
def test_outputs_and_statistics(shape: tuple[int, ...], affine: bool, momentum: float | None) -> None:
    """Over three batches, so that the averages of the standard deviation are seen to be that."""
    layer = layer_of(affine=affine, momentum=momentum, eps=1e-3)
    mu, sigma = layer.running_mean.numpy().copy(), np.sqrt(layer.running_var.numpy() + 1e-3)
    for step in range(3):
        x = sample(*shape, seed=step)
        xhat, m, s = in_numpy(x, mu, sigma, 1.5, 0.4, 1e-3)
        weight, bias = (layer.weight, layer.bias) if affine else (torch.ones(C), torch.zeros(C))
        expected = xhat * laid(weight.detach().numpy(), xhat) + laid(bias.detach().numpy(), xhat)
        np.testing.assert_allclose(layer(x).detach().numpy(), expected, **CLOSE)
        newest = 1 / (step + 1) if momentum is None else momentum
        mu, sigma = mu + newest * (m - mu), sigma + newest * (s - sigma)
        np.testing.assert_allclose(layer.running_mean.numpy(), mu, **CLOSE)
        np.testing.assert_allclose(layer.running_var.numpy(), sigma**2 - 1e-3, **CLOSE)
    x = sample(*shape, seed=9)
    values = (x.numpy() - laid(mu, x)) / laid(sigma, x)
    if affine:
        values = values * laid(layer.weight.detach().numpy(), x) + laid(layer.bias.detach().numpy(), x)
    np.testing.assert_allclose(layer.eval()(x).detach().numpy(), values, **CLOSE)


def test_gradients() -> None:
    """Of the formula in plain operations, r and d held as numbers: one inside its bounds, two clipped."""
    layer, x = layer_of(), sample(4, C, 3, 2).requires_grad_()
    mu, sigma = layer.running_mean.clone(), (layer.running_var + 1e-5).sqrt()
    m = x.mean((0, 2, 3), keepdim=True)
    s = (x.var((0, 2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
    r = (s.flatten() / sigma).detach().clamp(1 / 1.5, 1.5)
    d = ((m.flatten() - mu) / sigma).detach().clamp(-0.4, 0.4)
    assert r[0] not in (1 / 1.5, 1.5)
    assert abs(d[0]) != 0.4
    assert r[1] == 1.5
    assert d[1] == 0.4
    weight, bias = (p.detach().clone().requires_grad_() for p in (layer.weight, layer.bias))
    expected = ((x - m) / s * laid(r, x) + laid(d, x)) * laid(weight, x) + laid(bias, x)
    dy = sample(4, C, 3, 2, seed=5)
    right = torch.autograd.grad(expected, (x, weight, bias), dy)
    found = torch.autograd.grad(layer(x), (x, layer.weight, layer.bias), dy)
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_without_clips_training_is_evaluation() -> None:
    layer, x = layer_of(r_max=1e9, d_max=1e9), sample(4, C, 5)
    evaluated = copy.deepcopy(layer).eval()(x)
    torch.testing.assert_close(layer(x), evaluated, **CLOSE)


def test_the_ramp() -> None:
    layer = BatchRenorm(C, r_max=3, d_max=5, warmup=4, r_end=9, d_end=6)
    seen = []
    for _ in range(12):
        seen.append([float(bound) for bound in layer.bounds()])
        layer(torch.randn(4, C))
    r = [1 + 2 * min(max(step - 3, 0) / 6, 1) for step in range(12)]
    d = [5 * min(max(step - 3, 0) / 3, 1) for step in range(12)]
    np.testing.assert_allclose(seen, np.stack([r, d], 1), **CLOSE)
    assert r[3] == 1
    assert r[9] == 3
    assert d[6] == 5


def test_warmup_is_batch_norm() -> None:
    layer, x = layer_of(warmup=1, r_end=1, d_end=1), sample(4, C, 5)
    expected = F.batch_norm(x, None, None, layer.weight, layer.bias, True)
    torch.testing.assert_close(layer(x), expected, **CLOSE)
    assert not torch.allclose(layer(x), expected)


def test_copies_and_states_go_on_where_they_were() -> None:
    layer = layer_of(warmup=2, r_end=4, d_end=4)
    for step in range(3):
        layer(sample(4, C, seed=step))
    loaded = layer_of(warmup=2, r_end=4, d_end=4)
    loaded.load_state_dict(layer.state_dict())
    twins = [copy.deepcopy(layer), loaded]
    x = sample(5, C, seed=7)
    y = layer(x)
    for twin in twins:
        assert torch.equal(twin(x), y)
        assert all(torch.equal(twin.state_dict()[key], value) for key, value in layer.state_dict().items())


def test_there_and_back() -> None:
    """Statistics learnt as a BatchRenorm evaluate in the batch norm that comes back as they did in it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, C, 3), nn.BatchNorm2d(C), nn.ReLU()).double()
    x = sample(4, 2, 6, 6)
    before = model.eval()(x)
    assert torch.equal(convert(model, "brn", **AT_ONCE)(x), before)
    model.train()(x)
    learnt = model.eval()(x)
    assert not torch.equal(learnt, before)
    assert torch.equal(revert(model)(x), learnt)


def test_mixed_precision() -> None:
    model = nn.Sequential(nn.Conv2d(2, C, 3), BatchRenorm(C, **AT_ONCE))
    x = torch.randn(8, 2, 6, 6)
    expected = copy.deepcopy(model)(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.bfloat16
    assert model[1].running_var.dtype == torch.float32
    torch.testing.assert_close(y.float(), expected, rtol=5e-2, atol=5e-2)
    assert model.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("momentum", [0.1, None])
def test_stacked_models_train_as_one_by_one(momentum: float | None) -> None:
    assert_stacked_equals_loop(small_networks(partial(BatchRenorm, momentum=momentum, **AT_ONCE)), (2, 6, 6))


def test_mistakes_get_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"BatchRenorm\(3\) got an input of shape \(4, 2\)"):
        BatchRenorm(C)(torch.randn(4, 2))
    for n, values in ((1, "one value"), (0, "no value")):
        with pytest.raises(ValueError, match=rf"BatchRenorm\(3\) got {values} per channel .* a variance needs two"):
            BatchRenorm(C)(torch.randn(n, C))
    for options, sentence in (
        ({"r_max": 0.5}, "r_max is 0.5: it must be at least 1"),
        ({"d_max": -1}, "d_max is -1: it must be at least 0"),
        ({"r_end": 10}, "r_end is 10, before the end of the warmup at 5000"),
        ({"track_running_stats": False}, "write track_running_stats=True"),
    ):
        with pytest.raises(UserError, match=sentence):
            make_norm("brn", C, **options)
    x = torch.randn(4, C, requires_grad=True)
    y = checkpoint(nn.Sequential(BatchRenorm(C), nn.Sigmoid()), x, use_reentrant=False)
    with pytest.raises(ValueError, match="BatchRenorm under activation checkpointing"):
        y.sum().backward()
