"""Folded models against the models that they were, whose batch norms are worked out by PyTorch."""

import copy
from typing import Any

import pytest
import torch
from folded import Uses, noise, pair, quietly, trained
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

from syncnorm import batch_norms, convert, domain, fold, fold_report, make_norm, revert
from syncnorm.models import make_model
from syncnorm.norms import ScaledWSConv2d

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
