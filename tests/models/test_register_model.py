"""A model of somebody else's is built like one of ours, and its mistakes are told as its own."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import syncnorm
from syncnorm import register_model
from syncnorm.config import Data, Devices, Norm, Optim, Run
from syncnorm.errors import UserError
from syncnorm.models import NormFactory, make_model, model_names

pytestmark = pytest.mark.usefixtures("registries")


def mynet(shape: tuple[int, ...], classes: int, norm: NormFactory, width: int = 4) -> nn.Module:
    """Takes images and signals."""
    convolution = nn.Conv2d if len(shape) == 3 else nn.Conv1d
    pool = nn.AdaptiveAvgPool2d if len(shape) == 3 else nn.AdaptiveAvgPool1d
    features = [convolution(shape[0], width, 3), norm(width), nn.ReLU(), pool(1), nn.Flatten()]
    return nn.Sequential(*features, nn.Linear(width, classes))


@pytest.mark.parametrize(("shape", "kind"), [((1, 8, 8), nn.BatchNorm2d), ((2, 40), nn.BatchNorm1d)])
def test_a_registered_model_is_built_by_name(shape: tuple[int, ...], kind: type[nn.Module]) -> None:
    assert register_model("mynet")(mynet) is mynet
    assert "mynet" in model_names()
    model = make_model("mynet", shape, 3, width=6)
    assert type(model[1]) is kind
    assert model(torch.randn(2, *shape)).shape == (2, 3)
    assert isinstance(make_model("mynet", shape, 3, "gn", {"groups": 2})[1], nn.GroupNorm)


def test_every_argument_of_the_convention_is_given() -> None:
    given: dict[str, Any] = {}

    @register_model("asks")
    class Asks(nn.Module):
        def __init__(self, in_channels: int, pixels: int, classes: int, shape: Any, depth: int, **more: Any) -> None:
            super().__init__()
            given.update(locals())

    make_model("asks", (2, 5, 3), 7, depth=4, extra="x")
    expected = {"in_channels": 2, "pixels": 30, "classes": 7, "shape": (2, 5, 3), "depth": 4, "more": {"extra": "x"}}
    assert {name: given[name] for name in expected} == expected
    with pytest.raises(UserError, match="model 'asks': missing a required argument: 'depth'"):
        make_model("asks", (2, 5, 3), 7)


def test_a_run_trains_it_with_any_norm() -> None:
    register_model("mynet")(mynet)
    run = Run(
        data=Data("digits", train_limit=160, test_limit=60),
        model="mynet",
        model_options={"width": 6},
        norm=Norm("bn"),
        world=Devices(ranks=2, per_device_batch=8),
        optim=Optim(epochs=1),
    )
    losses = [syncnorm.fit(replace(run, norm=Norm(name))).metrics["loss"] for name in ("bn", "gn", "brn", "none")]
    assert len(set(losses)) == 4


def test_positions_say_which_samples_it_takes() -> None:
    register_model("images_alone", positions=2)(mynet)
    with pytest.raises(UserError, match=r"model 'images_alone' takes images \(C, H, W\)") as caught:
        make_model("images_alone", (2, 40), 3)
    assert "signal_cnn" in str(caught.value)
    register_model("flat", positions=0)(lambda pixels, classes: nn.Linear(pixels, classes))
    assert make_model("flat", (2, 5), 3).in_features == 10


def test_what_cannot_be_registered_gets_a_sentence() -> None:
    for register, sentence in [
        (lambda: register_model("mlp")(mynet), "model 'mlp' is registered already, by syncnorm itself"),
        (lambda: register_model("my net")(mynet), "a name is a text without spaces"),
        (lambda: register_model(mynet), 'register_model needs a name: write @register_model("mynet")'),
        (lambda: register_model("mine")(42), "model 'mine' is an int: register a function or class"),
        (lambda: register_model("mine")(nn.Linear(2, 2)), "model 'mine' is a Linear"),
        (lambda: register_model("mine", positions=3)(mynet), "positions is 3: it must be 0, 1, 2 or None"),
    ]:
        with pytest.raises(UserError, match=re.escape(sentence)):
            register()  # type: ignore[no-untyped-call]


FACTORIES = """
import torch
from torch import nn

def ok():
    return nn.Linear(2, 2)

def number():
    return 42

def kind():
    return nn.Linear

def fails(width=3):
    return nn.Linear(width, None["x"])

value = 3
instance = nn.Linear(2, 2)

class Nested:
    ok = staticmethod(ok)
"""


@pytest.fixture
def facs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "facs.py").write_text(FACTORIES)
    (tmp_path / "broken_facs.py").write_text("\n1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "facs", raising=False)
    return tmp_path


def test_a_factory_is_found_by_its_import_path(facs: Path) -> None:
    assert isinstance(make_model("facs:ok", (1, 2), 2), nn.Linear)
    assert isinstance(make_model("facs:Nested.ok", (1, 2), 2), nn.Linear)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("facs:number", "model 'facs:number' returned an int, not a torch.nn.Module."),
        ("facs:kind", "model 'facs:kind' returned the class Linear, not a torch.nn.Module."),
        (
            "facs:fails",
            "model 'facs:fails' fails when it is built: TypeError: 'NoneType' object is not",
        ),
        ("facs:fails", "(facs.py:15)"),
        ("facs:value", "model 'facs:value' is an int: name what builds a model."),
        ("facs:instance", "model 'facs:instance' is a Linear: name what builds a model."),
        ("facs:gone", "model 'facs:gone' cannot be imported (module 'facs' has no attribute 'gone')"),
        ("gone:ok", "model 'gone:ok' cannot be imported (No module named 'gone')"),
        ("broken_facs:ok", "cannot be imported: ZeroDivisionError: division by zero (broken_facs.py:2)"),
        ("./facs.py:ok", "model './facs.py:ok' is a path: write package.module:factory, here facs:ok, and start"),
        ("facs.py:ok", "here facs:ok"),
        ("folder/facs.py", "here facs:factory"),
        ("C:\\\\facs.py", "write package.module:factory"),
        (".facs:ok", "model '.facs:ok' is no import path: write package.module:factory."),
        ("facs:", "is no import path"),
        ("facs", "unknown model 'facs'"),
        ("builtins:dict", "model 'builtins:dict'"),
        (nn.Linear(2, 2), "give its name, or package.module:factory"),
    ],
)
def test_mistakes_name_the_factory_and_the_right_form(facs: Path, name: Any, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        make_model(name, (1, 2), 2)
    assert sentence in str(caught.value)


def test_a_registered_factory_that_fails_names_its_line() -> None:
    @register_model("failing")
    def failing(classes: int) -> nn.Module:
        return nn.Linear(classes, {}["width"])

    with pytest.raises(UserError, match=r"'failing' fails when it is built: KeyError: 'width' \(test_register_model"):
        make_model("failing", (1, 2), 2)
