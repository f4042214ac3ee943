"""After surgery no replaced layer runs: it is found wherever a model holds it, or what reaches it raises."""

import copy
import pickle
import weakref
from collections import OrderedDict, deque, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from syncnorm import convert, fold, revert, tent
from syncnorm.errors import UserError
from syncnorm.surgery.layers.replace import copied
from syncnorm.training.ranks.virtual_ranks import on_virtual_ranks, rank_0

Layer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Frozen:
    conv: nn.Module
    bn: nn.Module

    def __call__(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class Slots:
    __slots__ = ("__bn", "conv", "unset")

    def __init__(self, conv: nn.Module, bn: nn.Module) -> None:
        self.conv, self.__bn = conv, bn

    def __call__(self, x: Tensor) -> Tensor:
        return self.__bn(self.conv(x))


class Stage(list):
    """A list with an attribute, in which the layers stand."""

    def __init__(self, conv: nn.Module, bn: nn.Module) -> None:
        self.layers = {"all": [(conv, {"bn": bn})]}

    def run(self, x: Tensor) -> Tensor:
        ((conv, rest),) = self.layers["all"]
        return rest["bn"](conv(x))


Pair = namedtuple("Pair", "conv bn")


def through(*layers: Layer) -> Layer:
    def run(x: Tensor) -> Tensor:
        for layer in layers:
            x = layer(x)
        return x

    return run


def decorated(conv: Layer, bn: Layer) -> Layer:
    def inner(x: Tensor) -> Tensor:
        return bn(conv(x))

    @wraps(inner)
    def outer(x: Tensor) -> Tensor:
        return inner(x)

    return outer


def recursive(conv: Layer, bn: Layer) -> Layer:
    def run(x: Tensor, layers: int = 2) -> Tensor:
        return x if not layers else (conv, bn)[2 - layers](x) if layers == 1 else run(conv(x), 1)

    def again(x: Tensor, left: int = 1) -> Tensor:
        return again(conv(x), 0) if left else bn(x)

    return again if run is not None else run


def default(conv: Layer, bn: Layer) -> Layer:
    def run(x: Tensor, conv: Layer = conv, *, bn: Layer = bn) -> Tensor:
        return bn(conv(x))

    return run


def circle(conv: Layer, bn: Layer) -> Layer:
    held: dict[str, Any] = {"layers": (conv, bn)}
    held["itself"] = [held, (held,)]
    return lambda x: through(*held["itself"][1][0]["layers"])(x)


def at_once(held: Any) -> Layer:
    return lambda x: through(*held)(x)


HIDDEN: dict[str, Callable[[nn.Module, nn.Module], Layer]] = {
    "lambda": lambda c, b: lambda x: b(c(x)),
    "decorated": decorated,
    "recursive": recursive,
    "default": default,
    "circle": circle,
    "partial": lambda c, b: partial(lambda x, first, then: then(first(x)), first=c, then=b),
    "partial of partial": lambda c, b: partial(partial(lambda then, first, x: then(first(x)), b), c),
    "tuples": lambda c, b: at_once((c, b)),
    "tuple of lists": lambda c, b: lambda x, held=([[c]], ([(b,)],)): held[1][0][0][0](held[0][0][0](x)),
    "named tuple": lambda c, b: at_once(Pair(c, b)),
    "deque": lambda c, b: at_once(deque([c, b])),
    "set": lambda c, b: lambda x, convs={c}, norms=frozenset({b}): through(*convs, *norms)(x),
    "keys": lambda c, b: at_once(OrderedDict([(c, "conv"), (b, "norm")])),
    "weak": lambda c, b: partial(lambda w, x: w()(c(x)), weakref.ref(b)),
    "item": lambda c, b: lambda x, get={"b": b}.__getitem__: get("b")(c(x)),
    "frozen": Frozen,
    "slots": Slots,
    "method of a plain object": lambda c, b: Stage(c, b).run,
    "namespace": lambda c, b: partial(lambda held, x: held.b(held.c(x)), SimpleNamespace(b=b, c=c)),
}
# These hide the batch norm's own method, which cannot be traced.
METHODS: dict[str, Callable[[nn.Module, nn.Module], Layer]] = {
    "forward": lambda c, b: through(c.forward, b.forward),
    "call": lambda c, b: through(c.__call__, b.__call__),
    "unregistered module": lambda c, b: partial(Held(c, b).forward),
}


class Held(nn.Module):
    def __init__(self, conv: nn.Module, bn: nn.Module) -> None:
        super().__init__()
        self.layers = [[conv], [bn.forward]]

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[1][0](self.layers[0][0](x))


class Net(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.run = {**HIDDEN, **METHODS}[how](self.conv, self.bn)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


X = torch.randn(4, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def trained(how: str) -> Net:
    torch.manual_seed(0)
    net = Net(how).double()
    for _ in range(3):
        net(torch.randn_like(X) * 3 + 2)
    nn.init.uniform_(net.bn.weight, 0.5, 1.5)
    return net.eval()


@pytest.mark.parametrize("how", [*HIDDEN, *METHODS])
def test_every_operation_reaches_what_is_hidden(how: str) -> None:
    net = trained(how)
    before, mean = net(X), net.bn.running_mean.clone()
    convert(net, "frozen_bn").train()
    torch.testing.assert_close(net(X + 3), net.eval()(X + 3), rtol=0, atol=0)
    assert torch.equal(net.bn.running_mean, mean)
    assert torch.equal(revert(net)(X), before)
    assert type(net.bn) is nn.BatchNorm2d
    convert(net, "scaled_ws")
    assert not torch.allclose(net(X), before)
    assert torch.equal(revert(net)(X), before)
    torch.manual_seed(0)
    plain = nn.Sequential(copy.deepcopy(net.conv), copy.deepcopy(net.bn))
    hidden, right = (on_virtual_ranks(convert(model, "brn"), "brn", 2).train() for model in (net, plain))
    torch.testing.assert_close(hidden(X), right(X), rtol=1e-12, atol=1e-12)
    assert torch.equal(revert(rank_0(hidden)).bn.running_var, revert(rank_0(right))[1].running_var)
    assert net.train()(X).shape == before.shape


@pytest.mark.parametrize("how", HIDDEN)
def test_folding_reaches_what_is_hidden(how: str) -> None:
    net = trained(how)
    before = net(X)
    fold(net)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    torch.testing.assert_close(net(X), before, rtol=1e-12, atol=1e-12)


LAYERS: list[Layer] = []


class Elsewhere(nn.Module):
    """A layer that a class or the module of this file holds."""

    held: Layer

    def __init__(self, forward: bool, by_class: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.by_class = by_class
        layer = self.stem[1].forward if forward else self.stem[1]
        LAYERS[:] = [layer]
        type(self).held = staticmethod(layer)

    def forward(self, x: Tensor) -> Tensor:
        return (self.held if self.by_class else LAYERS[0])(self.stem[0](x))


@pytest.mark.parametrize("forward", [False, True])
@pytest.mark.parametrize("by_class", [False, True])
def test_what_is_not_found_is_named_by_the_forward(forward: bool, by_class: bool) -> None:
    net = Elsewhere(forward, by_class).double()
    before = net.eval()(X)
    for change in (lambda: convert(net, "sync_bn"), lambda: convert(net, "gn"), lambda: tent(net)):
        change()
        with pytest.raises(UserError, match=r"layer 'stem\.1' was replaced \(BatchNorm2d, by \w+\), and the forward"):
            net(X)
        twin = pickle.loads(pickle.dumps(net)) if not forward else copy.deepcopy(net)
        assert torch.equal(revert(net)(X), before)
        with pytest.raises(UserError, match=r"layer 'stem\.1' was replaced"):
            convert(net, "gn")(X)
        revert(net)
        assert type(revert(twin).stem[1]) is nn.BatchNorm2d
    optimum = torch.optim.SGD(net.parameters(), lr=0.1)
    assert sum(len(group["params"]) for group in optimum.param_groups) == 4


def test_a_model_that_was_replaced_itself_says_so() -> None:
    layer = nn.BatchNorm2d(3)
    converted = convert(layer.double(), "gn")
    with pytest.raises(UserError, match=r"this module was replaced \(BatchNorm2d, by GroupNorm\): use the one that"):
        layer(X)
    assert revert(converted) is layer
    assert layer(X).shape == X.shape


def test_a_function_that_others_hold_too_stays_theirs() -> None:
    net = trained("lambda")
    run, bn = net.run, net.bn
    before = run(X)
    convert(net, "gn")
    assert net.run is not run
    revert(net)
    assert net.bn is bn
    assert torch.equal(run(X), before)


@pytest.mark.parametrize("how", [*HIDDEN, *METHODS])
def test_copies_run_layers_of_their_own(how: str) -> None:
    net = trained(how).train()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    twin = copied(net)
    assert twin(X).shape == (4, 4, 4, 4)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert not torch.equal(twin.bn.running_mean, net.bn.running_mean)
    net(X)
    assert torch.equal(twin.bn.running_mean, net.bn.running_mean)
    assert {id(p) for p in net.parameters()}.isdisjoint(map(id, twin.parameters()))


@pytest.mark.parametrize("how", ["lambda", "circle", "tuple of lists", "forward"])
def test_copies_of_a_model_on_virtual_ranks(how: str) -> None:
    models = [on_virtual_ranks(convert(trained(kind), "cbn"), "cbn", 2).train() for kind in (how, "frozen")]
    for _ in range(3):
        found, right = (model(X) for model in models)
        torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)
    assert torch.equal(*(rank_0(model).bn.running_mean for model in models))
