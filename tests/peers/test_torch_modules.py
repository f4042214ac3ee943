"""The contract of torch's module tests (test_modules.py, test_nn.py): what any layer owes for its table of inputs.

The inputs are ours: every constructor option that changes what a batch norm computes, times every shape that it
takes, with torch's own layer as the reference. Other norms are in tests/norms.
"""

import copy
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from syncnorm import GhostBatchNorm, SyncBatchNorm, make_norm

C = 3
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "eps and momentum": {"eps": 1e-3, "momentum": 0.3},
    "mean of batches": {"eps": 1e-3, "momentum": None},
    "no affine": {"affine": False},
    "untracked": {"track_running_stats": False},
    "neither": {"affine": False, "track_running_stats": False},
}
SHAPES = {"2d": (4, C), "3d": (4, C, 5), "4d": (2, C, 3, 4), "5d": (2, C, 2, 3, 2)}
EMPTY = {"no sample": (0, C), "no position": (4, C, 0), "no image": (0, C, 3, 4)}
TORCHS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
OURS: dict[str, Callable[..., nn.Module]] = {
    "sync": SyncBatchNorm,
    "ghost": lambda channels, **options: GhostBatchNorm(channels, virtual_ranks=1, **options),
}
CASES = [pytest.param(*case, id=" ".join(case)) for case in itertools.product(OURS, OPTIONS, SHAPES)]
PER_SAMPLE: dict[str, tuple[dict[str, Any], Callable[[], nn.Module]]] = {
    "gn": ({"groups": 2}, lambda: nn.GroupNorm(2, 4)),
    "gn alone": ({"groups": 4}, lambda: nn.GroupNorm(4, 4)),
    "ln": ({}, lambda: nn.GroupNorm(1, 4)),
    "in": ({}, lambda: nn.InstanceNorm2d(4, affine=True)),
}


def x_of(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 + 1


def pair(ours: str, options: str, shape: tuple[int, ...]) -> tuple[nn.Module, nn.Module]:
    """Return our layer and torch's, in float64, with the same random weights."""
    torch.manual_seed(0)
    theirs = TORCHS[len(shape)](C, **OPTIONS[options]).double()
    for parameter in theirs.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    mine = OURS[ours](C, **OPTIONS[options]).double()
    mine.load_state_dict(theirs.state_dict(), strict=ours == "sync")
    return mine, theirs


def outcome(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Return output and gradients."""
    leaf = x.clone().requires_grad_()
    y = layer(leaf)
    return [y.detach(), *torch.autograd.grad(y.pow(3).sum(), [leaf, *layer.parameters()])]


@pytest.mark.parametrize(("ours", "options", "shape"), CASES)
def test_two_steps_and_an_evaluation_are_torchs(ours: str, options: str, shape: str) -> None:
    mine, theirs = pair(ours, options, SHAPES[shape])
    x = x_of(SHAPES[shape])
    for training in (True, True, False):
        found, expected = (outcome(layer.train(training), x) for layer in (mine, theirs))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(mine.state_dict()[name], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", EMPTY)
def test_an_input_without_values_is_torchs(options: str, shape: str) -> None:
    """But torch counts such a batch, which has no statistics."""
    mine, theirs = pair("sync", options, EMPTY[shape])
    for training in (True, False):
        found, expected = (outcome(layer.train(training), x_of(EMPTY[shape])) for layer in (mine, theirs))
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b)
    for name, value in theirs.state_dict().items():
        assert name == "num_batches_tracked" or torch.equal(mine.state_dict()[name], value)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(("ours", "options", "shape"), CASES)
def test_derivatives_are_those_of_the_outputs(ours: str, options: str, shape: str, training: bool) -> None:
    """First and second derivatives, numerically, in the input, the weight and the bias."""
    layer, _ = pair(ours, options, SHAPES[shape])
    layer(x_of(SHAPES[shape]))
    layer.train(training)
    names = [name for name, _ in layer.named_parameters()]

    def call(x: Tensor, *parameters: Tensor) -> Tensor:
        alone = copy.deepcopy(layer)  # its statistics are those of the first call each time
        y: Tensor = torch.func.functional_call(alone, dict(zip(names, parameters, strict=True)), (x,))
        return y

    inputs = (
        x_of(SHAPES[shape]).requires_grad_(),
        *(p.detach().clone().requires_grad_() for p in layer.parameters()),
    )
    assert gradcheck(call, inputs, fast_mode=True)
    assert gradgradcheck(call, inputs, fast_mode=True)


@pytest.mark.parametrize("name", PER_SAMPLE)
def test_norms_of_a_sample_are_torchs(name: str) -> None:
    options, build = PER_SAMPLE[name]
    mine, theirs = make_norm(name.split()[0], 4, **options).double(), build().double()
    for parameter in mine.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    theirs.load_state_dict(mine.state_dict())
    x = x_of((3, 4, 5, 2))
    for training in (True, False):
        for a, b in zip(outcome(mine.train(training), x), outcome(theirs.train(training), x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("ours", OURS)
def test_what_any_module_owes(ours: str) -> None:
    """Hooks run once, in order; train, eval, to, requires_grad_ and zero_grad return or change what torch's do."""
    layer, _ = pair(ours, "default", (4, C))
    x, seen = x_of((4, C)).requires_grad_(), []
    layer.register_forward_pre_hook(lambda module, inputs: seen.append("before"))
    layer.register_forward_hook(lambda module, inputs, output: seen.append("after"))
    layer.register_full_backward_hook(lambda module, to_inputs, from_outputs: seen.append("backward"))
    layer(x).sum().backward()
    assert seen == ["before", "after", "backward"]
    assert layer.eval() is layer.train() is layer.to(torch.float64) is layer.requires_grad_(True) is layer
    layer.zero_grad()
    assert all(parameter.grad is None for parameter in layer.parameters())
    y = layer.eval()(x)
    twin = pickle.loads(pickle.dumps(pair(ours, "default", (4, C))[0]))
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin.eval()(x), y)
    before = x.detach().clone()
    layer.train()(x)
    assert torch.equal(x, before)
