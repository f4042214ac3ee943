"""What the README shows works as printed."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

import syncnorm
from syncnorm import domains
from syncnorm.study.plan.spec import expand
from syncnorm.worlds import check

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.S)


def test_the_layer_in_five_lines(monkeypatch: Any) -> None:
    wrapper = type(
        "Wrapper",
        (nn.Module,),
        {"__init__": lambda self, module: (nn.Module.__init__(self), setattr(self, "module", module))[0]},
    )
    monkeypatch.setattr(nn.parallel, "DistributedDataParallel", wrapper)
    names: dict[str, Any] = {"torch": torch, "model": nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))}
    exec(BLOCKS[0], names)
    assert type(names["model"][1]) is nn.BatchNorm2d


def test_the_study_in_five_lines() -> None:
    names: dict[str, Any] = {}
    exec(BLOCKS[1], names)
    assert len(expand(names["STUDY"])) == 45


def test_a_policy_by_name(monkeypatch: Any) -> None:
    asked = []
    monkeypatch.setattr("syncnorm.federated.simulate", lambda run: asked.append(run) or SimpleNamespace(metrics={}))
    exec(BLOCKS[2], {})
    assert [run.world.method for run in asked] == ["fedbn"]
    check(asked[0])


def test_the_strategy_in_ten_lines() -> None:
    names: dict[str, Any] = {"model": nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), "client_app": ClientApp()}
    asked = []

    @names["client_app"].train()
    def train(message: Message, context: Context) -> Message:
        asked.append(context.node_id)
        arrays, metrics = message.content["arrays"], MetricRecord({"num-examples": 3})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    exec(BLOCKS[3], names)
    assert len(asked) == 3 * 5


def test_domains_in_ten_lines() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    x = torch.randn(6, 1, 4, 4)
    names: dict[str, Any] = {"syncnorm": syncnorm, "model": model, "x": x, "batches": [x]}
    names |= {"ids": torch.tensor([0, 1, 2, 0, 1, 2])}
    exec(BLOCKS[4], names)
    assert names["logits"].shape == (6, 3)
    assert not syncnorm.batch_norms(names["model"])


def test_a_world_of_domains(monkeypatch: Any) -> None:
    asked = []
    monkeypatch.setattr("syncnorm.domains.fit", lambda run: asked.append(run) or SimpleNamespace(metrics={}))
    exec(BLOCKS[5], {})
    assert [run.world.adapt for run in asked] == ["adabn"]
    domains.check(asked[0])


def test_links_and_commands_exist() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", TEXT):
        assert (ROOT / target).exists(), target
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", TEXT, flags=re.M):
        assert f"\n{target}:" in makefile, target
