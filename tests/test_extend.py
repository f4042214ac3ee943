"""The door: what other people register works wherever a run goes.

Every example of docs/extend.md is registered at once, as a study's own file would, as a module that it imports, and
as an installed package; the runs go through two workers, two ranks of torchrun, and Flower's own simulation.
"""

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import CLIENTS, DEVICES, torchrun
from processes import run as run_process

from syncnorm.study.rows import Results, read

PAGE = Path(__file__).parents[1] / "docs" / "extend.md"
BLOCKS = re.findall(r"## (?:A|An) (\w+)[^\n]*\n.*?```python\n(.*?)```", PAGE.read_text(), flags=re.S)
COMMAND = ("run", "own.py", "--wandb", "off", "--out", "out")
REGISTRATIONS = "\n".join(re.split("\n(?:BASE|WORLD|STUDY) = ", block)[0] for _, block in BLOCKS)

STUDY = """
from syncnorm.config import Clients, Data, Devices, Domains, Norm, Optim, Run
from syncnorm.study import Columns, Grid, Study

MINE = {{"method": "affine_home", "algorithm": "half_step", "skew": "parity"}}
SITES = Clients(count=2, rounds=2, batch=8, engine={engine!r}, **MINE)
BASE = Run(
    data=Data("stripes", options={{"samples": 260}}),
    model="two_layers",
    norm=Norm("scale_only", {{"init": 0.5}}) if {world!r} == "devices" else Norm("bn"),
    world=Devices(2, 8, engine={engine!r}) if {world!r} == "devices" else SITES,
    optim=Optim(epochs=1),
)
STUDY = Study("own", "Does it work?", BASE, {{"lr": [0.01, 0.05]}}, seeds=2,
              figures=(Columns("lr", ("accuracy", "top2")),{plot}))
"""


def place(folder: Path) -> dict[str, Any]:
    """Return where a process finds what lies in a folder, as its own processes do."""
    path = [str(folder), *filter(None, sys.path)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "FLWR_TELEMETRY_ENABLED": "0"}
    return {"cwd": folder, "env": env, "path": path}


def command(folder: Path, *options: str, imports: str = DEVICES) -> str:
    """Run `syncnorm run own.py` in a folder, in a process of its own, and return what it printed."""
    done = run_process("syncnorm", *COMMAND, *options, imports=imports, **place(folder))
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def run(folder: Path, *options: str, imports: str = DEVICES) -> Results:
    """Run `syncnorm run own.py` likewise, and return what its results folder holds."""
    command(folder, *options, imports=imports)
    return read(folder / "out")


def study(world: str, engine: str, plot: str = "Minutes()") -> str:
    return STUDY.format(world=world, engine=engine, plot=plot)


def check(results: Results, *made_of: str, runs: int = 4) -> None:
    assert len(results.finished) == runs
    for row in results.finished:
        assert row["metrics"]["top2"] == 1.0, "of two classes"
        assert set(made_of) <= set(row["fingerprints"])


@pytest.mark.dist
@pytest.mark.parametrize(("where", "workers"), [("file", 1), ("module", 1), ("package", 1)])
def test_devices_in_workers(tmp_path: Path, where: str, workers: int) -> None:
    if where == "file":
        (tmp_path / "own.py").write_text(REGISTRATIONS + study("devices", "virtual"))
    else:
        (tmp_path / "my_module.py").write_text(REGISTRATIONS)
        imported, plot = ("from my_module import Minutes\n", "Minutes()") if where == "module" else ("", "")
        (tmp_path / "own.py").write_text(imported + study("devices", "virtual", plot))
    if where == "package":
        info = tmp_path / "mine-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[syncnorm.plugins]\nmine = my_module\n")
    how = ("--on", f"shown:{workers}") if where == "module" else ("--jobs", str(workers))
    results = run(tmp_path, *how)
    check(results, "norm scale_only", "model two_layers", "data stripes", "metric top2")


@pytest.mark.dist
def test_devices_under_torchrun(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(REGISTRATIONS + study("devices", "torchrun"))
    ours = run(tmp_path, "--first-seed", "5")
    torchrun(2, "syncnorm", *COMMAND, "--first-seed", "7", imports=DEVICES, **place(tmp_path))
    theirs = read(tmp_path / "out")
    for results in (ours, theirs):
        check(results, "norm scale_only", "model two_layers")


@pytest.mark.dist
def test_clients_in_two_workers(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(REGISTRATIONS + study("clients", "loop"))
    made_of = ("policy affine_home", "partition parity", "model two_layers", "data stripes", "algorithm half_step")
    check(run(tmp_path, "--jobs", "2", "--vary", "engine=loop,cohort", imports=CLIENTS), *made_of, runs=8)


@pytest.mark.slow  # test_own_methods.py takes names of one's own through it, too
@pytest.mark.dist
def test_clients_over_flowers_own_simulation(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    (tmp_path / "own.py").write_text(REGISTRATIONS + study("clients", "flower"))
    results = run(tmp_path, "--jobs", "1", "--seeds", "1", "--vary", "lr=0.05", imports=CLIENTS)
    check(results, "policy affine_home", runs=1)


def test_every_kind_of_name_has_an_example() -> None:
    from syncnorm.registry import HOMES

    assert {kind.lower() for kind, _ in BLOCKS} == set(HOMES)
    for kind, block in BLOCKS:
        assert len([line for line in block.splitlines() if line.strip()]) <= 20, kind


@pytest.mark.dist
def test_an_edited_model_is_said_and_its_runs_are_trained_again(tmp_path: Path) -> None:
    module = tmp_path / "my_module.py"
    module.write_text(REGISTRATIONS)
    (tmp_path / "own.py").write_text("import my_module\n" + study("devices", "virtual", ""))
    before = run(tmp_path, "--seeds", "1", "--jobs", "1")
    module.write_text(REGISTRATIONS.replace("padding=1", "padding='same'"))

    assert "2 runs, 0 finished, 2 to train" in (plan := command(tmp_path, "--seeds", "1", "--dry-run"))
    assert "model two_layers has changed" in plan
    assert "2 finished runs, kept as --keep says" in command(tmp_path, "--seeds", "1", "--keep")
    assert read(tmp_path / "out").rows == before.rows
    assert "2 finished runs, to be trained again" in command(tmp_path, "--seeds", "1", "--jobs", "1")
    after = read(tmp_path / "out").rows
    assert all(after[run]["fingerprints"] != row["fingerprints"] for run, row in before.rows.items())
