"""Experiment trackers: they follow a study, are complete in the end, and unable to fail or delay it."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from drive import clients, small
from fake_fit import fit
from made_up_domains import domain_row, domains_study

from syncnorm.config import Execution, Progress, run_id
from syncnorm.study.plan.spec import expand
from syncnorm.study.rows import failed_row, finished_row
from syncnorm.study.run.runner import run_study
from syncnorm.study.run.store import Store
from syncnorm.study.run.tracking.sinks import steps_of
from syncnorm.study.run.tracking.trackers import Tracker, folder_id

SAYS = """
import json, os, sys
class Settings(dict):
    pass
class Config(dict):
    def update(self, values, allow_val_change):
        super().update(values)
class Artifact:
    def __init__(self, name, type):
        self.said = [name, type]
    def add_dir(self, path, name):
        self.said.append(sorted(os.listdir(path)))
    def add_file(self, path):
        self.said.append(os.path.basename(path))
class Run:
    def __init__(self, options):
        self.said = {**options, "settings": None, "logged": []}
        self.config = Config(options.get("config", {}))
        self.summary = {}
    def log(self, values, step):
        self.said["logged"].append([step, values])
        with open(os.environ["SAID"] + ".live", "a") as file:
            print(json.dumps([self.said["id"], step, values]), file=file)
    def log_artifact(self, artifact):
        self.said["artifact"] = artifact.said
    def finish(self, exit_code=0):
        said = {**self.said, "config": self.config, "summary": self.summary, "exit_code": exit_code}
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
    if options.get("config", {}).get("seed") == 1:
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
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))  # before the installed one, in the tracker's process too
    monkeypatch.setenv("SAID", str(tmp_path / "said"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return tmp_path / "fake" / "wandb.py"


LABELS = {run_id(expand(small())[1]): "norm bn, seed 1"}


def track(folder: Path, stall: float = 60.0) -> str:
    """Hand the rows of a folder over; return the warning."""
    one = Tracker(folder, "wandb", "offline", LABELS)
    one.close(stall)
    return one.warning


def said(wandb: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (wandb.parents[1] / "said").read_text().splitlines()]


def test_a_row_becomes_a_run(folder: Path, wandb: Path) -> None:
    wandb.write_text(SAYS)
    assert track(folder) == ""
    row = json.loads((folder / "runs.jsonl").read_text().splitlines()[1])
    failed, finished, *others = said(wandb)
    assert finished == {
        "project": "syncnorm", "group": "small", "id": f"{row['run_id']}-{folder_id(folder)}",
        "name": "norm bn, seed 1",
        "job_type": "devices", "tags": ["small", "devices", "bn", "small_cnn"], "reinit": "create_new",
        "config": {**row["config"], "evaluated_by": "own", "commit": row["environment"].get("commit", "")},
        "dir": str(folder), "mode": "offline", "resume": "allow", "settings": None,
        "logged": [[1, {"epoch": 1, "train_loss": 2.0}], [2, {"epoch": 2, "train_loss": 1.0}]],
        "summary": {**row["metrics"], "seconds": row["seconds"]}, "exit_code": 0,
    }  # fmt: skip
    assert (failed["summary"], failed["exit_code"]) == ({"error": "it broke.", "seconds": 1.0}, 1)
    assert failed["name"] == json.loads((folder / "runs.jsonl").read_text().splitlines()[0])["run_id"], "no label"
    assert len(others) == 10


def test_the_history_of_clients_is_logged_by_round(tmp_path: Path, wandb: Path) -> None:
    wandb.write_text(SAYS)
    study = clients()
    run = expand(study)[0]
    with Store.open(tmp_path / "out", study) as store:
        store.append(finished_row(study.name, fit(run, Execution(tmp_path / "checkpoint"))))
    assert track(tmp_path / "out") == ""
    (sent,) = said(wandb)
    assert [(step, values["round"], set(values)) for step, values in sent["logged"]] == [
        (number, number, {"round", "train_loss"}) for number in range(1, 6)
    ]


def test_the_history_of_domains_is_logged_by_epoch(tmp_path: Path, wandb: Path) -> None:
    wandb.write_text(SAYS)
    study = domains_study()
    with Store.open(tmp_path / "out", study) as store:
        store.append(domain_row(study.name, expand(study)[0]))
    assert track(tmp_path / "out") == ""
    (sent,) = said(wandb)
    assert [(step, values["epoch"]) for step, values in sent["logged"]] == [
        (number, number) for number in range(1, 11)
    ]
    assert set(sent["logged"][0][1]) == {"epoch", "train_loss", "seen_accuracy", "unseen_accuracy"}


def test_every_row_once_and_a_retried_run_again(folder: Path, wandb: Path) -> None:
    wandb.write_text(SAYS)
    track(folder)
    track(folder)
    assert len(said(wandb)) == 12
    with Store.open(folder, small()) as store:
        store.append(finished_row("small", fit(expand(small())[0], Execution())))
    track(folder)
    assert len(said(wandb)) == 13
    assert said(wandb)[-1]["exit_code"] == 0


def test_what_failed_or_was_killed_follows_at_the_next_start(folder: Path, wandb: Path) -> None:
    wandb.write_text(RAISES)
    warning = track(folder)
    assert warning == "W&B: RuntimeError: no network; what is missing there follows at the study's next start."
    assert len(said(wandb)) == 4, "seed 0; it stops at the first that it cannot send"
    wandb.write_text(SAYS)
    assert track(folder) == ""
    assert len({run["id"] for run in said(wandb)}) == len(said(wandb)) == 12


@pytest.mark.fault
def test_a_tracker_that_hangs_is_left_behind(folder: Path, wandb: Path) -> None:
    wandb.write_text(HANGS)
    one = Tracker(folder, "wandb", "offline")
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
    assert [line[:13] for line in capfd.readouterr().err.splitlines()][-1] == "warning: W&B:"


def test_without_wandb_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("syncnorm.study.run.tracking.trackers.find_spec", lambda name: None)
    one = Tracker(tmp_path)
    one.close()
    assert one.warning == "W&B is off: wandb is not installed."


@pytest.mark.parametrize(("key", "mode"), [("", "offline"), ("x" * 40, "online")])
def test_auto_is_online_with_a_key(
    folder: Path, wandb: Path, key: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", key)
    wandb.write_text(SAYS)
    one = Tracker(folder)
    one.close()
    assert {run["mode"] for run in said(wandb)} == {mode}


def test_off_starts_nothing(folder: Path) -> None:
    one = Tracker(folder, "wandb", "off")
    assert one._process is None


@pytest.mark.dist
def test_the_real_wandb_writes_runs_that_can_be_synced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert track(folder) == ""
    files = list((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 12
    row = json.loads((folder / "runs.jsonl").read_text().splitlines()[1])
    (file,) = (folder / "wandb").glob(f"offline-run-*/run-{row['run_id']}-{folder_id(folder)}.wandb")
    for piece in (b"train_loss", b"accuracy", b"per_device_batch", b"small"):
        assert piece in file.read_bytes()


def news(step: int, loss: float) -> Progress:
    return Progress(step, 2, "epoch", step / 2, 10.0, loss, 1.0, {"train_loss": loss})


def until(true: Any) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_a_run_is_followed_while_it_trains(folder: Path, wandb: Path) -> None:
    wandb.write_text(SAYS)
    track(folder)
    live, ended = wandb.parents[1] / "said.live", len(said(wandb))
    live.unlink()
    run = expand(small())[0]
    one = Tracker(folder, "wandb", "offline", {run_id(run): "norm bn, seed 0"})
    one.started(run)
    one.advanced(run, news(1, 2.0))
    until(lambda: live.exists() and live.read_text().endswith("\n"))
    assert json.loads(live.read_text())[1:] == [1, {"epoch": 1, "train_loss": 2.0}]
    assert len(said(wandb)) == ended, "the run goes on"
    with Store.open(folder, small()) as store:
        store.append(finished_row("small", fit(run, Execution())))
    one.close()
    assert one.warning == ""
    sent = said(wandb)[-1]
    assert len(said(wandb)) == ended + 1
    assert sent["name"] == "norm bn, seed 0"
    assert [step for step, _ in sent["logged"]] == [1, 2], "no step twice"
    assert (sent["summary"]["progress"], sent["exit_code"]) == (0.5, 0)


def test_a_run_that_was_interrupted_is_let_go(folder: Path, wandb: Path) -> None:
    wandb.write_text(SAYS)
    track(folder)
    one = Tracker(folder, "wandb", "offline")
    one.started(expand(small())[0])
    one.close()
    assert said(wandb)[-1]["exit_code"] == 255


def test_a_row_that_comes_before_its_start_ends_the_run(folder: Path, wandb: Path) -> None:
    wandb.write_text(SAYS)
    one = Tracker(folder, "wandb", "offline")
    until(lambda: (folder / "wandb" / "mirrored").exists() and len(said(wandb)) == 12)
    one.started(expand(small())[1])
    one.advanced(expand(small())[1], news(1, 2.0))
    one.close()
    assert one.warning == ""
    assert len(said(wandb)) == 12, "no run is opened again"


def test_a_run_that_is_trained_again_is_followed_again(folder: Path, wandb: Path) -> None:
    wandb.write_text(SAYS)
    track(folder)
    run = expand(small())[1]
    one = Tracker(folder, "wandb", "offline")
    one.started(run)
    row = finished_row("small", fit(run, Execution()))
    with Store.open(folder, small()) as store:
        store.finished.remove(run_id(run))
        store.append({**row, "seconds": 77.0, "finished": "2100-01-01T00:00:00+00:00"})
    one.close()
    *_, again = said(wandb)
    assert (len(said(wandb)), again["summary"]["seconds"], again["exit_code"]) == (13, 77.0, 0)


def test_names_are_kept_however_much_waits(folder: Path, wandb: Path) -> None:
    wandb.write_text(SAYS)
    run = run_id(expand(small())[1])
    lines = [{"labels": {run: "a name"}}, *[{"advanced": "another", "metrics": {}}] * 5000]
    program = [sys.executable, "-m", "syncnorm.study.run.tracking.process", str(folder), "wandb", "offline"]
    subprocess.run(program, input="".join(f"{json.dumps(line)}\n" for line in lines), text=True, check=True)
    assert "a name" in {one["name"] for one in said(wandb)}


def test_tables_and_figures_come_as_an_artifact(tmp_path: Path, wandb: Path) -> None:
    wandb.write_text(SAYS)
    run_study(small(), tmp_path / "out", jobs=2, wandb="offline", trainer="fake_fit")
    *runs, report = said(wandb)
    assert len(runs) == 12
    assert {run["name"] for run in runs} >= {"norm bn, per_device_batch 2, seed 0"}
    assert report["name"] == "report of small"
    name, kind, tables, figures, page = report["artifact"]
    assert (name, kind, page) == ("small-report", "report", "report.html")
    assert "runs.csv" in tables
    assert any(file.endswith(".png") or file.endswith(".svg") for file in figures)


def test_two_folders_share_no_ids(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    assert folder_id(first) != folder_id(second)
    assert folder_id(first) == folder_id(first)


@pytest.mark.fault
def test_a_tracker_that_does_not_read_delays_nobody(folder: Path, wandb: Path) -> None:
    wandb.write_text(HANGS)
    one = Tracker(folder, "wandb", "offline")
    run, began = expand(small())[0], time.monotonic()
    one.started(run)
    for step in range(20_000):
        one.advanced(run, news(step, 1.0))
    assert time.monotonic() - began < 10
    assert len(one._news) <= 1000
    one.close(stall=1.0)
    assert "no answer" in one.warning


def test_a_history_with_gaps_is_logged_where_its_values_are() -> None:
    history = {"train_loss": [3.0, 2.0, 1.0], "accuracy": [0.5, 0.6], "accuracy_at": [2.0, 3.0]}
    assert list(steps_of(history)) == [
        (1, {"train_loss": 3.0}),
        (2, {"train_loss": 2.0, "accuracy": 0.5}),
        (3, {"train_loss": 1.0, "accuracy": 0.6}),
    ]


TENSORBOARD = """
import json, os
class SummaryWriter:
    def __init__(self, folder):
        self.said = {"folder": os.path.basename(folder), "scalars": [], "texts": []}
    def add_text(self, name, text):
        self.said["texts"].append([name, text.strip()])
    def add_scalar(self, name, value, step):
        self.said["scalars"].append([name, value, step])
    def flush(self):
        pass
    def close(self):
        with open(os.environ["SAID"], "a") as file:
            print(json.dumps(self.said), file=file)
"""


def test_tensorboard_follows_too(folder: Path, wandb: Path) -> None:
    package = wandb.parent / "torch" / "utils" / "tensorboard"
    package.mkdir(parents=True)
    for place in (wandb.parent / "torch", wandb.parent / "torch" / "utils"):
        (place / "__init__.py").write_text("")
    (package / "__init__.py").write_text(TENSORBOARD)
    (wandb.parent / "tensorboard.py").write_text("")
    one = Tracker(folder, "tensorboard", labels=LABELS)
    one.close()
    assert one.warning == ""
    row = json.loads((folder / "runs.jsonl").read_text().splitlines()[1])
    failed, finished, *others = said(wandb)
    assert finished["folder"] == f"norm bn_ seed 1 {row['run_id']}-{folder_id(folder)}"
    scalars = [["train_loss", 2.0, 1], ["train_loss", 1.0, 2]]
    assert finished["scalars"] == [*scalars, *([f"end/{name}", value, 2] for name, value in row["metrics"].items())]
    assert json.loads(finished["texts"][0][1]) == row["config"]
    assert json.loads(failed["texts"][1][1])["error"] == "it broke."
    assert len(others) == 10


@pytest.mark.dist
def test_the_real_tensorboard_writes_what_it_can_read(folder: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    one = Tracker(folder, "tensorboard", labels=LABELS)
    one.close(60)
    assert one.warning == ""
    (place,) = (folder / "tensorboard").glob("norm bn_ seed 1 *")
    events = EventAccumulator(str(place)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train_loss")] == [(1, 2.0), (2, 1.0)]
