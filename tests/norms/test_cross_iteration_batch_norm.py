"""CrossIterationBatchNorm against its formula: Jacobians of the moments by `torch.func`, sums in plain tensors."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import jacrev

from syncnorm import convert, make_norm, revert
from syncnorm.errors import UserError
from syncnorm.norms import CrossIterationBatchNorm

C = 3
CLOSE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-11}
KINDS: dict[str, Any] = {
    "linear": (lambda: nn.Linear(4, C), F.linear, (5, 4)),
    "linear without bias": (lambda: nn.Linear(4, C, bias=False), F.linear, (5, 4)),
    "conv1d": (lambda: nn.Conv1d(2, C, 3), F.conv1d, (4, 2, 6)),
    "conv2d": (lambda: nn.Conv2d(2, C, 3, bias=False), F.conv2d, (4, 2, 5, 4)),
    "conv3d": (lambda: nn.Conv3d(2, C, 2), F.conv3d, (2, 2, 3, 3, 3)),
}


def sample(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def model_of(kind: str, **options: Any) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(KINDS[kind][0](), CrossIterationBatchNorm(C, eps=1e-3, **options)).double()
    if options.get("affine", True):
        with torch.no_grad():
            model[1].weight.copy_(torch.tensor([0.5, -1.5, 2.0]))
            model[1].bias.copy_(torch.tensor([0.1, 0.2, -3.0]))
    return model


def moments(z: Tensor) -> tuple[Tensor, Tensor]:
    axes = (0, *range(2, z.dim()))
    return z.mean(axes), z.square().mean(axes)


def normalised(
    apply: Callable[..., Tensor],
    layer: Any,
    past: list[tuple[Tensor, Tensor]],
    x: Tensor,
    eps: float,
    through_weight: bool = False,
) -> Tensor:
    """Return xhat by the mean and mean square of this batch, and of past (input, weight) pairs to first order."""
    today = layer.weight if through_weight else layer.weight.detach()
    z = apply(x, layer.weight, layer.bias)
    means, squares = ([m] for m in moments(z))
    for batch, weight in past:

        def at(w: Tensor, batch: Tensor = batch) -> tuple[Tensor, Tensor]:
            return moments(apply(batch, w, layer.bias.detach() if layer.bias is not None else None))

        change = today - weight
        for row, value, jacobian in zip((means, squares), at(weight), jacrev(at)(weight), strict=True):
            row.append(value + (jacobian * change).flatten(1).sum(1))
    m, s = torch.stack(means), torch.stack(squares)
    valid = (s - m.square() >= 0).double()
    mean = (m * valid).sum(0) / valid.sum(0)
    var = (s * valid).sum(0) / valid.sum(0) - mean.square()
    shape = (1, -1, *[1] * (z.dim() - 2))
    return (z - mean.view(shape)) / (var.view(shape) + eps).sqrt()


@pytest.mark.parametrize("through_weight", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients(kind: str, through_weight: bool) -> None:
    """Five steps of gradient descent with a window of three, large enough steps to move the statistics."""
    model, (_, apply, shape) = model_of(kind, window=3, through_weight=through_weight), KINDS[kind]
    layer, norm = model[0], model[1]
    past: list[tuple[Tensor, Tensor]] = []
    for seed in range(5):
        x = sample(*shape, seed=seed).requires_grad_()
        xhat = normalised(apply, layer, past, x, 1e-3, through_weight)
        by = (1, -1, *[1] * (xhat.dim() - 2))
        expected = xhat * norm.weight.view(by) + norm.bias.view(by)
        y = model(x)
        torch.testing.assert_close(y, expected, **CLOSE)
        if past:
            assert not torch.allclose(y, _batch_norm(model, x))
        dy = sample(*y.shape, seed=seed + 50)
        inputs = (x, layer.weight, norm.weight, norm.bias)
        found, right = torch.autograd.grad(y, inputs, dy), torch.autograd.grad(expected, inputs, dy)
        for one, other in zip(found, right, strict=True):
            torch.testing.assert_close(one, other, **CLOSE)
        past = [(x.detach(), layer.weight.detach().clone()), *past][:2]
        with torch.no_grad():
            layer.weight -= 0.003 * found[1]


def _batch_norm(model: nn.Sequential, x: Tensor) -> Tensor:
    return F.batch_norm(model[0](x), None, None, model[1].weight, model[1].bias, True, 0.0, 1e-3)


def test_through_the_weight_the_gradient_does_not_make_it_grow() -> None:
    """With one and the same batch in the whole window, the gradient has no part along the weight of a channel."""
    along = {}
    for through_weight in (False, True):
        model = model_of("conv2d", window=3, through_weight=through_weight)
        model[1].eps = 0.0
        x = sample(4, 2, 5, 4)
        for _ in range(3):
            y = model(x)
        weight = model[0].weight
        grad = torch.autograd.grad((y * sample(*y.shape, seed=5)).sum(), weight)[0]
        along[through_weight] = float((grad * weight.detach()).flatten(1).sum(1).abs().max())
    assert along[True] < 1e-10 < 1e-2 < along[False]


def test_steps_that_come_out_negative_are_left_out() -> None:
    """After a leap of the weight the first order of the mean square is far off; it must not poison the others."""
    model, (_, apply, shape) = model_of("conv2d", window=4), KINDS["conv2d"]
    past = []
    for seed in range(2):
        x = sample(*shape, seed=seed)
        model(x)
        past.insert(0, (x, model[0].weight.detach().clone()))
        with torch.no_grad():
            model[0].weight.mul_(-3)
    x = sample(*shape, seed=7)
    found = (model(x) - model[1].bias.view(1, -1, 1, 1)) / model[1].weight.view(1, -1, 1, 1)
    torch.testing.assert_close(found, normalised(apply, model[0], past, x, 1e-3), **CLOSE)
    assert found.isfinite().all()


def test_a_large_mean_costs_no_digits() -> None:
    """In float32, at mean / deviation 1e4, where a mean square less a squared mean is noise."""
    model = nn.Sequential(nn.Conv2d(2, C, 3), CrossIterationBatchNorm(C, window=2))
    with torch.no_grad():
        model[0].bias.fill_(1e4)
    twin = copy.deepcopy(model).double()
    for seed in range(2):
        x = sample(8, 2, 6, 6, seed=seed)
        y, expected = model(x.float()), twin(x)
    torch.testing.assert_close(y.double(), expected, rtol=5e-3, atol=5e-3)


def test_running_statistics_and_evaluation_are_batch_norms() -> None:
    model = model_of("conv2d", window=3, momentum=None)
    plain = nn.BatchNorm2d(C, eps=1e-3, momentum=None).double()
    plain.load_state_dict(model[1].state_dict())
    for seed in range(4):
        x = sample(4, 2, 5, 4, seed=seed)
        model(x)
        plain(model[0](x))
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(
            model[1].state_dict()[key], value, rtol=1e-7, atol=1e-7
        )  # 1 / count in float32 there
    torch.testing.assert_close(model.eval()(x), plain.eval()(model[0](x)), rtol=1e-6, atol=1e-6)


def test_burn_in_and_missing_weights_leave_the_own_batch() -> None:
    model = model_of("conv2d", window=3, burn_in=2)
    for seed in range(3):
        x = sample(4, 2, 5, 4, seed=seed)
        torch.testing.assert_close(model(x), _batch_norm(model, x), **CLOSE)
    assert len(model[1]._past) == 1
    x = sample(4, 2, 5, 4, seed=9)
    expected = _batch_norm(model, x)
    with torch.no_grad():
        torch.testing.assert_close(copy.deepcopy(model)(x), expected, **CLOSE)
    frozen = copy.deepcopy(model)
    frozen[0].weight.requires_grad_(False)
    torch.testing.assert_close(frozen(x.clone().requires_grad_()), expected, **CLOSE)
    assert not torch.allclose(model(x), expected)


def test_copies_take_the_window_along_and_states_do_not() -> None:
    model = model_of("conv2d", window=3)
    model(sample(4, 2, 5, 4))
    twin, loaded, x = copy.deepcopy(model), model_of("conv2d", window=3), sample(4, 2, 5, 4, seed=2)
    loaded.load_state_dict(model.state_dict())
    y = model(x)
    assert torch.equal(twin(x), y)
    torch.testing.assert_close(loaded(x), _batch_norm(model, x), **CLOSE)
    assert model[1].state_dict().keys() == nn.BatchNorm2d(C).state_dict().keys()
    assert torch.equal(loaded.eval()(x), model.eval()(x))


def test_a_loaded_state_and_forgotten_statistics_start_the_window_anew() -> None:
    """Past steps were those of other weights."""
    x = sample(4, 2, 5, 4, seed=2)
    for start_anew in (
        lambda model: model.load_state_dict(model_of("conv2d", window=3).state_dict()),
        lambda model: model[1].reset_running_stats(),
    ):
        model = model_of("conv2d", window=3)
        model(sample(4, 2, 5, 4))
        start_anew(model)
        torch.testing.assert_close(model(x), _batch_norm(model, x), **CLOSE)


def test_the_window_moves_with_the_model() -> None:
    model, twin = model_of("conv2d", window=3), model_of("conv2d", window=3).float()
    for seed in range(3):
        x = sample(4, 2, 5, 4, seed=seed)
        if seed == 2:
            twin.double()
            assert all(t.dtype == torch.float64 for step in twin[1]._past for t in vars(step).values())
        y, moved = model(x), twin(x.to(twin[0].weight.dtype))
    assert moved.dtype == torch.float64
    torch.testing.assert_close(moved, y, rtol=1e-5, atol=1e-5)


def test_there_and_back() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, C, 3), nn.BatchNorm2d(C), nn.ReLU()).double()
    x = sample(4, 2, 6, 6)
    before = model.eval()(x)
    assert torch.equal(convert(model, "cbn", window=2)(x), before)
    model.train()
    model(x)
    model(x)
    learnt = model.eval()(x)
    assert not torch.equal(learnt, before)
    assert torch.equal(revert(model)(x), learnt)


def test_mixed_precision() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, C, 3), CrossIterationBatchNorm(C, window=2), nn.Flatten(), nn.Linear(C * 16, 4)
    )
    model.append(CrossIterationBatchNorm(4, window=2))
    twin = copy.deepcopy(model)
    for seed in range(2):
        x = sample(8, 2, 6, 6, seed=seed).float()
        expected = twin(x)
        with torch.autocast("cpu", torch.bfloat16):
            y = model(x)
    assert y.dtype == torch.bfloat16
    assert len(model[1]._past) == len(model[4]._past) == 1
    np.testing.assert_allclose(y.detach().float().numpy(), expected.detach().numpy(), rtol=0.1, atol=0.1)


def test_mistakes_get_a_sentence() -> None:
    norm = CrossIterationBatchNorm(C)
    with pytest.raises(ValueError, match=r"CrossIterationBatchNorm\(3\) got an input of shape \(4, 2\)"):
        norm(torch.randn(4, 2))
    with pytest.raises(ValueError, match="got one value per channel"):
        norm(torch.randn(1, C))
    x = torch.randn(4, C, 3, 3, requires_grad=True)
    for between in (nn.ReLU(), nn.ConvTranspose2d(C, C, 1)):
        with pytest.raises(ValueError, match="needs its input straight from a convolution or linear layer"):
            norm(between(x))
    with pytest.raises(ValueError, match="that is computed from something else"):
        norm(convert(nn.Sequential(nn.Conv2d(C, C, 3)), "ws")(x))
    for options in ({"window": 0}, {"burn_in": -1}):
        with pytest.raises(UserError, match=f"{next(iter(options))} is .*: it must be at least"):
            make_norm("cbn", C, **options)
