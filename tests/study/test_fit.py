"""A run goes to the function of its world."""

import subprocess
import sys
from pathlib import Path

import pytest

import syncnorm.federated as federated
import syncnorm.training as training
from syncnorm.config import Clients, Devices, Result, Run, describe, run_id
from syncnorm.study import fit as worlds

RUNS = [Run(world=Devices()), Run(world=Clients())]


def result(run: Run, evaluated_by: str) -> Result:
    return Result(run_id(run), describe(run), {}, evaluated_by, 0.0, {})


def test_the_world_decides_what_trains_and_only_clients_keep_a_checkpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def simulate(run: Run, checkpoint: Path | None = None) -> Result:
        return result(run, f"clients, {checkpoint}")

    monkeypatch.setattr(training, "fit", lambda run: result(run, "devices"))
    monkeypatch.setattr(federated, "simulate", simulate, raising=False)
    assert [worlds.fit(run, tmp_path).evaluated_by for run in RUNS] == ["devices", f"clients, {tmp_path}"]


def test_checks_are_asked_of_the_runs_own_world(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Run]] = []
    monkeypatch.setattr(training, "check", lambda run: asked.append(("devices", run)))
    monkeypatch.setattr(federated, "check", lambda run: asked.append(("clients", run)), raising=False)
    for run in RUNS:
        worlds.check(run)
    assert asked == [("devices", RUNS[0]), ("clients", RUNS[1])]


def test_both_worlds_forget(monkeypatch: pytest.MonkeyPatch) -> None:
    forgot: list[str] = []
    monkeypatch.setattr(training, "forget", lambda: forgot.append("devices"))
    monkeypatch.setattr(federated, "forget", lambda: forgot.append("clients"), raising=False)
    worlds.forget()
    assert forgot == ["devices", "clients"]


def test_nothing_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys; from syncnorm.study import fit; fit.forget();"
        "sys.exit(any(name in sys.modules for name in ('torch', 'syncnorm.training', 'syncnorm.federated')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
