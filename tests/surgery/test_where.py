"""Some layers only: chosen by name, class, depth or a function, and what the report says of all."""

import copy
import re
import warnings
from typing import Any

import pytest
import torch
from foreign_models import OwnNorm
from torch import Tensor, nn

from syncnorm import batch_norms, convert, convert_report, norm_names, revert
from syncnorm.errors import UserError

OPTIONS: dict[str, dict[str, Any]] = {
    "ghost_bn": {"virtual_ranks": 2},
    "domain_bn": {"domains": 2},
    "eval_norm": {"batch": 2},
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.layer1 = nn.Sequential(nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
        self.head = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer1(self.stem(x)).mean((2, 3)))


ALL = ["stem.1", "layer1.1", "layer1.3", "head.1"]
CHOICES: list[tuple[Any, list[str]]] = [
    (None, ALL),
    ("layer1.*", ["layer1.1", "layer1.3"]),
    ("*.1", ["stem.1", "layer1.1", "head.1"]),
    (["stem.?", "head.*"], ["stem.1", "head.1"]),
    (nn.BatchNorm1d, ["head.1"]),
    ((nn.BatchNorm1d, "layer1.3"), ["layer1.3", "head.1"]),
    (slice(2), ["stem.1", "layer1.1"]),
    (slice(-1, None), ["head.1"]),
    (lambda name, layer: layer.num_features > 6, ["layer1.1", "layer1.3"]),
    (lambda name, layer: name.startswith("stem"), ["stem.1"]),
]


@pytest.mark.parametrize(("where", "right"), CHOICES)
def test_layers_are_chosen(where: Any, right: list[str]) -> None:
    model = Net()
    kinds = {name: type(layer) for name, layer in model.named_modules()}
    report = convert_report(model, "gn", where=where)
    assert {name: type(layer) for name, layer in model.named_modules()} == kinds
    assert sorted(report.converted) == sorted(right)
    assert report.left == {name: "where does not select it" for name in ALL if name not in right}
    convert(model, "gn", where=where)
    changed = [name for name, layer in model.named_modules() if type(layer) is not kinds[name]]
    assert changed == right
    convert(model, "sync_bn", where=where)  # by the class that they had
    assert [name for name in ALL if type(model.get_submodule(name)).__name__ == "SyncBatchNorm"] == right
    assert {name: type(layer) for name, layer in revert(model).named_modules()} == kinds


def test_a_norm_for_each_part() -> None:
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(4, 3, 5, 5)
    before = model(x)
    convert(model, "frozen_bn", where=slice(1))
    convert(model, "gn", where="layer1.*")
    convert(model, "sync_bn", where="head.*")
    found = [type(model.get_submodule(name)).__name__ for name in ALL]
    assert found == ["FrozenBatchNorm", "GroupNorm", "GroupNorm", "SyncBatchNorm"]
    assert torch.equal(revert(model)(x), before)
    convert(model, "scaled_ws", where="stem.*")
    assert [type(layer).__name__ for layer in model.stem] == ["ScaledWSConv2d", "NoNorm"]
    assert type(model.layer1[0]) is nn.Conv2d
    assert list(batch_norms(model)) == ALL[1:]


@pytest.mark.parametrize("name", norm_names())
def test_the_report_is_what_convert_does(name: str) -> None:
    model = Net()
    before = {name: type(layer).__name__ for name, layer in model.named_modules()}
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    report = convert_report(model, name, **OPTIONS.get(name, {}))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    convert(model, name, **OPTIONS.get(name, {}))
    after = {name: type(layer).__name__ for name, layer in model.named_modules() if name in before}
    changed = {name: f"{before[name]} -> {kind}" for name, kind in after.items() if kind != before[name]}
    assert changed.items() <= report.converted.items()
    assert set(ALL) <= set(report.converted)


class Residual(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x


def test_the_report_says_why_not() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4), Residual(4), OwnNorm(4), nn.BatchNorm2d(6))
    report = convert_report(model, "gn", groups=4)
    assert report.converted == {"0": "BatchNorm2d -> GroupNorm", "1": "BatchNorm2d -> GroupNorm"}
    assert "keeps a running mean, but is no torch.nn batch norm" in report.left["3"]
    assert set(report.refused) == {"2", "4"}
    said = str(report).splitlines()
    assert said[0] == "2 x BatchNorm2d -> GroupNorm"
    assert said[1].startswith("1 stay (keeps a running mean")
    assert any(line.startswith("1 cannot be converted (layer '2' is a Residual") for line in said)
    for name, sentence in report.refused.items():
        with pytest.raises(UserError, match=re.escape(sentence)), warnings.catch_warnings(action="ignore"):
            convert(model, "gn", groups=4, where=name)
    assert str(convert_report(nn.Sequential(nn.ReLU()), "gn")) == "no layer to convert"


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("layr1.*", r"where='layr1\.\*' selects none of the 4 layers to choose from, such as 'stem\.1', 'lay"),
        (nn.BatchNorm3d, r"BatchNorm3d.*selects none"),
        (slice(9, 12), "selects none"),
        (3, "where is 3: give a pattern of names, a class of layers, a list of these, a slice, or a function"),
        ([4], "where is 4: give a pattern"),
        (int, "where is <class 'int'>: give a pattern"),
        (lambda layer: True, r"where fails on layer 'stem\.1' \(TypeError: "),
    ],
)
def test_a_choice_that_is_none(where: Any, said: str) -> None:
    model = Net()
    for operation in (convert, convert_report):
        with pytest.raises(UserError, match=said):
            operation(model, "gn", where=where)
    assert list(batch_norms(model)) == ALL
