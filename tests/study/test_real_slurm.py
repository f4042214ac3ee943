"""Studies as jobs of a real Slurm, without accounting as on many clusters, that loses and requeues them."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from drive import clients
from moving import check, played, until
from slurm_pair import missing, slurm, told

from syncnorm.config import Devices, Result, Run
from syncnorm.errors import UserError
from syncnorm.study import run_study
from syncnorm.study.run.executors.executor import Wish
from syncnorm.study.run.executors.on_slurm import OnSlurm
from syncnorm.study.run.processes.events import Ended
from syncnorm.study.run.processes.workers import work

pytestmark = [
    pytest.mark.dist,
    pytest.mark.fault,
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=f"Slurm is not installed: there is no {', '.join(missing())}"),
]
Environment = dict[str, str]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """A controller and a node of two cores; commands of this process find them."""
    with pytest.MonkeyPatch.context() as patch, slurm(tmp_path_factory.mktemp("slurm")) as environment:
        patch.setenv("SLURM_CONF", environment["SLURM_CONF"])
        yield environment


def run_with_a_fault(folder: Path, fault: Callable[[str], None], jobs: int = 1) -> None:
    """Run a study of six runs; when one is in its second round, do something to a job, whose number `fault` gets."""
    journal = folder / "journal"
    journal.touch()
    problems: list[BaseException] = []

    def strike() -> None:
        try:
            until(lambda: max(played(journal).values(), default=0) >= 2)
            fault(told({}, "squeue", "--noheader", "--array", "--states=RUNNING", "--format=%i").split()[0])
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=strike)
    thread.start()
    study = clients(round=0.25, journal=str(journal))
    run_study(study, folder / "out", on="slurm:time=5", jobs=jobs, wandb="off", trainer="fake_fit")
    thread.join()
    assert not problems, problems
    check(folder / "out", journal, runs=6)
    until(lambda: not told({}, "squeue", "--noheader"))  # no job outlives the study


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_preempted_job_is_replaced(
    cluster: Environment, jobs: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def preempt(job: str) -> None:
        told({}, "scancel", job)  # SIGCONT and SIGTERM, then SIGKILL, as a preemption

    run_with_a_fault(tmp_path, preempt, jobs)
    said = capfd.readouterr().err
    assert "was told to end. It goes on elsewhere" in said
    assert "submitit" not in said
    assert "accounting" not in said


def test_a_job_at_its_time_limit_is_queued_again(
    cluster: Environment, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def time_out(job: str) -> None:
        told({}, "scancel", "--signal=USR2", job)
        state = ("squeue", "--noheader", f"--jobs={job}", "--format=%T")
        until(lambda: told({}, *state) == "PENDING")
        told({}, "scontrol", "update", f"JobId={job}", "StartTime=now")  # else it starts after two minutes

    run_with_a_fault(tmp_path, time_out)
    assert "It goes on elsewhere" in capfd.readouterr().err
    logs = [path.read_text() for path in (tmp_path / "out" / "slurm").glob("*_log.*")]
    assert sum("Requeued job" in log for log in logs) == 1


def test_a_job_that_dies_without_a_word_is_replaced(
    cluster: Environment, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its node is cut off, say: nothing is left of it but what Slurm knows."""

    def cut_off(job: str) -> None:
        lines = told({}, "scontrol", "listpids", job).splitlines()[1:]
        for process in sorted({int(line.split()[0]) for line in lines} - {-1}):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    run_with_a_fault(tmp_path, cut_off)
    assert "the connection to it was lost. It goes on elsewhere" in capfd.readouterr().err


def test_ranks_of_torchrun_share_a_job(cluster: Environment, tmp_path: Path) -> None:
    executor = OnSlurm(Wish("time=5", folder=tmp_path))
    runs = [Run(world=Devices(ranks=2, engine="torchrun"), seed=seed) for seed in range(2)]
    ends = [event for event in work(runs, "fake_fit", executor, ranks=2) if isinstance(event, Ended)]
    executor.close()
    assert [type(end.outcome) for end in ends] == [Result, Result]


def test_what_slurm_refuses_is_said(cluster: Environment, tmp_path: Path) -> None:
    study = replace(clients(), seeds=1)
    with pytest.raises(UserError, match=r"Slurm does not take the jobs: .*invalid partition"):
        run_study(study, tmp_path / "out", on="slurm:partition=gpu", wandb="off", trainer="fake_fit")
