"""FrozenBatchNorm, ReferenceBatchNorm and HybridBatchNorm against their formulas in NumPy and in plain autograd."""

import copy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from stacked_norms import assert_stacked_equals_loop, small_networks
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from syncnorm import FrozenBatchNorm, HybridBatchNorm, Moments, ReferenceBatchNorm

C = 3
KINDS = [FrozenBatchNorm, ReferenceBatchNorm, HybridBatchNorm]
SHAPES = [(7, C), (4, C, 5), (4, C, 3, 2), (2, C, 2, 3, 2)]
CLOSE: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}


def sample(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def layer_of(kind: type[FrozenBatchNorm], **options: Any) -> FrozenBatchNorm:
    layer = kind(C, **options).double()
    with torch.no_grad():
        for p, values in zip(
            layer.parameters(), ([0.5, -1.5, 2.0], [0.1, 0.2, -3.0], [-2.0, 0.0, 1.5]), strict=False
        ):
            p.copy_(torch.tensor(values))
        layer.running_mean.copy_(torch.tensor([3.0, -2.0, 0.25]))
        layer.running_var.copy_(torch.tensor([0.5, 4.0, 9.0]))
    return layer


def by_channel(values: np.ndarray, dims: int) -> np.ndarray:
    return values.reshape(1, -1, *[1] * (dims - 2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_formula(kind: type[FrozenBatchNorm], shape: tuple[int, ...], training: bool, affine: bool) -> None:
    layer = layer_of(kind, affine=affine, eps=1e-3).train(training)
    x = sample(*shape)
    axes = (0, *range(2, len(shape)))
    mean, var = layer.running_mean.numpy(), layer.running_var.numpy()
    if training and isinstance(layer, HybridBatchNorm):
        a = 1 / (1 + np.exp(-layer.mix.detach().numpy()))
        mean, var = (1 - a) * mean + a * x.numpy().mean(axes), (1 - a) * var + a * x.numpy().var(axes)
    expected = (x.numpy() - by_channel(mean, x.dim())) / np.sqrt(by_channel(var, x.dim()) + 1e-3)
    if affine:
        weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        expected = expected * by_channel(weight, x.dim()) + by_channel(bias, x.dim())
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind: type[FrozenBatchNorm]) -> None:
    """Against finite differences, which know nothing of autograd; second derivatives as well."""
    layer = layer_of(kind).train()
    names = [name for name, _ in layer.named_parameters()]

    def output(x: Tensor, *parameters: Tensor) -> Tensor:
        twin = copy.deepcopy(layer)
        return torch.func.functional_call(twin, dict(zip(names, parameters, strict=True)), (x,))

    inputs = (sample(4, C, 2).requires_grad_(), *[p.detach().clone().requires_grad_() for p in layer.parameters()])
    assert torch.autograd.gradcheck(output, inputs)
    assert torch.autograd.gradgradcheck(output, inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_the_freeze_survives_train(kind: type[FrozenBatchNorm]) -> None:
    model = nn.Sequential(nn.Conv2d(C, C, 1).double(), layer_of(kind))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for training in (True, False, True):
        model.train(training)
        model(sample(4, C, 3, 2)).sum().backward()
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model[1].weight.grad.abs().sum() > 0
    assert model[1].num_batches_tracked == 0


@pytest.mark.parametrize("kind", KINDS)
def test_small_and_empty_batches(kind: type[FrozenBatchNorm]) -> None:
    layer = layer_of(kind).train()
    one, none = sample(1, C), sample(0, C, 3, 2).requires_grad_()
    assert layer(none).shape == none.shape
    layer(none).sum().backward()
    assert layer.weight.grad.tolist() == [0, 0, 0]
    if kind is HybridBatchNorm:
        with pytest.raises(
            ValueError, match=r"HybridBatchNorm\(3\) got one value per channel .* a variance needs two"
        ):
            layer(one)
    else:
        torch.testing.assert_close(layer(one), copy.deepcopy(layer).eval()(one))
    torch.testing.assert_close(layer.eval()(one), layer_of(FrozenBatchNorm)(one), **CLOSE)


def test_what_a_reference_layer_has_seen() -> None:
    layer = layer_of(ReferenceBatchNorm).train()
    batches = [sample(n, C, 3, 2, seed=n) * n + 100 for n in (4, 1, 0, 7)]
    for x in batches:
        layer(x)
    layer.eval()(sample(5, C, 3, 2))
    seen, right = layer.seen(), Moments.of(torch.cat(batches), (0, 2, 3))
    assert seen.count == right.count == 12 * 6
    torch.testing.assert_close(seen.mean, right.mean, **CLOSE)
    torch.testing.assert_close(seen.m2, right.m2, **CLOSE)
    everything = torch.cat(batches).transpose(0, 1).flatten(1).numpy()
    np.testing.assert_allclose(seen.var(1).numpy(), everything.var(1, ddof=1), **CLOSE)
    layer.forget_seen()
    assert layer.seen().count == 0
    torch.testing.assert_close(seen.mean, right.mean, **CLOSE)
    layer.train()(batches[0])
    torch.testing.assert_close(layer.seen().mean, Moments.of(batches[0], (0, 2, 3)).mean, **CLOSE)


def test_a_recomputed_batch_is_seen_once() -> None:
    layer = layer_of(ReferenceBatchNorm).train()
    block = nn.Sequential(layer, nn.Sigmoid())  # the recomputation ends with the last tensor that it is made for
    checkpoint(block, sample(4, C).requires_grad_(), use_reentrant=False).sum().backward()
    assert layer.seen().count == 4


def test_seen_moments_are_no_part_of_the_state_but_follow_the_model() -> None:
    layer = ReferenceBatchNorm(C).train()
    assert layer.state_dict().keys() == nn.BatchNorm2d(C).state_dict().keys()
    layer(sample(4, C).float())
    twin = copy.deepcopy(layer).bfloat16()
    twin(sample(4, C).bfloat16())
    assert (layer.seen().count, twin.seen().count) == (4, 8)
    assert layer.seen_mean.dtype == torch.float32
    assert twin.seen_count.dtype == torch.int64


@pytest.mark.parametrize("kind", [FrozenBatchNorm, ReferenceBatchNorm, HybridBatchNorm, nn.BatchNorm2d])
@pytest.mark.parametrize("affine", [True, False])
def test_stacked_models_train_as_one_by_one(kind: type[nn.Module], affine: bool) -> None:
    models = small_networks(partial(kind, affine=affine))
    assert_stacked_equals_loop(models, (2, 6, 6))
    if kind is ReferenceBatchNorm:
        assert models[0][1].seen().count == 2 * 5 * 16


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_precision_keeps_the_inputs_type(kind: type[FrozenBatchNorm]) -> None:
    layer = kind(C).train()
    x = sample(8, C, 4).bfloat16()
    assert layer(x).dtype == torch.bfloat16
    torch.testing.assert_close(layer(x).float(), layer(x.float()), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_mistakes_get_a_sentence(kind: type[FrozenBatchNorm]) -> None:
    for training in (True, False):
        with pytest.raises(ValueError, match=rf"{kind.__name__}\(3\) got an input of shape \(4, 2\)"):
            kind(C).train(training)(torch.randn(4, 2))
    with pytest.raises(ValueError, match=f"{kind.__name__} normalises with running statistics"):
        kind(C, track_running_stats=False)
