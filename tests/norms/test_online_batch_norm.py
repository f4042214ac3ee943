"""OnlineBatchNorm against moments of everything that came, in NumPy."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from syncnorm import convert, stream
from syncnorm.errors import UserError
from syncnorm.norms import OnlineBatchNorm

C = 3
CLOSE: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}


def sample(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 + seed


def layer_of(**options: Any) -> OnlineBatchNorm:
    layer = OnlineBatchNorm(C, eps=1e-3, **options).double().eval()
    with torch.no_grad():
        if layer.affine:
            layer.weight.copy_(torch.tensor([0.5, -1.5, 2.0]))
            layer.bias.copy_(torch.tensor([0.1, 0.2, -3.0]))
        layer.running_mean.copy_(torch.tensor([3.0, -2.0, 0.25]))
        layer.running_var.copy_(torch.tensor([0.5, 4.0, 9.0]))
    return layer


@pytest.mark.parametrize("shape", [(C,), (C, 4), (C, 2, 3), (C, 1, 2, 2)], ids=str)
@pytest.mark.parametrize("prior", [0, 2.5, 40])
@pytest.mark.parametrize("horizon", [None, 4])
@pytest.mark.parametrize("affine", [True, False])
def test_source_and_stream_together(
    shape: tuple[int, ...], prior: float, horizon: float | None, affine: bool
) -> None:
    layer = layer_of(prior_count=prior, horizon=horizon, affine=affine)
    before = copy.deepcopy(layer.state_dict())
    source_mean, source_var = layer.running_mean.numpy(), layer.running_var.numpy()
    values, weights = np.zeros((C, 0)), np.zeros(0)
    positions = int(np.prod(shape[1:]))
    with stream(layer):
        for seed, n in enumerate((3, 0, 1, 5, 2)):
            x = sample(n, *shape, seed=seed)
            if horizon is not None and weights.sum() > horizon * positions:
                weights = weights * (horizon * positions / weights.sum())
            values = np.concatenate([values, x.transpose(0, 1).flatten(1).numpy()], 1)
            weights = np.concatenate([weights, np.ones(n * positions)])
            source = prior * positions
            total = source + weights.sum()
            mean = (source * source_mean + values @ weights) / total
            square = source * (source_var + (source_mean - mean) ** 2) + (values - mean[:, None]) ** 2 @ weights
            along = (1, C, *[1] * (len(shape) - 1))
            expected = (x.numpy() - mean.reshape(along)) / np.sqrt((square / total).reshape(along) + 1e-3)
            if affine:
                weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
                expected = expected * weight.reshape(along) + bias.reshape(along)
            np.testing.assert_allclose(layer(x).detach().numpy(), expected, **CLOSE)
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


def test_outside_of_a_stream_it_is_pytorchs() -> None:
    layer, reference = layer_of(), nn.BatchNorm1d(C, eps=1e-3).double().eval()
    reference.load_state_dict(layer.state_dict())
    x = sample(5, C, 4)
    torch.testing.assert_close(layer(x), reference(x), **CLOSE)
    with stream(layer):
        first = layer(x)
        assert not torch.allclose(first, reference(x))
    torch.testing.assert_close(layer(x), reference(x), **CLOSE)
    with stream(layer):  # another user: nothing is left of the one before
        torch.testing.assert_close(layer(x), first, **CLOSE)
    block = nn.Sequential(layer.train(), nn.Sigmoid())
    checkpoint(block, x.requires_grad_(), use_reentrant=False).sum().backward()
    torch.testing.assert_close(layer(x), reference.train()(x), **CLOSE)
    reference(x)
    assert torch.equal(layer.running_var, reference.running_var)


def test_gradients_take_the_statistics_as_given() -> None:
    layer, x = layer_of(prior_count=5), sample(4, C, 3).requires_grad_()
    with stream(layer):
        slope = torch.autograd.grad(layer(x).sum(), x)[0]
        together = copy.deepcopy(layer)
    moments = together.seen
    var = (15 * (layer.running_var + 0) + moments.m2) / 27
    delta = moments.mean - layer.running_mean
    var = var + 15 * 12 / 27**2 * delta.square()
    expected = (layer.weight.detach() / (var + 1e-3).sqrt()).view(1, -1, 1).expand_as(x)
    torch.testing.assert_close(slope, expected, **CLOSE)


@pytest.mark.parametrize("prior", [0, 2.5])
@pytest.mark.parametrize("horizon", [None, 4])
def test_a_stream_that_is_kept_becomes_the_source(prior: float, horizon: float | None) -> None:
    layer = layer_of(prior_count=prior, horizon=horizon)
    source, counted = layer.running_mean.clone(), int(layer.num_batches_tracked)
    batches = [sample(n, C, 4, seed=n) for n in (3, 5, 2)]
    with stream(layer, keep=True):
        for x in batches:
            last = layer(x)
    assert not torch.equal(layer.running_mean, source)
    torch.testing.assert_close(layer(x), last, **CLOSE)  # outside: PyTorch's evaluation, with what was kept
    assert layer.seen is None
    assert int(layer.num_batches_tracked) == counted
    if horizon is None:
        values = torch.cat(batches).transpose(0, 1).flatten(1).numpy()
        share = prior * 4 / (prior * 4 + values.shape[1])
        mean = share * source.numpy() + (1 - share) * values.mean(1)
        var = share * np.array([0.5, 4.0, 9.0]) + (1 - share) * values.var(1)
        var += share * (1 - share) * (values.mean(1) - source.numpy()) ** 2
        np.testing.assert_allclose(layer.running_mean.numpy(), mean, **CLOSE)
        np.testing.assert_allclose(layer.running_var.numpy(), var, **CLOSE)


def test_nothing_is_kept_of_what_was_not_seen_to_its_end() -> None:
    layer = layer_of()
    before = copy.deepcopy(layer.state_dict())
    with stream(layer, keep=True):
        layer(sample(0, C, 4))
        layer.train()
    layer.eval()
    with pytest.raises(ValueError, match="got an input of shape"), stream(layer, keep=True):
        layer(layer(sample(3, C, 4))[:, :2])
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    assert layer.seen is None


def test_a_converted_model_follows_a_user() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(C, 4, 2), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 2, 2), nn.BatchNorm1d(2))
    convert(model.double().eval(), "online_bn", prior_count=0)
    x = sample(6, C, 5)
    expected = convert(copy.deepcopy(model), "prediction_bn").eval()(x)
    with stream(model):
        torch.testing.assert_close(model(x), expected, **CLOSE)
        assert model[4].seen.count == 18


def test_mistakes_get_a_sentence() -> None:
    with (
        pytest.raises(UserError, match="has no layer that follows a stream: convert it to 'online_bn'"),
        stream(nn.BatchNorm1d(3)),
    ):
        pass
    layer = layer_of(prior_count=0)
    with stream(layer), pytest.raises(ValueError, match=r"OnlineBatchNorm\(3\) got one value per channel"):
        layer(sample(1, C))
    with pytest.raises(ValueError, match=r"OnlineBatchNorm\(3\) got an input of shape"):
        layer(sample(4, 2))
    with stream(layer):
        y = checkpoint(nn.Sequential(layer, nn.Sigmoid()), sample(4, C).requires_grad_(), use_reentrant=False).sum()
        with pytest.raises(ValueError, match="OnlineBatchNorm under activation checkpointing"):
            y.backward()
    for options, sentence in [
        ({"prior_count": -1}, "prior_count is -1"),
        ({"horizon": 0}, "horizon is 0"),
        ({"track_running_stats": False}, "starts from running statistics"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            OnlineBatchNorm(C, **options)
