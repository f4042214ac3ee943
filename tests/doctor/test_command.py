"""`syncnorm doctor`: models and checkpoints, what it prints and writes, exit codes, sentences."""

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from healthy import Net, batch, trained
from safetensors.torch import save_file
from torch import nn

from syncnorm import cli

MODULE = """
import torch
from torch import nn

def healthy():
    stem = nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    return nn.Sequential(*stem, nn.Flatten(), nn.Linear(576, 5))

def biased():
    model = healthy()
    model[0] = nn.Conv2d(3, 16, 3)
    return model

def momentum():
    model = healthy()
    model[1].momentum = 0.99
    return model

def sized(width):
    return nn.BatchNorm2d(width)

def number():
    return 3

def broken():
    raise RuntimeError("no weights here")

MODEL = healthy()
"""
Doctor = Callable[..., int]


@pytest.fixture
def doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Doctor:
    """The command, in a folder with a module of models."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_models.py").write_text(MODULE)
    (tmp_path / "broken_module.py").write_text("import torch\nimport nothing_of_this_name\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    for name in ("own_models", "broken_module"):
        monkeypatch.delitem(sys.modules, name, raising=False)

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["syncnorm", "doctor", *arguments])
        return cli.main()

    return run


@pytest.mark.parametrize("name", ["own_models:healthy", "own_models.py:healthy", "own_models:MODEL"])
def test_nothing_found_is_exit_code_0(name: str, doctor: Doctor, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(name, "--input", "3x8x8", "--batch-size", "16") == 0
    assert capsys.readouterr().out.startswith(f"{name}: nothing found (")


def test_a_note_is_no_fault_and_a_warning_is(doctor: Doctor, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor("own_models:biased", "--input", "3x8x8") == 0
    said = capsys.readouterr().out
    assert "own_models:biased: 1 note (" in said
    assert "Instead: write bias=False." in said
    assert doctor("own_models:momentum", "--input", "3x8x8") == 1
    assert doctor("own_models:momentum", "--checks", "odd_eps") == 0


def test_json_and_sarif(doctor: Doctor, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = ("--input", "3x8x8", "--batch-size", "2", "--world-size", "8", "--json", "--sarif", "out/found.sarif")
    assert doctor("own_models:momentum", *options) == 1
    said = json.loads(capsys.readouterr().out)
    assert {found["check"]: found["layer"] for found in said["findings"]} == {
        "odd_momentum": "1",
        "per_device_statistics": "1",
    }
    assert said["subject"] == "own_models:momentum"
    assert "misfitting_statistics" in said["skipped"]
    (run,) = json.loads((tmp_path / "out" / "found.sarif").read_text())["runs"]
    rules = {rule["id"]: rule["shortDescription"]["text"] for rule in run["tool"]["driver"]["rules"]}
    assert {result["ruleId"] for result in run["results"]} == {"odd_momentum", "per_device_statistics"} < set(rules)
    assert rules["odd_momentum"].startswith("A momentum of another convention")
    for result in run["results"]:
        assert result["level"] == "warning"
        (place,) = result["locations"]
        assert place["logicalLocations"][0]["fullyQualifiedName"] == "1"
        assert place["physicalLocation"]["artifactLocation"]["uri"] == "own_models.py"
        assert place["physicalLocation"]["region"]["startLine"] == 14


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "write the model first"),
        (("resnet18",), "is neither a file nor a function"),
        (("no_such_module:healthy",), "there is no module 'no_such_module'"),
        (("no_such_file.py:healthy",), "there is no file"),
        (("own_models:helthy",), "has no 'helthy'"),
        (("own_models:sized",), "needs arguments (width)"),
        (("own_models:number",), "returns an int"),
        (("own_models:broken",), "fails: RuntimeError: no weights here (own_models.py:26)"),
        (("broken_module:model",), "cannot be imported: ModuleNotFoundError"),
        (("own_models:healthy", "--input", "3x9x9"), "in layer '4'"),
        (("own_models:healthy", "--input", "three"), "--input is 'three'"),
        (("own_models:healthy", "--batchsize", "2"), "did you mean '--batch-size'"),
        (("own_models:healthy", "--checkpoint", "none.pt"), "there is no checkpoint none.pt"),
        (("none.pt",), "there is no checkpoint none.pt"),
    ],
)
def test_a_mistake_gets_a_sentence(
    arguments: tuple[str, ...], sentence: str, doctor: Doctor, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor(*arguments) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert len(said.splitlines()) == 1


def test_a_checkpoint_alone(doctor: Doctor, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    state = trained().state_dict()
    torch.save(state, tmp_path / "fine.pt")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "fine.ckpt")
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "fine.safetensors")
    for name in ("fine.pt", "fine.ckpt", "fine.safetensors"):
        assert doctor(name) == 0
        assert "nothing found" in capsys.readouterr().out
    state["layer1.bn2.running_var"][2] = -1.0
    torch.save(state, tmp_path / "bad.pt")
    assert doctor("bad.pt", "--policy", "fedbn", "--json") == 1
    found = json.loads(capsys.readouterr().out)["findings"]
    assert [(one["check"], one["layer"]) for one in found if one["severity"] != "note"] == [
        ("negative_variance", "layer1.bn2")
    ]
    assert ("missed_by_name", "layer2.down.1") in [(one["check"], one["layer"]) for one in found]
    assert doctor("bad.pt", "--input", "3x8x8") == 2
    assert "is a checkpoint, which cannot run" in capsys.readouterr().err


class Trap:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("sprung"),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_of_code_is_refused(doctor: Doctor, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    torch.save({"state_dict": Trap()}, tmp_path / "trap.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Trap()))
    torch.save(Net(), tmp_path / "whole.pt")
    for name in ("trap.pt", "plain.pt", "whole.pt"):
        assert doctor(name) == 2
        assert "save model.state_dict()" in capsys.readouterr().err
    assert not (tmp_path / "sprung").exists()


def test_files_that_are_no_checkpoint(doctor: Doctor, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "torn.safetensors").write_bytes(b"\x10")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "plain.pt")
    for name, sentence in (
        ("torn.safetensors", "cannot be read"),
        ("empty.pt", "holds no state of a model"),
        ("plain.pt", "no running statistics"),
    ):
        assert doctor(name) == 2
        assert sentence in capsys.readouterr().err


def test_a_checkpoint_in_its_model(doctor: Doctor, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    (tmp_path / "healthy.py").write_text((Path(__file__).parent / "healthy.py").read_text())
    net = trained()
    torch.save(net.state_dict(), tmp_path / "net.pt")
    torch.save(batch(16), tmp_path / "x.pt")
    torch.save(20 * batch(16), tmp_path / "other.pt")
    command = ("healthy:Net", "--checkpoint", "net.pt", "--input")
    assert doctor(*command, "x.pt") == 0
    assert doctor(*command, "other.pt") == 1
    assert "misfitting_statistics" in capsys.readouterr().out
    torch.save({"bn.weight": torch.ones(3)}, tmp_path / "net.pt")
    assert doctor(*command, "x.pt") == 2
    assert "net.pt does not fit healthy:Net" in capsys.readouterr().err
