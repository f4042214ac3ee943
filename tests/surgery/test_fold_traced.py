"""Folding of models that can be traced or not, with and without an example, and the comparison of outputs."""

import copy
import pickle
import random
import warnings
from typing import Any

import pytest
import torch
from folded import Uses, noise, pair, quietly, trained
from torch import Tensor, nn

import syncnorm
from syncnorm import batch_norms, convert, fold, fold_report, make_norm, revert
from syncnorm.errors import UserError
from syncnorm.norms import MixStyle


class Branching(nn.Module):
    """A forward that asks the data which way to go, and cannot be traced."""

    def __init__(self, reach: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3))
        self.reach = reach

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            return x
        return self.body(x) + self.body[0](x) if self.reach else self.body(x)


def test_a_model_that_cannot_be_traced() -> None:
    model, x = trained(Branching()).double(), noise(2, 3, 6, 6)
    model.body[2].train()
    before, state = model(x), copy.deepcopy(model.state_dict())
    with pytest.raises(
        UserError, match=r"cannot be traced .*its own forward \(test_fold_traced\.py:\d+\) says 'symbolically"
    ):
        fold(model)
    assert model.body[2].training
    assert not model.body[0].weight.grad_fn
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    with pytest.raises(UserError, match=r"cannot be traced .*layer '1' \(test_fold"):
        fold(nn.Sequential(nn.ReLU(), model))
    with pytest.warns(UserWarning, match=r"'body\.3': no convolution or linear layer comes right before it"):
        assert fold(model, example=x) is model
    torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-12)
    assert list(batch_norms(model)) == ["body.3"]


class WithOption(Branching):
    """A forward with an argument that decides which way to go."""

    def forward(self, x: Tensor, features: Tensor | None = None) -> Tensor:
        if features is not None:
            return self.body[0](x) + features
        return self.body[1](self.body[0](x))


def test_arguments_have_their_defaults() -> None:
    model, x = trained(WithOption()).double(), noise(2, 3, 6, 6)
    model.body.pop(3)
    before = model(x)
    torch.testing.assert_close(quietly(model)(x), before, rtol=1e-12, atol=1e-12)
    assert not batch_norms(model)


class Gate(nn.Module):
    """A part without batch norms that cannot be traced."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.mean() < 1e9 else x


def test_a_part_without_batch_norms_may_be_as_it_likes() -> None:
    x, shared = noise(2, 3, 6, 6), nn.Conv2d(3, 3, 1)
    first, second = (nn.Sequential(conv, nn.BatchNorm2d(3)) for conv in (nn.Conv2d(3, 3, 3), shared))
    norms = [make_norm("rms", 3), MixStyle(3), make_norm("evonorm_s0", 3)]
    model = trained(nn.Sequential(first, *norms, Gate(nn.Conv2d(3, 3, 1)), Gate(shared), second)).double()
    before = model(x)
    with pytest.warns(UserWarning, match=r"'6\.1': '5\.inner' is also in a part of the model that cannot be traced"):
        fold(model)
    assert list(batch_norms(model)) == ["6.1"]
    torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-12)


def test_an_example_shows_what_the_order_hides() -> None:
    model, x = trained(Branching(reach=True)).double(), noise(2, 3, 6, 6)
    before = model(x)
    with pytest.raises(UserError, match="folding would change the model's output on the example"):
        fold(model, example=x)
    assert torch.equal(model(x), before)
    assert len(batch_norms(model)) == 2
    tied = nn.Sequential(Branching(), model.body)
    assert "stands in more than one place" in str(
        syncnorm.surgery.folding.plan.sequential_report(nn.Sequential(tied, tied))
    )
    quietly(trained(Uses("after")).double(), example=noise(2, 3, 4, 4))


@pytest.mark.parametrize(
    ("example", "sentence"),
    [
        (noise(0, 3, 6, 6), "no number in the model's output on the example to compare"),
        (noise(1, 3, 6, 6) * float("nan"), "the model's output on the example is not finite"),
        (noise(1, 2, 6, 6), r"the model fails on the example \(torch.float64, \(1, 2, 6, 6\)\): RuntimeError: Given"),
        ("x", r"the model fails on the example \(str\): AttributeError"),
    ],
)
def test_an_example_that_says_nothing(example: Any, sentence: str) -> None:
    model = trained(Branching(reach=True)).double()
    with pytest.raises(UserError, match=sentence):
        fold(model, example=example)
    assert len(batch_norms(model)) == 2


def test_channels_that_are_not_where_they_were_folded_raise() -> None:
    """Linear on (N, L, F) puts its outputs last, where batch norm does not look: L = F alone would pass unseen."""
    model = trained(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))).double()
    assert fold(model)(noise(3, 4)).shape == (3, 4)
    with pytest.raises(AssertionError, match="folded for inputs of 2 dimensions got others"):
        model(noise(3, 4, 4))


def test_a_folded_model_is_one_that_everything_can_be_done_to() -> None:
    model, x = trained(Uses("shared")).double().train(), noise(2, 3, 4, 4)
    before = copy.deepcopy(model).eval()(x)
    model.conv.weight.requires_grad_(False)
    quietly(model)
    assert not model.training
    assert model.norm.training is False
    assert (model.conv.weight.requires_grad, model.other.weight.requires_grad) == (False, True)
    again = torch.fx.symbolic_trace(copy.deepcopy(model))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for twin in (again, copy.deepcopy(model), quietly(model), compiled, pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(twin(x), before, rtol=1e-12, atol=1e-12)
    assert set(model.state_dict()) == {"conv.weight", "conv.bias", "other.weight", "other.bias"}


def test_a_folded_model_can_be_scripted() -> None:
    model, x = quietly(pair(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))), noise(2, 3, 4, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(model)
    assert torch.equal(scripted(x), model(x))


def test_nothing_to_fold() -> None:
    with pytest.raises(UserError, match="on the meta device"):
        fold(pair(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).to("meta"))
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
    assert quietly(model) is model
    assert str(fold_report(model)) == ""
    with pytest.warns(UserWarning, match="no convolution or linear layer"):
        assert isinstance(fold(nn.BatchNorm2d(3)), nn.BatchNorm2d)


class OtherwiseTraced(nn.Module):
    """A forward that does something else than what a trace of it shows."""

    def __init__(self, faint: float = 1.0) -> None:
        super().__init__()
        self.conv, self.norm, self.faint = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), faint

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, torch.fx.Proxy):
            return self.norm(self.conv(x))
        return self.conv(self.norm(x)) * self.faint


@pytest.mark.parametrize("faint", [1.0, 1e-9])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_outputs_are_compared_without_an_example_too(faint: float, dtype: torch.dtype) -> None:
    model, x = trained(OtherwiseTraced(faint)).to(dtype), noise(2, 3, 6, 6, dtype=dtype)
    before, state = model(x), copy.deepcopy(model.state_dict())
    for given in ({}, {"example": x}):
        with pytest.raises(UserError, match=r"would change the model's output on (the example|a made-up batch)"):
            fold(model, **given)
        assert torch.equal(model(x), before)
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert list(batch_norms(model)) == ["norm"]


class Tokens(nn.Module):
    """Two inputs, integers and numbers of another shape."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(7, 6), nn.Conv1d(6, 4, 1)
        self.norm, self.other = nn.BatchNorm1d(4), nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4))

    def forward(self, ids: Tensor, x: Tensor) -> Tensor:
        y = self.norm(self.mix(self.embed(ids).transpose(1, 2)))
        return y + self.other(x)[..., None]


def test_inputs_are_made_up_for_every_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = trained(Tokens()).double(), []
    model.register_forward_pre_hook(lambda module, inputs: seen.append([tuple(x.shape) for x in inputs]))
    inputs = torch.tensor([[1, 2], [3, 4]]), noise(2, 5)
    before = model(*inputs)
    seen.clear()
    torch.testing.assert_close(quietly(model)(*inputs), before, rtol=1e-12, atol=1e-12)
    assert seen[0] == [(2, 32), (2, 5)]
    fixed = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 5))).double()
    fixed.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    quietly(fixed)
    assert seen[-1] == (2, 3, 6, 6)


@pytest.mark.parametrize("weight", [False, True])
@pytest.mark.parametrize("first", [None, False, True])
@pytest.mark.parametrize("second", [None, False, True])
def test_a_new_bias_learns_if_one_that_it_is_made_of_does(
    weight: bool, first: bool | None, second: bool | None
) -> None:
    model = pair(nn.Conv2d(3, 3, 1, bias=first is not None), nn.BatchNorm2d(3, affine=second is not None))
    model[0].weight.requires_grad_(weight)
    for layer, learns in zip(model, (first, second), strict=True):
        if learns is not None:
            layer.bias.requires_grad_(learns)
    quietly(model)
    assert model[0].weight.requires_grad is weight
    assert model[0].bias.requires_grad is bool(first or second)


def test_a_refused_fold_leaves_converted_layers_as_they_were() -> None:
    model, x = trained(OtherwiseTraced()).double(), noise(2, 3, 6, 6)
    before = model(x)
    kinds = [type(layer) for layer in convert(model, "ws").modules()]
    convert(revert(model), "mabn")
    kinds, parameters = [type(layer) for layer in model.modules()], [id(p) for p in model.parameters()]
    with pytest.raises(UserError, match="folding would change"):
        fold(model)
    assert [type(layer) for layer in model.modules()] == kinds
    assert [id(p) for p in model.parameters()] == parameters
    assert torch.equal(revert(model)(x), before)


class Noisy(nn.Module):
    """A forward whose numbers come from Python, in evaluation too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + random.random()


def test_a_random_output_says_nothing() -> None:
    model, x = trained(Noisy()).double(), noise(2, 3, 6, 6)
    random.seed(0)
    before = model(x)
    with pytest.raises(UserError, match="the model's output on the example is random, so it cannot be compared"):
        fold(model, example=x)
    assert list(batch_norms(model)) == ["norm"]
    quietly(model)
    random.seed(0)
    torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-12)


class Pairs(nn.Module):
    """Layers that stand in no Sequential, in a forward that cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(4), nn.Conv2d(3, 4, 3)
        self.second, self.twice, self.in_place = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.third, self.shared, self.rare = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.fourth, self.branch = nn.BatchNorm2d(4), nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        if x.sum() > 1e9:
            return self.branch[0](self.branch[1](self.rare(x)))
        for _ in range(2):
            x = self.twice(self.second(x)).relu()
        x = self.third(self.in_place(x).relu_())
        y = self.shared(x)
        return self.fourth(y) + y


def test_a_run_on_the_example_shows_pairs() -> None:
    model, x = trained(Pairs()).double(), noise(2, 3, 6, 6)
    before = model(x)
    with pytest.warns(UserWarning, match=r"4 of 6 batch norms are not folded .*the example does not reach it"):
        fold(model, example=x)
    torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-12)
    assert list(batch_norms(model)) == ["third", "rare", "fourth", "branch.1"]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Widened(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).double()


def test_outputs_of_a_finer_type_than_the_model_are_compared_in_the_models() -> None:
    torch.manual_seed(0)
    model = Widened(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    for _ in range(3):
        model(torch.randn(4, 3, 9, 9) * 2 + 1)
    x = torch.randn(2, 3, 9, 9)
    before = model.eval()(x)
    folded = fold(model, example=x)
    assert not batch_norms(folded)
    torch.testing.assert_close(folded(x), before, rtol=1e-5, atol=1e-5)
