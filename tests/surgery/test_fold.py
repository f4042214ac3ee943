"""Folded models against the models that they were, whose batch norms are worked out by PyTorch."""

import copy
import pickle
import random
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

import syncnorm
from syncnorm import batch_norms, convert, domain, fold, fold_report, make_norm, revert
from syncnorm.errors import UserError
from syncnorm.models import make_model
from syncnorm.norms import MixStyle, ScaledWSConv2d


def trained(model: nn.Module) -> nn.Module:
    """Give every batch norm statistics and an affine map of its own, far from the neutral ones."""
    g = torch.Generator().manual_seed(5)
    for layer in batch_norms(model).values():
        with torch.no_grad():
            for tensor in (layer.weight, layer.running_var):
                if tensor is not None:
                    tensor.copy_(torch.rand(tensor.shape, generator=g) + 0.3)
            for tensor in (layer.bias, layer.running_mean):
                if tensor is not None:
                    tensor.copy_(torch.randn(tensor.shape, generator=g))
    return model.eval()


def noise(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(6))


def quietly(model: nn.Module, **options: Any) -> nn.Module:
    """Fold, and fail on any warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return fold(model, **options)


SINGLE = [
    (nn.Linear(6, 4), (5, 6)),
    (nn.Linear(6, 4, bias=False), (5, 6)),
    *[
        (kind(6, 4, 3, stride=2, padding=1, groups=groups, bias=bias), (2, 6, *[5] * ndim))
        for ndim, kinds in enumerate(
            [
                (nn.Conv1d, nn.ConvTranspose1d),
                (nn.Conv2d, nn.ConvTranspose2d),
                (nn.Conv3d, nn.ConvTranspose3d),
            ],
            start=1,
        )
        for kind in kinds
        for groups in (1, 2)
        for bias in (True, False)
    ],
    (nn.Conv2d(6, 6, 3, groups=6, padding="same", padding_mode="reflect"), (2, 6, 5, 5)),
]


@pytest.mark.parametrize(("layer", "shape"), SINGLE, ids=lambda part: str(part)[:40])
@pytest.mark.parametrize("affine", [True, False])
def test_every_layer_that_takes_a_batch_norm_in(layer: nn.Module, shape: tuple[int, ...], affine: bool) -> None:
    norm = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(shape)]
    channels = getattr(layer, "out_channels", 4)
    model = trained(nn.Sequential(copy.deepcopy(layer), norm(channels, eps=1e-2, affine=affine))).double()
    x = noise(*shape).requires_grad_()
    before = model(x)
    (slope,) = torch.autograd.grad(before.square().sum(), x)
    assert quietly(model) is model
    assert not batch_norms(model)
    torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(model(x).square().sum(), x)[0], slope, rtol=1e-11, atol=1e-11)


class Dense(nn.Module):
    """A DenseNet in small: norm, activation, convolution, with a norm after the last transition."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(c),
                nn.ReLU(),
                nn.Conv2d(c, 8, 1),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.Conv2d(8, 4, 3, 1, 1),
            )
            for c in (8, 12)
        )
        self.transition = nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 1), nn.AvgPool2d(2))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = torch.cat([x, block(x)], 1)
        x = self.transition(x)
        if mask is not None:
            x = x * mask
        return self.head(x.mean((2, 3)))


def mobile() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6()]
    for _ in range(3):
        layers += [nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6()]
        layers += [nn.Conv2d(8, 8, 1, groups=4, bias=False), nn.BatchNorm2d(8)]
    return nn.Sequential(*layers)


def test_networks_in_float32() -> None:
    torch.manual_seed(0)
    for model, x, left in [
        (make_model("resnet18", (3, 32, 32), 10), noise(2, 3, 32, 32, dtype=torch.float32), []),
        (make_model("resnet20", (3, 16, 16), 10), noise(2, 3, 16, 16, dtype=torch.float32), []),
        (make_model("mlp", (1, 8, 8), 10), noise(2, 1, 8, 8, dtype=torch.float32), []),
        (mobile(), noise(2, 3, 16, 16, dtype=torch.float32), []),
        (Dense(), noise(2, 3, 8, 8, dtype=torch.float32), ["blocks.0.0", "blocks.1.0", "transition.0"]),
    ]:
        if isinstance(model, Dense):
            trained(model)
        else:
            for _ in range(3):  # statistics that fit the data, as after training
                model(x + 0.1 * torch.randn_like(x))
        before = model.eval()(x)
        assert list(fold_report(model).left) == left
        if left:
            with pytest.warns(
                UserWarning, match=r"3 of 6 batch norms are not folded .*'blocks\.0\.0', 'blocks\.1\.0'"
            ):
                fold(model)
        else:
            quietly(model)
        assert list(batch_norms(model)) == left
        assert (model(x) - before).abs().max() <= 1e-5


class Uses(nn.Module):
    """Batch norms in places of every kind; `kind` says which one the forward has."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv, self.other = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        conv, other, norm = self.conv, self.other, self.norm
        forms = {
            "after": lambda: norm(conv(x)),
            "before": lambda: conv(norm(x)),
            "twice": lambda: norm(conv(conv(x))),
            "two consumers": lambda: (y := conv(x)) + norm(y),
            "changed in place": lambda: norm(conv(x).relu_()),
            "unused": lambda: conv(x),
            "function": lambda: norm(F.relu(conv(x))),
            "shared": lambda: norm(other(norm(conv(x)).relu())),
            "shared, not after a convolution": lambda: norm(norm(conv(x))),
            "same convolution again": lambda: norm(conv(norm(conv(x)))),
            "weight read": lambda: norm(conv(x)) + conv.weight.mean(),
            "statistics read": lambda: norm(conv(x)) + norm.running_mean.view(1, -1, 1, 1),
        }
        return forms[self.kind]()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("after", ""),
        ("before", "what comes right before it is no convolution or linear layer"),
        ("twice", "'conv' is used more than once"),
        ("two consumers", "the output of 'conv' is used elsewhere too"),
        ("changed in place", "no convolution"),
        ("unused", "the forward does not reach it"),
        ("function", "no convolution"),
        ("shared", ""),
        ("shared, not after a convolution", "no convolution"),
        ("same convolution again", "'conv' is used more than once"),
        ("weight read", "the weights of 'conv' are read elsewhere"),
        ("statistics read", "its values are read elsewhere"),
    ],
)
def test_only_what_can_be_is_folded(kind: str, reason: str) -> None:
    model = trained(Uses(kind)).double()
    x = noise(2, 3, 4, 4)
    before = model(x)
    report = fold_report(model)
    assert reason in report.left.get("norm", "")
    if reason:
        with pytest.warns(UserWarning, match=r"1 of 1 batch norms are not folded and stay as they are \('norm': "):
            fold(model)
        assert torch.equal(model(x), before)
    else:
        assert report.folded == {"norm": ("conv", "other") if kind == "shared" else ("conv",)}
        torch.testing.assert_close(quietly(model)(x), before, rtol=1e-12, atol=1e-12)
    assert bool(batch_norms(model)) == bool(reason)


class WithResidual(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x


def pair(conv: nn.Module, norm: nn.Module) -> nn.Module:
    return trained(nn.Sequential(conv, norm)).double()


def pruned(index: int) -> nn.Module:
    model = pair(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    prune.random_unstructured(model[index], "weight", 0.5)
    return model


def patched(index: int) -> nn.Module:
    """Return a model of which one layer, and no class, has a forward of its own."""
    model = pair(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    forward = model[index].forward
    model[index].forward = lambda x: forward(x) * 3
    return model


def hooked(index: int) -> nn.Module:
    model = pair(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    model[index].register_forward_hook(lambda layer, inputs, output: output * 2)
    return model


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (
            lambda: pair(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)),
            "keeps no running statistics",
        ),
        (lambda: pair(nn.Conv2d(3, 3, 1), WithResidual(3)), "it is a WithResidual with a forward of its own"),
        (lambda: pair(ScaledWSConv2d(3, 3, 3), nn.BatchNorm2d(3)), "'0' is a ScaledWSConv2d with a forward"),
        (lambda: pair(weight_norm(nn.Conv2d(3, 3, 1)), nn.BatchNorm2d(3)), "'0' computes its weight or bias"),
        (lambda: pruned(1), "it computes its weight or bias"),
        (lambda: patched(0), "'0' is a Conv2d with a forward of its own"),
        (lambda: patched(1), "it is a BatchNorm2d with a forward of its own"),
        (lambda: hooked(0), "'0' has forward hooks"),
        (lambda: hooked(1), "it has forward hooks"),
    ],
)
def test_layers_that_are_left_and_said(build: Any, reason: str) -> None:
    model = build().eval()
    x = noise(2, 3, 4, 4)
    before = model(x)
    with pytest.warns(UserWarning, match=reason):
        fold(model)
    assert torch.equal(model(x), before)
    assert batch_norms(model)


FOLDS = ["bn", "sync_bn", "ghost_bn", "frozen_bn", "reference_bn", "hybrid_bn", "brn", "cbn", "diminishing_bn"]
FOLDS += ["full_norm", "mabn", "mixstyle"]
OPTIONS: dict[str, dict[str, Any]] = {
    "ghost_bn": {"virtual_ranks": 2},
    "eval_norm": {"batch": 2},
    "domain_bn": {"domains": 2},
}


def seen(model: nn.Module) -> nn.Module:
    """Give every norm statistics of its own by training steps."""
    model.train()
    for _ in range(3):
        model(torch.randn(4, 3, 4, 4, dtype=torch.float64) * 2 + 1)
    return model.eval()


@pytest.mark.parametrize("name", FOLDS)
@pytest.mark.parametrize("converted", [True, False])
def test_every_norm_that_evaluates_by_fixed_statistics_folds(name: str, converted: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 2, bias=False), nn.BatchNorm2d(4))
    options = OPTIONS.get(name, {})
    if converted:
        model = seen(convert(plain, name, **options).double())
    else:
        plain[1], plain[3] = (make_norm(name, 4, eps=1e-2, **options) for _ in range(2))
        model = seen(plain.double())
    x = noise(2, 3, 4, 4)
    before = model(x)
    quietly(model)
    torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-12)
    assert [type(layer) for layer in model][::2] == [nn.Conv2d, nn.Conv2d]
    assert set(model.state_dict()) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    torch.testing.assert_close(revert(model)(x), before, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("domain_bn", r"has statistics for each domain: revert\(model, domain=d\) leaves one domain's batch norm"),
        ("eval_norm", "evaluates each sample by the sample's own statistics"),
        ("example_bn", "evaluates each sample by the sample's own statistics"),
        ("iabn", "evaluates each sample by the sample's own statistics"),
        ("prediction_bn", "evaluates by the batch at hand"),
        ("alpha_bn", "evaluates by the batch at hand"),
        ("online_bn", "follows the stream"),
    ],
)
def test_norms_that_look_at_the_sample_stay(name: str, reason: str) -> None:
    model, x = convert(pair(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), name, **OPTIONS.get(name, {})), noise(2, 3, 4, 4)
    with domain(1):
        before = model(x)
        with pytest.warns(UserWarning, match=rf"1 of 1 batch norms are not folded .*'1': it {reason}"):
            fold(model)
        assert torch.equal(model(x), before)
        if name == "domain_bn":
            torch.testing.assert_close(quietly(revert(model, domain=1))(x), before, rtol=1e-12, atol=1e-12)


def test_numbers_that_are_none_stay_out_of_weights() -> None:
    for value, buffer in ((float("nan"), "running_mean"), (float("inf"), "running_mean"), (-1.0, "running_var")):
        model = pair(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        getattr(model[1], buffer)[1] = value
        assert "its statistics are not finite, or its variance is negative" in str(fold_report(model))
    model = pair(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).half()
    model[1].running_mean.fill_(500)  # a channel without spread: 500 / sqrt(eps) is no float16
    model[1].running_var.zero_()
    assert "the weight or bias of '0' would not be finite in torch.float16" in str(fold_report(model))
    assert quietly(model.float())(noise(1, 3, 2, 2, dtype=torch.float32)).isfinite().all()


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
        UserError, match=r"cannot be traced .*its own forward \(test_fold\.py:\d+\) says 'symbolically"
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
