"""Studies in processes of their own, killed and started again."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from drive import small

from syncnorm.config import run_id
from syncnorm.study.plan.spec import expand
from syncnorm.study.rows import read

DRIVE = Path(__file__).with_name("drive.py")
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}


def start(out: Path, *options: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *launcher, str(DRIVE), str(out), *options],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    )


def heed_interrupts() -> None:
    """Undo what a shell does to commands in its background, these tests among them: they ignore interrupts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for the end of a process that must succeed; return its stderr."""
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return said


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate(timeout=60)


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def rows(out: Path) -> int:
    path = out / "runs.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def alive(pid: int) -> bool:
    """Return whether a process runs; one that has ended and that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def all_gone(pids: Path) -> bool:
    return not any(alive(int(path.name)) for path in pids.iterdir())


def numbers(out: Path) -> dict[str, object]:
    """Return the metrics of every run, and the tables but for the one that has seconds and dates in it."""
    tables = {path.name: path.read_text() for path in (out / "tables").iterdir() if path.name != "runs.csv"}
    return {**{row["run_id"]: row["metrics"] for row in read(out).finished}, **tables}


@pytest.mark.fault
def test_a_study_killed_at_any_moment_goes_on_and_ends_with_the_same_numbers(tmp_path: Path) -> None:
    out, calm = tmp_path / "out", tmp_path / "calm"
    draw = random.Random(0)
    for after in (0, 5):
        process = start(out, "sleep=0.1")
        until(lambda least=after: out.exists() and rows(out) >= least)  # type: ignore[misc]
        time.sleep(draw.uniform(0, 0.15))
        kill(process)
        assert rows(out) < 12
    again, whole = start(out, "sleep=0.1"), start(calm, "sleep=0.1")
    finish(again)
    finish(whole)
    assert rows(out) == 12, "no run twice"
    assert {row["run_id"] for row in read(out).finished} == {run_id(run) for run in expand(small(sleep=0.1))}
    assert numbers(out) == numbers(calm)


@pytest.mark.fault
def test_workers_end_when_the_study_is_killed(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    pids.mkdir()
    process = start(tmp_path / "out", "sleep=60", f"pids={pids}")
    until(lambda: len(list(pids.iterdir())) == 2)
    kill(process)
    until(lambda: all_gone(pids), seconds=10)


@pytest.mark.fault
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_study_keeps_its_rows_reports_them_and_leaves_no_process(
    number: signal.Signals, tmp_path: Path
) -> None:
    out, pids = tmp_path / "out", tmp_path / "pids"
    pids.mkdir()
    process = start(out, "sleep=0.3", f"pids={pids}")
    until(lambda: rows(out) >= 3)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert said.splitlines()[-1] == "KeyboardInterrupt"
    assert all_gone(pids)
    assert (out / "report.html").is_file()
    assert 3 <= len(read(out).finished) < 12


@pytest.mark.dist
@pytest.mark.fault
def test_ranks_end_when_the_study_is_killed(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    pids.mkdir()
    process = start(tmp_path / "out", "engine=torchrun", "sleep=60", f"pids={pids}")
    until(lambda: len(list(pids.iterdir())) == 2)
    kill(process)
    until(lambda: all_gone(pids), seconds=15)


@pytest.mark.dist
@pytest.mark.fault
def test_ranks_end_whose_launcher_was_killed_while_they_started(tmp_path: Path) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    process = start(tmp_path / "out", "engine=torchrun", "sleep=60", launcher=torchrun)
    ranks: list[int] = []

    def started() -> bool:
        lines = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        ranks[:] = map(int, lines.split())
        return len(ranks) == 2

    until(started)
    kill(process)
    until(lambda: not any(map(alive, ranks)), seconds=40)


@pytest.mark.dist
def test_started_by_torchrun_the_ranks_train_together_and_rank_0_writes(tmp_path: Path) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    out = tmp_path / "out"
    said = finish(start(out, "engine=torchrun", "wandb=off", launcher=torchrun))
    assert said.count("12/12 runs, 0 failed") == 1
    assert len(read(out).finished) == 12
    assert (out / "report.html").is_file()


@pytest.mark.dist
@pytest.mark.fault
def test_started_by_torchrun_a_failure_on_any_rank_is_a_row_and_ends_all(tmp_path: Path) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    out, pids = tmp_path / "out", tmp_path / "pids"
    pids.mkdir()
    process = start(out, "engine=torchrun", f"pids={pids}", "fault=raise", "rank=1", launcher=torchrun)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "failed: seed 0: ZeroDivisionError: no such thing" in said
    row = json.loads((out / "runs.jsonl").read_text())
    assert row["error"] == "ZeroDivisionError: no such thing"
    assert (out / "report.html").is_file()
    until(lambda: all_gone(pids), seconds=10)
