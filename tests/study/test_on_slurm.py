"""Studies as jobs, by submitit's stand-in for Slurm on this machine; what is asked of Slurm itself."""

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import submitit
from drive import clients, small
from moving import check, played, until
from processes import run as run_process

from syncnorm.errors import UserError
from syncnorm.study import run_study
from syncnorm.study.run.executors import on_slurm
from syncnorm.study.run.executors.executor import Exit, Order, Wish
from syncnorm.study.run.executors.on_slurm import OnSlurm


@pytest.mark.dist
@pytest.mark.fault
def test_a_job_at_its_time_limit_is_queued_again_and_its_run_goes_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    journal = tmp_path / "journal"
    journal.touch()

    def interrupt() -> None:
        until(lambda: max(played(journal).values(), default=0) >= 2)
        os.kill(_job_process(), signal.SIGUSR2)  # as Slurm does before a time limit

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    study = clients(round=0.25, journal=str(journal))
    run_study(study, tmp_path / "out", on="slurm:cluster=local,time=5", jobs=1, wandb="off", trainer="fake_fit")
    interrupter.join()
    check(tmp_path / "out", journal, runs=6)
    said = capfd.readouterr().err
    assert "at most 1 at once, 1 core and no GPU (--gpus-per-run 1 asks for one) for a run, 5 minutes each" in said
    assert "It goes on elsewhere" in said
    assert "Traceback" not in said
    logs = [path.read_text() for path in (tmp_path / "out" / "slurm").glob("*_log.*")]
    assert sum("Requeued job" in log for log in logs) == 1
    assert (tmp_path / "out" / "slurm").stat().st_mode & 0o777 == 0o700


def _job_process() -> int:
    """Return the id of a process in which submitit runs a job of this test."""
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if b"submitit.core._submit" in words and _parent(_parent(int(entry.name))) == os.getpid():
                return int(entry.name)
    raise AssertionError("there is no job")


def _parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


class FakeExecutor:
    """Takes what is submitted, and says what became of it."""

    told: dict[str, Any]

    def __init__(self, folder: Path, **options: Any) -> None:
        FakeExecutor.told = options

    def update_parameters(self, **options: Any) -> None:
        self.told.update(options)

    def map_array(self, function: Any, *columns: Any) -> list[Any]:
        return [FakeJob(number) for number, _ in enumerate(columns[0])]


class FakeJob:
    def __init__(self, number: int) -> None:
        self.job_id, self.cancelled = f"7_{number}", False
        self.paths = SimpleNamespace(result_pickle=Path("no such file"))
        self.left: Any = None

    def result(self) -> Any:
        return self.left

    def cancel(self, check: bool) -> None:
        self.cancelled = True


def test_slurm_gets_arrays_of_what_ranks_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: name)
    slurm = OnSlurm(Wish("partition=gpu,time=90,mem=8", jobs=3, gpus_per_run=1, folder=tmp_path))
    monkeypatch.setattr(submitit, "AutoExecutor", FakeExecutor)
    jobs = slurm.start([Order(("x.py",), {}, "/", ranks=4), Order(("x.py",), {}, "/", ranks=4)])
    assert (
        FakeExecutor.told.items()
        >= {
            "cluster": "slurm",
            "slurm_partition": "gpu",
            "timeout_min": 90,
            "mem_gb": 8,
            "cpus_per_task": 4,
            "gpus_per_node": 4,
            "nodes": 1,
            "tasks_per_node": 1,
        }.items()
    )
    assert slurm.slots(4) == 3
    assert len(jobs) == 2
    assert "127.0.0.1" not in slurm.hosts


@pytest.fixture
def says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return what puts lines into the mouth of a `squeue`; it fails as long as there are none."""
    told, program = tmp_path / "told", tmp_path / "squeue"
    program.write_text(f'#!/bin/sh\nexec cat "{told}"\n')
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name in ("ASK_SECONDS", "LOOK_SECONDS", "RESULT_SECONDS"):
        monkeypatch.setattr(on_slurm, name, 0.0)

    def say(text: str) -> None:
        told.write_text(text)

    return say


def ends(job: Any, seconds: float = 0.02) -> Exit | None:
    """Look at a job twice: whether it has ended, and whether it has left a result."""
    for _ in range(2):
        time.sleep(seconds)
        if exit := job.exit():
            return exit
    return None


def test_what_became_of_a_job_is_what_squeue_says(says: Callable[[str], None]) -> None:
    states = on_slurm.States()
    jobs = [on_slurm._Job(FakeJob(number), states) for number in range(5)]
    assert [ends(job) for job in jobs] == [None] * 5  # the controller does not answer
    says("7_0 RUNNING\n7_1 NODE_FAIL\n7_2 PENDING\n7_3 COMPLETING\n")
    expected = {1: "its job 7_1 ended as NODE_FAIL", 4: "its job is gone"}
    assert [ends(job) for job in jobs] == [Exit(None, expected[n]) if n in expected else None for n in range(5)]
    says("")
    assert ends(jobs[0]) == Exit(None, "its job is gone")


def test_a_job_that_has_ended_has_time_to_leave_its_result(
    says: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_slurm, "RESULT_SECONDS", 60.0)
    says("7_0 COMPLETED\n7_1 COMPLETED\n")
    states, fakes = on_slurm.States(), [FakeJob(0), FakeJob(1)]
    jobs = [on_slurm._Job(fake, states) for fake in fakes]
    assert [ends(job) for job in jobs] == [None, None]
    (tmp_path / "result").touch()
    for fake, code in zip(fakes, (7, -signal.SIGTERM), strict=True):
        fake.paths.result_pickle, fake.left = tmp_path / "result", (code, "its last words")
    assert ends(jobs[0]) == Exit(7, "its last words")
    assert ends(jobs[1]) == Exit(None, "its job 7_1 was told to end")  # by Slurm: no fault of its run


@pytest.mark.parametrize(
    ("on", "said"),
    [
        ("slurm", "there is no Slurm here"),
        ("slurm:cluster=pbs", "cluster is slurm, or local"),
        ("slurm:cluster=local,time=1h", "write a whole number of minutes"),
        ("slurm:gpu", "'gpu' in --on slurm:gpu is no option: write KEY=VALUE"),
        ("slurm:cluster=local,partitoin=gpu", "Unknown argument 'partitoin'"),
        ("slurm:nodes=2", "a job is one process, or one node's ranks"),
        ("local:here", "this machine has no address"),
        ("slrum", "unknown executor 'slrum': did you mean 'slurm'"),
    ],
)
def test_what_cannot_be_is_said(on: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)  # whatever is installed here
    with pytest.raises(UserError, match=said):
        run_study(small(), tmp_path / "out", on=on)
    assert not (tmp_path / "out").exists()


def test_shares_of_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="uses at most one GPU"):
        run_study(small(), tmp_path / "out", gpus_per_run=1.5)
    with pytest.raises(UserError, match="Slurm gives whole GPUs"):
        OnSlurm(Wish("cluster=local", gpus_per_run=0.5))
    with pytest.raises(UserError, match="this machine shows no CUDA device"):
        run_study(small(), tmp_path / "out", gpus_per_run=0.5)


def test_a_package_that_is_missing_is_named(tmp_path: Path) -> None:
    """Told in a process that cannot import it."""
    (tmp_path / "submitit.py").write_text("raise ModuleNotFoundError('none', name='submitit')")
    (tmp_path / "call.py").write_text(
        "from syncnorm.study.run.executors.registry import open_executor\n"
        "from syncnorm.study.run.executors.executor import Wish\n"
        "open_executor('slurm', Wish())\n"
    )
    done = run_process(tmp_path / "call.py", imports="syncnorm.study")
    assert (
        "--on slurm needs the package 'submitit', which is not installed: pip install 'syncnorm[slurm]'"
        in done.stderr
    )
