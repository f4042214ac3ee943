"""The W&B mirror: complete in the end, and unable to fail or delay a study."""

import json
from pathlib import Path
from typing import Any

import pytest
from drive import clients, small
from fake_fit import fit
from made_up_domains import domain_row, domains_study

from syncnorm.config import Execution
from syncnorm.study.plan.spec import expand
from syncnorm.study.rows import failed_row, finished_row
from syncnorm.study.run.runner import run_study
from syncnorm.study.run.store import Store
from syncnorm.study.run.tracking import Mirror

SAYS = """
import json, os, sys
class Settings(dict):
    pass
class Run:
    def __init__(self, options):
        self.said = {**options, "settings": None, "logged": []}
        self.summary = {}
    def log(self, values, step):
        self.said["logged"].append([step, values])
    def finish(self, exit_code):
        said = {**self.said, "summary": self.summary, "exit_code": exit_code}
        with open(os.environ["SAID"], "a") as file:
            print(json.dumps(said), file=file)
def init(**options):
    print("chatter")
    return Run(options)
"""
RAISES = (
    SAYS
    + """
def init(**options):
    if options["config"]["seed"] == 1:
        raise RuntimeError("no\\nnetwork")
    return Run(options)
"""
)
HANGS = """
import time
def Settings(**options): pass
def init(**options): time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A results folder with 11 finished runs and a failed one."""
    study, out = small(), tmp_path / "out"
    with Store.open(out, study) as store:
        first, *others = expand(study)
        store.append(failed_row("small", first, "it broke.", 1.0, {}))
        for run in others:
            store.append(finished_row("small", fit(run, Execution())))
    return out


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put another wandb in place of the real one; return the file it is in. What it is told goes to `said`."""
    (tmp_path / "fake").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "fake")
    monkeypatch.setenv("SAID", str(tmp_path / "said"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return tmp_path / "fake" / "wandb.py"


def mirror(folder: Path, stall: float = 60.0) -> str:
    one = Mirror(folder, "offline")
    one.close(stall)
    return one.warning


def said(wandb: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (wandb.parents[1] / "said").read_text().splitlines()]


def test_a_row_becomes_a_run(folder: Path, wandb: Path) -> None:
    wandb.write_text(SAYS)
    assert mirror(folder) == ""
    row = json.loads((folder / "runs.jsonl").read_text().splitlines()[1])
    failed, finished, *others = said(wandb)
    assert finished == {
        "project": "syncnorm", "group": "small", "id": row["run_id"], "name": row["run_id"], "config": row["config"],
        "dir": str(folder), "mode": "offline", "resume": "allow", "settings": None,
        "logged": [[1, {"epoch": 1, "train_loss": 2.0}], [2, {"epoch": 2, "train_loss": 1.0}]],
        "summary": row["metrics"], "exit_code": 0,
    }  # fmt: skip
    assert (failed["summary"], failed["exit_code"]) == ({"error": "it broke."}, 1)
    assert len(others) == 10


def test_the_history_of_clients_is_logged_by_round(tmp_path: Path, wandb: Path) -> None:
    wandb.write_text(SAYS)
    study = clients()
    run = expand(study)[0]
    with Store.open(tmp_path / "out", study) as store:
        store.append(finished_row(study.name, fit(run, Execution(tmp_path / "checkpoint"))))
    assert mirror(tmp_path / "out") == ""
    (sent,) = said(wandb)
    assert [(step, values["round"], set(values)) for step, values in sent["logged"]] == [
        (number, number, {"round", "train_loss"}) for number in range(1, 6)
    ]


def test_the_history_of_domains_is_logged_by_epoch(tmp_path: Path, wandb: Path) -> None:
    wandb.write_text(SAYS)
    study = domains_study()
    with Store.open(tmp_path / "out", study) as store:
        store.append(domain_row(study.name, expand(study)[0]))
    assert mirror(tmp_path / "out") == ""
    (sent,) = said(wandb)
    assert [(step, values["epoch"]) for step, values in sent["logged"]] == [
        (number, number) for number in range(1, 11)
    ]
    assert set(sent["logged"][0][1]) == {"epoch", "train_loss", "seen_accuracy", "unseen_accuracy"}


def test_every_row_once_and_a_retried_run_again(folder: Path, wandb: Path) -> None:
    wandb.write_text(SAYS)
    mirror(folder)
    mirror(folder)
    assert len(said(wandb)) == 12
    with Store.open(folder, small()) as store:
        store.append(finished_row("small", fit(expand(small())[0], Execution())))
    mirror(folder)
    assert len(said(wandb)) == 13
    assert said(wandb)[-1]["exit_code"] == 0


def test_what_failed_or_was_killed_follows_at_the_next_start(folder: Path, wandb: Path) -> None:
    wandb.write_text(RAISES)
    warning = mirror(folder)
    assert warning == "W&B mirror: RuntimeError: no network; what is missing there follows at the study's next start."
    assert len(said(wandb)) == 4, "seed 0; it stops at the first that it cannot send"
    wandb.write_text(SAYS)
    assert mirror(folder) == ""
    assert len({run["id"] for run in said(wandb)}) == len(said(wandb)) == 12


@pytest.mark.fault
def test_a_mirror_that_hangs_is_left_behind(folder: Path, wandb: Path) -> None:
    wandb.write_text(HANGS)
    one = Mirror(folder, "offline")
    assert one._process is not None
    process = one._process
    one.close(stall=1.0)
    assert "no answer" in one.warning
    assert process.poll() is not None


@pytest.mark.fault
@pytest.mark.parametrize("code", ["import os; os._exit(5)", "raise ImportError('broken')", "syntax error"])
def test_no_wandb_can_fail_a_study(code: str, tmp_path: Path, wandb: Path, capfd: pytest.CaptureFixture[str]) -> None:
    wandb.write_text(code)
    run_study(small(), tmp_path / "out", jobs=2, wandb="offline", trainer="fake_fit")
    assert (tmp_path / "out" / "runs.jsonl").read_text().count("\n") == 12
    assert [line[:20] for line in capfd.readouterr().err.splitlines()][-1] == "warning: W&B mirror:"


def test_without_wandb_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("syncnorm.study.run.tracking.find_spec", lambda name: None)
    one = Mirror(tmp_path, "auto")
    one.close()
    assert one.warning == "W&B mirror is off: wandb is not installed."


@pytest.mark.parametrize(("key", "mode"), [("", "offline"), ("x" * 40, "online")])
def test_auto_is_online_with_a_key(
    folder: Path, wandb: Path, key: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", key)
    wandb.write_text(SAYS)
    one = Mirror(folder, "auto")
    one.close()
    assert {run["mode"] for run in said(wandb)} == {mode}


def test_off_starts_nothing(folder: Path) -> None:
    one = Mirror(folder, "off")
    assert one._process is None


@pytest.mark.dist
def test_the_real_wandb_writes_runs_that_can_be_synced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert mirror(folder) == ""
    files = list((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 12
    row = json.loads((folder / "runs.jsonl").read_text().splitlines()[1])
    (file,) = (folder / "wandb").glob(f"offline-run-*/run-{row['run_id']}.wandb")
    for piece in (b"train_loss", b"accuracy", b"per_device_batch", b"small"):
        assert piece in file.read_bytes()
