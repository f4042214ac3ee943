"""Surgery on models as others write them: swapped through every norm and back, folded, recalibrated."""

import copy
import warnings
from typing import Any

import pytest
import torch
from foreign_models import MODELS, Misordered, OwnNorm
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from syncnorm import batch_norms, convert, domain, fold, fold_report, norm_names, recalibrate, revert
from syncnorm.errors import UserError
from syncnorm.models import make_model
from syncnorm.norms import norm_spec

OPTIONS: dict[str, dict[str, Any]] = {
    "ghost_bn": {"virtual_ranks": 2},
    "domain_bn": {"domains": 2},
    "eval_norm": {"batch": 2},
}


def batches(kind: str, samples: int = 6) -> list[Tensor]:
    g = torch.Generator().manual_seed(3)
    return [torch.randn(samples, *MODELS[kind][1], generator=g) * (1 + i) + i for i in range(3)]


def trained(kind: str) -> nn.Module:
    """Return the model in evaluation, with statistics that fit the data and an affine map that is not neutral."""
    torch.manual_seed(0)
    model = MODELS[kind][0]()
    for x in batches(kind) * 5:
        model(x)
    for layer in batch_norms(model).values():
        for p in layer.parameters():
            nn.init.uniform_(p, 0.5, 1.5)
    return model.eval()


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad(), domain(0):
        y = model(x)
    return list(y.values()) if isinstance(y, dict) else [y]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_through_every_norm_and_back(kind: str, dtype: torch.dtype) -> None:
    model, x = trained(kind).to(dtype), batches(kind, 2)[0].to(dtype)
    before, keys = outputs(model, x), list(model.state_dict())
    types = [type(module) for module in model.modules()]
    for name in norm_names():
        if norm_spec(name).side == "weights" and kind == "mlp":
            with pytest.raises(UserError, match="normalises the weights of convolutions, and the model has none"):
                convert(model, name)
            continue
        assert convert(model, name, **OPTIONS.get(name, {})) is model
        if name not in ("bn", "cbn"):
            assert [type(module) for module in model.modules()] != types
        revert(model)
        assert [type(module) for module in model.modules()] == types
        assert list(model.state_dict()) == keys
        assert all(torch.equal(a, b) for a, b in zip(outputs(model, x), before, strict=True))


@pytest.mark.parametrize("kind", MODELS)
def test_folding(kind: str) -> None:
    model, left = trained(kind), MODELS[kind][2]
    before = [outputs(model, x) for x in batches(kind)]
    example = None
    if kind == "branching":
        with pytest.raises(UserError, match=r"cannot be traced .*its own forward \(foreign_models.py:\d+\)"):
            fold(model)
        example = batches(kind)[0]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fold(model, example=example)
    assert list(batch_norms(model)) == left
    assert len(caught) == bool(left)
    for x, right in zip(batches(kind), before, strict=True):
        for a, b in zip(outputs(model, x), right, strict=True):
            assert (a - b).abs().max() <= 1e-5 * max(1.0, b.abs().max())


def test_what_is_not_folded_says_why() -> None:
    report = fold_report(trained("shared"))
    assert report.left == {"left.1": "'left.0' is used more than once"}
    report = fold_report(trained("densenet"))
    assert set(report.left.values()) == {"what comes right before it is no convolution or linear layer"}
    assert report.folded["features.denseblock2.denselayer1.norm2"] == ("features.denseblock2.denselayer1.conv1",)


def test_an_order_of_modules_that_is_not_that_of_the_forward() -> None:
    model, x = Misordered(), batches("unet")[1]
    model(x)
    before = model.eval()(x)
    with pytest.raises(UserError, match="folding would change the model's output on the example by"):
        fold(model, example=x)
    assert torch.equal(model(x), before)
    assert list(batch_norms(model)) == ["parts.1"]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_recalibration_is_torchs_update(kind: str, dtype: torch.dtype) -> None:
    ours, xs = trained(kind).to(dtype), [x.to(dtype) for x in batches(kind)]
    torchs = copy.deepcopy(ours)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        update_bn(xs, torchs)
        recalibrate(ours, xs, estimator="mean_of_batches")
    places = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 5e-2}[dtype]
    for name, layer in batch_norms(ours).items():
        right = torchs.get_submodule(name)
        torch.testing.assert_close(layer.running_mean, right.running_mean, rtol=places, atol=places)
        torch.testing.assert_close(layer.running_var, right.running_var, rtol=places, atol=places)


def test_a_batch_norm_that_is_none_is_warned_about() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), OwnNorm(3)).eval(), batches("unet")[0]
    before = model(x)
    for operate in (
        lambda: convert(model, "gn"),
        lambda: recalibrate(revert(model), [x]),
        lambda: fold(model),
    ):
        with pytest.warns(UserWarning, match=r"'2' \(OwnNorm\): keeps a running mean, but is no torch.nn batch norm"):
            operate()
    assert isinstance(model[2], OwnNorm)
    assert not torch.equal(model(x), before)
    assert not model[2].running_mean.any()


def test_a_lazy_model_is_asked_for_a_batch_first() -> None:
    model = MODELS["lazy"][0]()
    with pytest.raises(UserError, match="does not know its channels yet: run one batch through the model first"):
        convert(model, "gn")
    with pytest.warns(UserWarning, match="2 of 2 batch norms are not folded .*does not know its channels yet"):
        fold(model)
    model(batches("lazy")[0])
    assert len(batch_norms(convert(model, "sync_bn"))) == 2


def test_resnet18_through_every_norm_and_back() -> None:
    torch.manual_seed(0)
    model, x = make_model("resnet18", (3, 16, 16), 10), torch.randn(4, 3, 16, 16)
    model(x)
    before, keys = outputs(model.eval(), x), list(model.state_dict())
    for name in norm_names():
        convert(model, name, **OPTIONS.get(name, {}))
        assert sum(map(len, outputs(model, x))) == 4
        revert(model)
        assert list(model.state_dict()) == keys
        assert torch.equal(outputs(model, x)[0], before[0])
