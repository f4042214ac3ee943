"""`--on slurm[:KEY=VALUE,...]`: worker processes as job arrays of Slurm, by submitit.

Each element of an array starts one worker process and waits for it. Before its time limit, or when it is preempted,
Slurm tells the job, and submitit has it queued again; its run goes on from its checkpoint. So the results folder must
be on a file system that all nodes share.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from tempfile import TemporaryDirectory
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import submitit

from syncnorm.errors import UserError
from syncnorm.progress import counted
from syncnorm.study.run.executors import serve as shipped
from syncnorm.study.run.executors.executor import Exit, Order, Process, Wish

AT_ONCE = 16
"""Jobs at once, unless the user says otherwise."""
MINUTES = 60
"""A job's time limit, unless the user says otherwise."""
TIME_OUTS = 100
"""How often a job may reach its time limit."""
LOOK_SECONDS = 1.0
"""Seconds between two looks at a job's files."""
ASK_SECONDS = 5.0
"""Seconds between two questions to Slurm about all jobs."""
RESULT_SECONDS = 15.0
"""Seconds in which the result of a job that has ended has to be seen, as file systems of many nodes need some."""
ENDED = frozenset(
    "BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED TIMEOUT".split()  # noqa: SIM905
)
"""Slurm's states of a job that does not start again: one that is queued again is PENDING."""
FOLDER = "slurm"
NAMES = {"time": "timeout_min", "mem": "mem_gb"}
"""Our options that submitit calls otherwise; all others are its own for Slurm."""
LOCAL = "local"


class OnSlurm:
    """Jobs of Slurm: one a worker process, submitted as arrays.

    A job has one task, a core for each rank, and, if the user asks for GPUs, one for a run or one for each rank.
    """

    restarts: bool = True

    def __init__(self, wish: Wish) -> None:
        options = _options(wish.address)
        self._cluster = str(options.pop("cluster", "slurm"))
        if self._cluster not in ("slurm", LOCAL):
            raise UserError(f"--on slurm:cluster={self._cluster}: cluster is slurm, or local for a try without it.")
        if self._cluster == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
            raise UserError(
                "there is no Slurm here (no sbatch and srun among the programs): start this on a node from which you "
                "submit jobs, or leave --on out."
            )
        if wish.gpus_per_run not in (None, 0, 1):
            raise UserError(
                f"--gpus-per-run is {wish.gpus_per_run:g}, and Slurm gives whole GPUs: write 1, or leave it out."
            )
        self._wish, self._options = wish, options
        self._gpus = bool(wish.gpus_per_run)
        self.hosts: Sequence[str] = ("127.0.0.1",) if self._cluster == LOCAL else own_hosts()
        self._folder = wish.folder.absolute() / FOLDER
        self._states = None if self._cluster == LOCAL else States()
        cloudpickle.register_pickle_by_value(shipped)
        _checked(self._parameters(1))

    def slots(self, ranks: int) -> int:
        """Return how many jobs may be there at once."""
        return self._wish.jobs or AT_ONCE

    def start(self, orders: Sequence[Order]) -> list[Process]:
        """Submit an array with a job for each worker."""
        if not self._folder.exists():
            self._folder.mkdir(0o700, parents=True)  # what is submitted lies here, and the workers' token with it
        executor = submitit.AutoExecutor(self._folder, cluster=self._cluster, slurm_max_num_timeout=TIME_OUTS)
        executor.update_parameters(**self._parameters(orders[0].ranks))
        told = [(order.arguments, order.environment, order.folder) for order in orders]
        try:
            jobs = executor.map_array(shipped.Served(), *zip(*told, strict=True))
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError, OSError) as error:
            raise UserError(f"Slurm does not take the jobs: {' '.join(str(error).split())}") from error
        return [_Job(job, self._states) for job in jobs]

    def words(self) -> str:
        """Say what is asked of Slurm."""
        has = self._parameters(1)
        gpu = "1 GPU" if self._gpus else "no GPU (--gpus-per-run 1 asks for one)"
        more = "" if self._cluster == "slurm" else ", by submitit on this machine"
        return (
            f"as jobs of Slurm{more}: at most {self.slots(1)} at once, 1 core and {gpu} for a run, "
            f"{counted(has['timeout_min'], 'minute')} each; their logs are in {self._folder}"
        )

    def close(self) -> None:
        """Do nothing: jobs end by themselves, and those that wait are cancelled one by one."""

    def _parameters(self, ranks: int) -> dict[str, Any]:
        gpus = {"gpus_per_node": ranks} if self._gpus else {}
        fixed = {"name": "syncnorm", "timeout_min": MINUTES, "cpus_per_task": ranks, "nodes": 1, "tasks_per_node": 1}
        return {**fixed, **gpus, **self._options}


class States:
    """What Slurm says of this user's jobs. `squeue` knows them on every cluster; `sacct`, which submitit asks, only
    where accounting is set up."""

    def __init__(self) -> None:
        self._asked, self._states = -ASK_SECONDS, dict[str, str]()

    def of(self, job: str, since: float) -> str:
        """Return the state of a job that was submitted before `since`, in seconds of the monotonic clock.

        It is "gone" for a job that Slurm knows no more, and empty as long as Slurm has not answered since then.
        """
        if time.monotonic() - self._asked > ASK_SECONDS:
            self._ask()
        return self._states.get(job, "gone") if self._asked > since and self._states else ""

    def _ask(self) -> None:
        command = ["squeue", "--noheader", "--array", "--states=all", f"--user={os.getuid()}", "--format=%i %T"]
        self._asked, self._states = time.monotonic(), {"": ""}  # so that an answer without jobs is one
        try:
            told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        except (OSError, subprocess.SubprocessError):  # the controller may be restarting
            self._states = {}
        else:
            for line in told.splitlines():
                job, _, state = line.partition(" ")
                self._states[job] = state.strip()


class _Job:
    def __init__(self, job: Any, states: States | None) -> None:
        self._job, self._states = job, states
        self._began, self._looked = time.monotonic(), 0.0
        self._ended: float | None = None
        self._exit: Exit | None = None

    def exit(self) -> Exit | None:
        if self._exit is None and time.monotonic() - self._looked > LOOK_SECONDS:
            self._looked = time.monotonic()
            self._exit = self._found()
        return self._exit

    def end(self) -> None:
        if self._states:  # it may still wait for its start
            self._cancel()

    def join(self) -> None:
        until = time.monotonic() + shipped.END_SECONDS
        while not self._states and not self._job.done():
            if time.monotonic() > until:
                return self._cancel()
            time.sleep(0.05)

    def _cancel(self) -> None:
        with suppress(OSError, subprocess.SubprocessError):
            self._job.cancel(check=False)

    def _found(self) -> Exit | None:
        """Return how the job has ended; None as long as it has not, or may still leave a result."""
        if self._states is None:
            return self._result() if self._job.done() else None
        if self._job.paths.result_pickle.exists():
            return self._result()
        state = self._states.of(self._job.job_id, self._began)
        if state not in ENDED and state != "gone":
            self._ended = None
            return None
        self._ended = self._ended or time.monotonic()
        if time.monotonic() - self._ended < RESULT_SECONDS:
            return None
        return Exit(None, f"its job {self._job.job_id} ended as {state}" if state in ENDED else "its job is gone")

    def _result(self) -> Exit:
        """Return what the job left behind."""
        try:
            exit = Exit(*self._job.result())
        except submitit.core.utils.UncompletedJobError:
            return Exit(None, f"its job {self._job.job_id} ended as {self._job.state}")
        except Exception as error:  # raised in the job
            return Exit(1, str(error))
        if exit.code == -signal.SIGTERM:  # which Slurm sends, as when it preempts a job
            return Exit(None, f"its job {self._job.job_id} was told to end")
        return exit


def opened(wish: Wish) -> OnSlurm:
    """Make ready to submit jobs.

    Raises:
        UserError: there is no Slurm, or an option that submitit does not have.
    """
    return OnSlurm(wish)


def own_hosts() -> tuple[str, ...]:
    """Return the names and addresses of this machine that others may reach it by, the likeliest first."""
    found = [socket.getfqdn(), socket.gethostname()]
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing: it asks which address goes out
        found.append(probe.getsockname()[0])
    with suppress(OSError):
        found += [str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
    return tuple(dict.fromkeys(host for host in found if host != "localhost" and not host.startswith("127.")))


def _options(text: str) -> dict[str, Any]:
    """Read "partition=gpu,time=120" as submitit's parameters."""
    found: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name or not value:
            raise UserError(
                f"'{part}' in --on slurm:{text} is no option: write KEY=VALUE,... such as partition=gpu,time=120."
            )
        if name in ("nodes", "ntasks_per_node", "tasks_per_node"):
            raise UserError(f"--on slurm:{name}={value}: a job is one process, or one node's ranks, so leave it out.")
        if name in ("time", "mem") and not value.isdigit():
            unit = "minutes" if name == "time" else "GB"
            raise UserError(f"--on slurm:{name}={value}: write a whole number of {unit}.")
        known = name if name == "cluster" else NAMES.get(name, f"slurm_{name}")
        found[known] = int(value) if value.isdigit() else value
    return found


def _checked(parameters: dict[str, Any]) -> None:
    """Raise `UserError` for a parameter that submitit does not have."""
    with TemporaryDirectory() as folder:
        try:
            submitit.AutoExecutor(folder, cluster=LOCAL).update_parameters(**parameters)
        except (NameError, ValueError, AssertionError) as error:
            said = str(error).splitlines()[0].replace("for executor 'slurm' in parameter", "of Slurm, in submitit")
            raise UserError(f"--on slurm: {said}") from error
