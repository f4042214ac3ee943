"""Studies of clients, and of both worlds: what is run where, and going on inside a run that was killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from drive import clients
from fake_fit import fit

from syncnorm.config import Clients, Devices, Execution, Run, run_id
from syncnorm.errors import UserError
from syncnorm.study.plan.spec import Grid, Study, expand, with_engine
from syncnorm.study.report.plots import Curve
from syncnorm.study.rows import Agreement, failed_row, finished_row, read
from syncnorm.study.run.runner import run_study
from syncnorm.study.run.store import Store

DRIVE = Path(__file__).with_name("drive.py")
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}


def run(study: Study, out: Path, **options: Any) -> None:
    run_study(study, out, **{"jobs": 2, "wandb": "off", "trainer": "fake_fit", **options})


def results(out: Path) -> dict[str, object]:
    return {row["run_id"]: (row["metrics"], row["history"]) for row in read(out).finished}


def rounds_played(journal: Path) -> Counter[str]:
    return Counter(journal.read_text().splitlines())


def test_every_run_of_clients_has_a_row_and_leaves_no_checkpoint(tmp_path: Path) -> None:
    study, out = clients(), tmp_path / "out"
    run(study, out)
    assert results(out).keys() == {run_id(one) for one in expand(study)}
    assert not (out / "checkpoints").exists()
    assert (out / "report.html").is_file()


@pytest.mark.fault
def test_a_run_whose_worker_died_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    journal, calm = tmp_path / "journal", tmp_path / "calm"
    options = {"end": 3, "once": str(tmp_path / "once"), "journal": str(journal)}
    study = replace(clients(**options), vary={"method": ["fedbn"]}, seeds=1)
    run(study, tmp_path / "out")
    assert set(rounds_played(journal).values()) == {1}, "no round twice"
    assert len(rounds_played(journal)) == 5
    run(study, calm)  # the fault is spent: the same study undisturbed
    assert results(tmp_path / "out") == results(calm)


@pytest.mark.fault
def test_a_killed_study_goes_on_inside_its_runs_and_ends_with_the_same_numbers(tmp_path: Path) -> None:
    out, calm, journal = tmp_path / "out", tmp_path / "calm", tmp_path / "journal"
    command = [sys.executable, str(DRIVE), str(out), "clients=1", "round=0.15", f"journal={journal}"]
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not journal.exists() or len(rounds_played(journal)) < 3:
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    time.sleep(2)  # its workers notice within a second; what they still play counts
    before = rounds_played(journal)
    kept = {path.name: len(json.loads((path / "state.json").read_text())) for path in (out / "checkpoints").iterdir()}
    assert kept, "a run was under way"
    subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, timeout=120)
    played = rounds_played(journal)
    study = clients(round=0.15, journal=str(journal))
    assert len(played) == 5 * len(expand(study))
    again = sum(played.values()) - len(played)
    assert again <= len(kept), "at most the round that a run was killed in, once"
    assert sum(before.values()) < sum(played.values())
    assert not (out / "checkpoints").exists()
    run(study, calm)
    assert results(out) == results(calm)


def test_leftovers_of_finished_runs_go_at_the_start_and_those_of_others_stay(tmp_path: Path) -> None:
    study, out = clients(), tmp_path / "out"
    first, *others = expand(study)
    run(replace(study, vary={"method": [first.world.method]}, seeds=1), out)  # type: ignore[union-attr]
    for one in (first, others[0]):
        (out / "checkpoints" / run_id(one)).mkdir(parents=True)
        (out / "checkpoints" / run_id(one) / "state.json").write_text("[1, 2]")
    with Store.open(out, study) as store:
        assert [path.name for path in store.checkpoints.iterdir()] == [run_id(others[0])]


@pytest.mark.parametrize("ended", ["finished", "failed"])
def test_a_run_with_a_row_has_no_checkpoint_so_that_what_failed_starts_afresh(tmp_path: Path, ended: str) -> None:
    study = clients()
    one, other = expand(study)[:2]
    failed = failed_row(study.name, one, "no use", 1.0, {})
    with Store.open(tmp_path, study) as store:
        for kept in (one, other):
            (store.checkpoints / run_id(kept)).mkdir(parents=True)
        row = (
            failed
            if ended == "failed"
            else finished_row(study.name, fit(one, Execution(store.checkpoints / run_id(one))))
        )
        store.append(row)
        assert [path.name for path in store.checkpoints.iterdir()] == [run_id(other)]


@pytest.mark.fault
def test_a_run_that_lost_its_process_twice_goes_on_at_the_next_start(tmp_path: Path) -> None:
    study = replace(clients(fault="kill"), vary={"method": ["fedavg"]}, seeds=1)
    (one,) = expand(study)
    with Store.open(tmp_path, study) as store:
        (store.checkpoints / run_id(one)).mkdir(parents=True)
        (store.checkpoints / run_id(one) / "state.json").write_text("[1, 2]")
    run(study, tmp_path)
    (row,) = read(tmp_path).failed
    assert "was killed by SIGKILL" in row["error"]
    assert (tmp_path / "checkpoints" / run_id(one) / "state.json").exists()


def both() -> Study:
    devices = Grid({"world": [Devices(ranks=2), Devices(ranks=4)], "norm": ["bn", "gn"], "skew": [0.0]}, seeds=1)
    return replace(
        clients(),
        vary={"method": ["fedavg", "fedbn"]},
        seeds=1,
        also=(devices,),
        figures=(
            Curve("method", "norm"),
            Curve("ranks", "norm"),
            Curve("norm", "skew", where={"world.kind": "devices"}),
        ),
        agreements=(Agreement("engine"), Agreement("method")),
    )


def test_a_study_may_have_both_worlds(tmp_path: Path) -> None:
    run(both(), tmp_path)
    found = read(tmp_path)
    assert Counter(row["config"]["world"]["kind"] for row in found.finished) == {"clients": 2, "devices": 4}
    page = (tmp_path / "report.html").read_text()
    assert page.count("<figure") == 3
    assert "label-sorted data" in page


def test_an_engine_is_for_the_runs_of_its_world() -> None:
    assert {one.world.engine for one in expand(with_engine(both(), "torchrun"))} == {"torchrun"}  # both have it
    runs = expand(with_engine(both(), "cohort"))
    assert {one.world.engine for one in runs if isinstance(one.world, Devices)} == {"virtual"}
    assert {one.world.engine for one in runs if isinstance(one.world, Clients)} == {"cohort"}
    with pytest.raises(UserError, match=r"engine 'virtual': those of clients have auto, cohort, loop, flower, torch"):
        with_engine(clients(), "virtual")
    with pytest.raises(UserError, match=r"those of devices have virtual, torchrun"):
        with_engine(Study("s", "?", Run(), {"norm": ["bn"]}), "cohort")


def test_a_field_of_no_world_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown field of a run 'metod': did you mean 'method'"):
        run(replace(both(), figures=(Curve("metod", "norm"),)), tmp_path / "out")
    assert not (tmp_path / "out").exists()
