"""Layers for test time and for streams, against their formulas in NumPy and against PyTorch's batch norm."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from syncnorm import convert, make_norm, recalibrate
from syncnorm.errors import UserError
from syncnorm.norms import AlphaBatchNorm, InstanceAwareBatchNorm, PredictionBatchNorm

C = 3
CLOSE: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}
SHAPES = [(7, C), (4, C, 5), (4, C, 3, 2), (2, C, 2, 3, 2)]
RULES = [
    ("prediction_bn", {}),
    ("prediction_bn", {"prior_count": 6}),
    ("alpha_bn", {"alpha": 0.25}),
    ("alpha_bn", {}),
]


def sample(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def layer_of(name: str, **options: Any) -> nn.Module:
    layer = make_norm(name, C, **options).double()
    with torch.no_grad():
        if layer.weight is not None:
            layer.weight.copy_(torch.tensor([0.5, -1.5, 2.0]))
            layer.bias.copy_(torch.tensor([0.1, 0.2, -3.0]))
        layer.running_mean.copy_(torch.tensor([3.0, -2.0, 0.25]))
        layer.running_var.copy_(torch.tensor([0.5, 4.0, 9.0]))
    return layer


def along(values: np.ndarray, dims: int) -> np.ndarray:
    return values.reshape(1, -1, *[1] * (dims - 2))


def finished(layer: nn.Module, x: np.ndarray, mean: np.ndarray, var: np.ndarray) -> np.ndarray:
    y = (x - mean) / np.sqrt(var + layer.eps)
    if layer.weight is None:
        return y
    return y * along(layer.weight.detach().numpy(), x.ndim) + along(layer.bias.detach().numpy(), x.ndim)


@pytest.mark.parametrize(("name", "options"), RULES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("affine", [True, False])
def test_source_and_batch_are_mixed(name: str, options: dict[str, Any], shape: tuple[int, ...], affine: bool) -> None:
    layer = layer_of(name, affine=affine, eps=1e-3, **options).eval()
    before = copy.deepcopy(layer.state_dict())
    x, axes = sample(*shape), (0, *range(2, len(shape)))
    n, prior = shape[0], options.get("prior_count", 0)
    share = prior / (prior + n) if name == "prediction_bn" else options.get("alpha", 0.9)
    source_mean, source_var = layer.running_mean.numpy(), layer.running_var.numpy()
    mean = share * source_mean + (1 - share) * x.numpy().mean(axes)
    ddof = int(prior > 0)  # what PyTorch would keep as running variance
    var = share * source_var + (1 - share) * x.numpy().var(axes, ddof=ddof)
    expected = finished(layer, x.numpy(), along(mean, x.dim()), along(var, x.dim()))
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, **CLOSE)
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


def test_the_ends_of_the_rules() -> None:
    x = sample(5, C, 4)
    source = layer_of("bn").eval()
    training = torch.nn.functional.batch_norm(x, None, None, source.weight, source.bias, True, 0.0, source.eps)
    for layer, expected in [
        (layer_of("prediction_bn"), training),
        (layer_of("prediction_bn", prior_count=1e15), nn.functional.batch_norm(
            x, source.running_mean, source.running_var, source.weight, source.bias)),
        (layer_of("alpha_bn", alpha=0.0), training),
        (layer_of("alpha_bn", alpha=1.0), nn.functional.batch_norm(
            x, source.running_mean, source.running_var, source.weight, source.bias)),
    ]:  # fmt: skip
        torch.testing.assert_close(layer.eval()(x), expected, **CLOSE)


@pytest.mark.parametrize(("name", "options"), RULES)
def test_training_is_pytorchs(name: str, options: dict[str, Any]) -> None:
    layer, x = layer_of(name, momentum=0.3, **options).train(), sample(5, C, 4)
    reference = nn.BatchNorm1d(C, momentum=0.3).double()
    reference.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(x), reference(x), **CLOSE)
    assert all(torch.equal(value, reference.state_dict()[key]) for key, value in layer.state_dict().items())
    block = nn.Sequential(layer, nn.Sigmoid())
    checkpoint(block, x.requires_grad_(), use_reentrant=False).sum().backward()
    reference(x.detach())
    assert torch.equal(layer.running_mean, reference.running_mean)


@pytest.mark.parametrize(("name", "options"), [*RULES[:3], ("iabn", {"k": 0.7})])
@pytest.mark.parametrize("training", [True, False])
def test_gradients(name: str, options: dict[str, Any], training: bool) -> None:
    """Against finite differences, which know nothing of autograd; second derivatives as well."""
    layer = layer_of(name, **options).train(training)

    def output(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(copy.deepcopy(layer), {"weight": weight, "bias": bias}, (x,))

    inputs = (sample(4, C, 3).requires_grad_(), *[p.detach().clone().requires_grad_() for p in layer.parameters()])
    assert torch.autograd.gradcheck(output, inputs)
    assert torch.autograd.gradgradcheck(output, inputs)


def test_adabn_is_recalibration() -> None:
    """Statistics of all of the target at once are prediction-time batch norm on it, but for n - 1 in place of n."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(C, 4, 2), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 4, 2), nn.BatchNorm1d(4))
    model, target = model.double(), sample(6, C, 5)
    expected = convert(copy.deepcopy(model), "prediction_bn").eval()(target)
    adapted = recalibrate(model, [target]).eval()
    for layer, n in ((adapted[1], 24), (adapted[4], 18)):
        layer.running_var *= (n - 1) / n
    torch.testing.assert_close(adapted(target), expected, **CLOSE)


@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("k", [0.0, 0.5, 4.0])
def test_instance_aware(shape: tuple[int, ...], training: bool, affine: bool, k: float) -> None:
    layer = layer_of("iabn", affine=affine, eps=1e-3, k=k).train(training)
    x, axes = sample(*shape).numpy(), (0, *range(2, len(shape)))
    mean, var = layer.running_mean.numpy().copy(), layer.running_var.numpy().copy()
    if training:
        mean, var = x.mean(axes), x.var(axes, ddof=1)
    means, variances = np.zeros((shape[0], C)), np.zeros((shape[0], C))
    length = int(np.prod(shape[2:]))
    for i in range(shape[0]):
        for c in range(C):
            own = x[i, c].ravel()
            off, off_var = own.mean() - mean[c], own.var(ddof=1) - var[c]
            chance = k * np.sqrt((var[c] + 1e-3) / length)
            chance_var = k * (var[c] + 1e-3) * np.sqrt(2 / (length - 1))
            means[i, c] = mean[c] + np.sign(off) * max(0.0, abs(off) - chance)
            variances[i, c] = var[c] + np.sign(off_var) * max(0.0, abs(off_var) - chance_var)
    widened = (*means.shape, *[1] * (x.ndim - 2))
    expected = finished(layer, x, means.reshape(widened), variances.reshape(widened))
    np.testing.assert_allclose(layer(torch.tensor(x)).detach().numpy(), expected, **CLOSE)
    if training:
        np.testing.assert_allclose(
            layer.running_mean.numpy(), 0.9 * np.array([3.0, -2.0, 0.25]) + 0.1 * mean, **CLOSE
        )
        np.testing.assert_allclose(layer.running_var.numpy(), 0.9 * np.array([0.5, 4.0, 9.0]) + 0.1 * var, **CLOSE)


def test_instance_aware_evaluation_takes_each_sample_alone() -> None:
    layer, x = layer_of("iabn", k=0.5).eval(), sample(6, C, 4)
    torch.testing.assert_close(torch.cat([layer(part) for part in x.split(1)]), layer(x), **CLOSE)
    plain = nn.functional.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias)
    torch.testing.assert_close(layer_of("iabn", k=1e9).eval()(x), plain, **CLOSE)
    assert not torch.allclose(layer(x), plain)


def test_running_statistics_average_all_batches_without_a_momentum() -> None:
    layer, reference = layer_of("iabn", momentum=None), nn.BatchNorm1d(C, momentum=None).double()
    block = nn.Sequential(layer, nn.Sigmoid())
    for seed in range(3):
        checkpoint(block, sample(4, C, 5, seed=seed).requires_grad_(), use_reentrant=False).sum().backward()
        reference(sample(4, C, 5, seed=seed))
    torch.testing.assert_close(layer.running_mean, reference.running_mean, **CLOSE)
    torch.testing.assert_close(layer.running_var, reference.running_var, **CLOSE)
    assert layer.num_batches_tracked == 3


@pytest.mark.parametrize("kind", [PredictionBatchNorm, AlphaBatchNorm, InstanceAwareBatchNorm])
def test_mixed_precision_keeps_the_inputs_type(kind: Any) -> None:
    layer, x = kind(C).eval(), sample(8, C, 4).bfloat16()
    assert layer(x).dtype == torch.bfloat16
    torch.testing.assert_close(layer(x).float(), layer(x.float()), rtol=2e-2, atol=2e-2)


def test_without_running_statistics_the_batch_counts() -> None:
    x = sample(5, C, 4)
    for name, options in RULES:
        layer = make_norm(name, C, track_running_stats=False, **options).double().eval()
        torch.testing.assert_close(layer(x), nn.functional.batch_norm(x, None, None, training=True), **CLOSE)


def test_mistakes_get_a_sentence() -> None:
    one = torch.randn(1, C)
    with pytest.raises(
        ValueError, match=r"PredictionBatchNorm\(3\) evaluates by the batch alone, and got an input of"
    ):
        PredictionBatchNorm(C).eval()(one)
    mixed = layer_of("prediction_bn", prior_count=1).eval()
    mean = (mixed.running_mean.numpy() + one.double().numpy()) / 2
    expected = finished(mixed, one.double().numpy(), mean, mixed.running_var.numpy())
    np.testing.assert_allclose(mixed(one.double()).detach().numpy(), expected, **CLOSE)
    for kind, bad in [(PredictionBatchNorm, torch.randn(4, 2)), (InstanceAwareBatchNorm, torch.randn(4, 2, 3))]:
        with pytest.raises(ValueError, match=rf"{kind.__name__}\(3\) got an input of shape"):
            kind(C)(bad)
    with pytest.raises(ValueError, match="one value per channel and sample"):
        make_norm("iabn", C, 1)(torch.randn(4, C))
    for name, options, sentence in [
        ("prediction_bn", {"prior_count": -1}, "prior_count is -1: it is a number of samples, at least 0"),
        ("alpha_bn", {"alpha": 1.5}, "alpha is 1.5: it is the share of the running statistics"),
        ("iabn", {"k": -1}, "k is -1"),
        ("iabn", {"track_running_stats": False}, "evaluates by running statistics"),
    ]:
        with pytest.raises(UserError) as caught:
            make_norm(name, C, **options)
        assert sentence in str(caught.value)
