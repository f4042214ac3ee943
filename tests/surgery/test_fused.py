"""Batch norms that carry an activation, dropout or more keep it through every operation."""

import copy
import importlib.util
import pickle
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fused_layers import LAYERS, X, out, trained
from torch import Tensor, nn

from syncnorm import batch_norms, convert, fold, fold_report, norm_names, recalibrate, revert, tent
from syncnorm.training.ranks.virtual_ranks import on_virtual_ranks, rank_0

OPTIONS: dict[str, dict[str, Any]] = {
    "ghost_bn": {"virtual_ranks": 2},
    "domain_bn": {"domains": 2},
    "eval_norm": {"batch": 2},
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("name", norm_names())
def test_every_norm_is_followed_by_the_rest(kind: str, name: str) -> None:
    model = trained(kind)
    before, keys, parameters = out(model), list(model.state_dict()), [id(p) for p in model.parameters()]
    plain = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(model, name, **OPTIONS.get(name, {}))
    from syncnorm import domain

    with domain(0):
        after, again = out(model), out(copy.deepcopy(model))
    assert torch.equal(after, again)
    torch.manual_seed(0)  # the norm without the rest, and the rest by hand
    for place in (1, 3):
        bare = nn.BatchNorm2d(4).double().eval()
        bare.load_state_dict({key: value for key, value in plain[place].state_dict().items() if key in dir(bare)})
        plain[place] = nn.Sequential(bare, by_hand(kind, plain[place]))
    convert(plain, name, **OPTIONS.get(name, {}))
    torch.manual_seed(0)
    with domain(0):
        if name != "spectral_norm":  # starts from random vectors
            torch.testing.assert_close(after, out(plain), rtol=1e-10, atol=1e-10)
        for _ in range(2):
            found, right = out(model.train()), out(plain.train())
            if name != "spectral_norm":
                torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-9)
    revert(model.eval())
    assert (list(model.state_dict()), [id(p) for p in model.parameters()]) == (keys, parameters)
    assert type(model[1]) is type(LAYERS[kind](4))
    if name in ("gn", "none", "scaled_ws", "frozen_bn"):
        assert torch.equal(out(model), before)


class ByHand(nn.Module):
    def __init__(self, kind: str, layer: Any) -> None:
        super().__init__()
        self.kind, self.layer = kind, layer
        self.drop, self.act = getattr(layer, "drop", None), getattr(layer, "act", None)

    def forward(self, y: Tensor) -> Tensor:
        layer = self.layer
        if self.kind == "functional":
            return F.silu(y) + y.mean(1, keepdim=True)
        if self.kind == "own tensors":
            return torch.where(y > 0, y, y * layer.slope).minimum(layer.cap) + layer.shift
        if self.kind == "ours":
            return y.relu()
        return self.act(y if self.drop is None else self.drop(y))


class Box:
    """Holds a layer that is no part of the model."""

    def __init__(self, layer: Any) -> None:
        self.slope, self.cap, self.shift = (getattr(layer, name, None) for name in ("slope", "cap", "shift"))


def by_hand(kind: str, layer: Any) -> nn.Module:
    rest = ByHand(kind, None)
    rest.layer, rest.drop, rest.act = Box(layer), getattr(layer, "drop", None), getattr(layer, "act", None)
    return rest


@pytest.mark.parametrize("kind", LAYERS)
def test_what_the_rest_learns_comes_back(kind: str) -> None:
    model = convert(trained(kind), "brn").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    out(model).square().sum().backward()
    optimizer.step()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model):
        assert torch.equal(out(twin.eval()), out(model.eval()))
        reverted = revert(twin).state_dict()
        assert reverted.keys() == state.keys()
        assert all(torch.equal(reverted[key], value) for key, value in state.items())


@pytest.mark.parametrize("kind", LAYERS)
def test_modes_and_moves_are_kept(kind: str) -> None:
    model = trained(kind).train()
    model[1].training = False  # a frozen norm whose dropout stays on
    convert(model, "frozen_bn")
    assert not model[1].training
    assert all(child.training for child in model[1].children())
    convert(model, "sync_bn").float()
    assert out(model, X.float()).dtype == torch.float32
    revert(model)
    assert not model[1].training
    assert all(child.training for child in model[1].children())
    assert out(model.eval(), X.float()).dtype == torch.float32


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("converted", [False, True])
def test_folding_keeps_the_rest(kind: str, converted: bool) -> None:
    model = trained(kind)
    if converted:
        convert(model, "ghost_bn", virtual_ranks=2)
    before, others = out(model), {key for key in model.state_dict() if key.split(".")[1] in ("act", "slope", "cap")}
    assert not fold_report(model).left
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fold(model)
    torch.testing.assert_close(out(model), before, rtol=1e-11, atol=1e-11)
    assert not batch_norms(model)
    assert others <= set(model.state_dict())


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("name", ["brn", "diminishing_bn", "cbn"])
def test_virtual_ranks_do_the_rest_on_the_whole_batch(kind: str, name: str) -> None:
    model = trained(kind)
    if kind == "children":
        model[1].drop.p = model[3].drop.p = 0.0
    parts = [convert(copy.deepcopy(model), name).train() for _ in range(2)]
    ranks = on_virtual_ranks(convert(model, name), name, 2).train()
    for _ in range(2):
        right = torch.stack([part(X[rank::2]) for rank, part in enumerate(parts)], 1).flatten(0, 1)
        torch.testing.assert_close(ranks(X), right, rtol=1e-11, atol=1e-11)
    found, one = revert(rank_0(ranks)).eval(), revert(parts[0]).eval()
    torch.testing.assert_close(found(X), one(X), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", LAYERS)
def test_recalibrated_and_adapted(kind: str) -> None:
    model = trained(kind)
    right = copy.deepcopy(model)
    recalibrate(convert(model, "sync_bn"), [X + 1])
    recalibrate(right, [X + 1])
    torch.testing.assert_close(out(model), out(right), rtol=1e-12, atol=1e-12)
    adapt = tent(model)
    assert adapt(X).shape == (4, 5)
    assert not torch.equal(out(model), out(right))


@pytest.mark.parametrize("kind", ["children", "functional", "own tensors"])
@pytest.mark.parametrize("name", ["bn", "sync_bn", "ghost_bn"])
def test_compiled_exported_and_stacked(kind: str, name: str) -> None:
    model = convert(trained(kind), name, **OPTIONS.get(name, {}))
    before = out(model)
    assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(X), before)
    torch.testing.assert_close(torch.export.export(model, (X,)).module()(X), before, rtol=1e-12, atol=1e-12)
    twins = [model, copy.deepcopy(model)]
    nn.init.uniform_(twins[1][1].weight, 0.5, 1.5)
    stacked = torch.func.stack_module_state(twins)
    rows = torch.vmap(lambda p, b: torch.func.functional_call(model, (p, b), (X,)))(*stacked)
    torch.testing.assert_close(rows, torch.stack([twin(X) for twin in twins]), rtol=1e-12, atol=1e-12)
    if name == "bn":
        assert torch.equal(torch.fx.symbolic_trace(model)(X), before)


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
@pytest.mark.parametrize("name", ["efficientnet_b0", "densenet121", "regnety_002"])
def test_models_of_timm(name: str) -> None:
    timm = pytest.importorskip("timm", exc_type=ImportError, reason="timm does not import here, without torchvision")
    torch.manual_seed(0)
    model, x = timm.create_model(name, pretrained=False).eval(), torch.randn(2, 3, 64, 64)
    before = model(x)
    assert torch.equal(convert(model, "sync_bn")(x), before)
    assert torch.equal(revert(model)(x), before)
    torch.testing.assert_close(fold(model)(x), before, rtol=1e-4, atol=1e-4 * float(before.abs().max()))
