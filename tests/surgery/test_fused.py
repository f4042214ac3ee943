"""Batch norms that carry an activation, dropout or more: carried through every operation, or refused."""

import copy
import importlib.util
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syncnorm import SyncBatchNorm, batch_norms, convert, fold, fold_report, norm_names, recalibrate, revert, tent
from syncnorm.devices.virtual_ranks import on_virtual_ranks, rank_0
from syncnorm.errors import UserError

OPTIONS: dict[str, dict[str, Any]] = {
    "ghost_bn": {"virtual_ranks": 2},
    "domain_bn": {"domains": 2},
    "eval_norm": {"batch": 2},
}


class Children(nn.BatchNorm2d):
    """Dropout and activation as children, one of them with a weight per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Dropout(0.5), nn.PReLU(channels, init=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


class WrittenOut(nn.BatchNorm2d):
    """The forward of batch norm written out, and an activation in place."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        assert x.dim() == 4
        newest = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats:
            self.num_batches_tracked.add_(1)
        batch = self.training or self.running_mean is None
        y = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, batch, newest, self.eps)
        return self.act(self.drop(y))


class Functional(nn.BatchNorm2d):
    """No children, and a function that looks at all channels of a position."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return F.silu(y) + y.mean(1, keepdim=True)


class OwnTensors(nn.BatchNorm2d):
    """A parameter, a buffer and a number of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.slope = nn.Parameter(torch.full((1, channels, 1, 1), 0.3))
        self.register_buffer("cap", torch.tensor(2.0))
        self.shift = 0.25

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return torch.where(y > 0, y, y * self.slope).minimum(self.cap) + self.shift


class Synchronised(nn.SyncBatchNorm):
    """As torch's synchronised layer gets an activation: set from outside."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return self.act(y) if hasattr(self, "act") else y


def synchronised(channels: int) -> nn.Module:
    layer = Synchronised(channels)
    layer.act = nn.Hardswish()
    return layer


class Ours(SyncBatchNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "children": Children,
    "written out": WrittenOut,
    "functional": Functional,
    "own tensors": OwnTensors,
    "synchronised": synchronised,
    "ours": Ours,
}
X = torch.randn(4, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def trained(kind: str) -> nn.Sequential:
    torch.manual_seed(0)
    layer = LAYERS[kind]
    body = [nn.Conv2d(3, 4, 3), layer(4), nn.Conv2d(4, 4, 1, bias=False), layer(4)]
    model = nn.Sequential(*body, nn.Flatten(), nn.Linear(64, 5)).double()
    for _ in range(3):
        model(torch.randn_like(X) * 2 + 1)
    for norm in batch_norms(model).values():
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -1, 1)
    return model.eval()


def out(model: nn.Module, x: Tensor = X) -> Tensor:
    torch.manual_seed(1)
    return model(x)


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


class Residual(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x


class Before(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.relu())


class DropsByMode(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.5, self.training)


class Ghost(nn.BatchNorm2d):
    """Batch norm in evaluation alone."""

    def forward(self, x: Tensor) -> Tensor:
        return (
            torch.cat([super(Ghost, self).forward(part) for part in x.chunk(2)])
            if self.training
            else super().forward(x)
        )


class Faint(nn.BatchNorm2d):
    """Different by little."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1e-6 * x


def patched(channels: int) -> nn.Module:
    layer = nn.BatchNorm2d(channels)
    forward = layer.forward
    layer.forward = lambda x: forward(x) * 3
    return layer


@pytest.mark.parametrize("build", [Residual, Before, DropsByMode, Ghost, Faint, patched])
def test_what_cannot_be_carried_is_refused(build: Callable[[int], nn.Module]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), build(4)).double()
    model(X)
    before, state = out(model.eval()), copy.deepcopy(model.state_dict())
    kind = type(build(4)).__name__
    said = rf"layer '1' is a {kind} with a forward of its own, which is not BatchNorm2d"
    for change in (lambda: convert(model, "sync_bn"), lambda: tent(model), lambda: convert(model, "none")):
        with pytest.raises(UserError, match=said):
            change()
    with pytest.warns(UserWarning, match=f"it is a {kind} with a forward of its own"):
        fold(model)
    assert torch.equal(out(model), before)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_a_convolution_with_a_forward_of_its_own_is_refused_by_norms_of_weights() -> None:
    class Padded(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(F.pad(x, (1, 1, 1, 1)))

    model = nn.Sequential(Padded(3, 4, 3), nn.BatchNorm2d(4))
    with pytest.raises(UserError, match=r"layer '0' is a Padded with a forward .* norm 'ws' would leave out"):
        convert(model, "ws")
    assert type(convert(model, "sync_bn")[0]) is Padded


def test_finding_out_draws_no_random_numbers_and_changes_nothing() -> None:
    model = trained("children").train()
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    convert(model, "sync_bn")
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    on_meta = convert(trained("children").to("meta"), "sync_bn")
    assert {p.device.type for p in revert(on_meta).parameters()} == {"meta"}


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
