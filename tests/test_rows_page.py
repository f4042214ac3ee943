"""The pages of rows and of how-tos: every field, metric and detail of a row is there, and the code runs."""

import json
import re
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

import syncnorm
from syncnorm.config import Result
from syncnorm.federated import world as clients
from syncnorm.study.rows import finished_row

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "rows.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "howto.md").read_text(), flags=re.S)


def listed(section: str) -> set[str]:
    """Return the names in the first column of a section's table."""
    text = PAGE.partition(f"## {section}\n")[2].partition("\n## ")[0]
    return {name for row in re.findall(r"^\| (`.*?) \|", text, flags=re.M) for name in re.findall(r"`([^`]+)`", row)}


def test_every_field_of_a_row_is_listed() -> None:
    result = Result("id", {}, {}, "none", 1.0, {})
    names = {field.name for field in fields(Result)} | set(finished_row("study", result)) | {"error", "traceback"}
    assert listed("A row") == names


def test_every_metric_of_clients_is_listed() -> None:
    assert set(clients.METRICS) <= listed("Metrics")


def test_every_metric_and_detail_of_the_committed_rows_is_listed() -> None:
    metrics, details = listed("Metrics"), listed("Details")
    for path in sorted((ROOT / "results").glob("*/runs.jsonl")):
        with path.open("rb") as file:
            row = json.loads(file.readline())
        task = next((name for name in ("mean_iou", "f1", "r2") if name in row.get("metrics", {})), "accuracy")
        for name in row.get("metrics", {}):
            known = name in metrics or name.replace(task, "accuracy") in metrics
            assert known or re.fullmatch(rf"{task}_[\w-]+", name), f"{path.parent.name}: {name}"
        assert set(row.get("details", {})) <= details, path.parent.name


def test_rows_are_read(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    exec(BLOCKS[0], {})
    first = capsys.readouterr().out.splitlines()[0].split()
    assert first[0] == "mlp"
    assert 0 < float(first[-1]) <= 1


def test_a_model_is_deployed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)
    )
    model(torch.randn(16, 3, 8, 8))
    x = torch.randn(2, 3, 8, 8)
    expected = model.eval()(x)
    names = {"x": x, "model": syncnorm.convert(model, "sync_bn")}
    monkeypatch.chdir(tmp_path)
    exec(BLOCKS[2], names)
    for found in (torch.export.load("model.pt2").module(), torch.jit.load("model.ts")):  # type: ignore[no-untyped-call]
        torch.testing.assert_close(found(x), expected)
    if find_spec("onnxscript"):
        exec(BLOCKS[3], names)
        assert Path("model.onnx").is_file()
