"""The side of a study that distributes runs: warm worker processes, replaced when they die.

A worker is one process, or one torchrun launch whose ranks share a run; both execute `ranks.py` of this folder.
Workers start once and train run after run. torchrun's own restarts are not used: a new launch replaces a dead one.
"""

import hmac
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryFile

from syncnorm.config import Execution, Progress, Result, Run, run_id
from syncnorm.environment import cuda_devices
from syncnorm.errors import UserError
from syncnorm.registry import environment_of_children
from syncnorm.study.run.processes.attempt import Failure
from syncnorm.study.run.processes.queue import Later, Place, Queue
from syncnorm.study.run.processes.ranks import TOKEN

ATTEMPTS = 2
END_SECONDS = 15
TAIL_BYTES = 4000


@dataclass(frozen=True)
class Placement:
    """Where the runs of a study write, each in a folder named after its id."""

    checkpoints: Path | None = None
    checkpoint_every: float = Execution.checkpoint_every
    models: Path | None = None

    def of(self, run: Run) -> Execution:
        """Return the execution settings of a run."""
        checkpoint, model = (folder and folder / run_id(run) for folder in (self.checkpoints, self.models))
        return Execution(checkpoint, self.checkpoint_every, model)


@dataclass(frozen=True)
class Started:
    """A worker started a run."""

    run: Run


@dataclass(frozen=True)
class Advanced:
    """A run reported progress."""

    run: Run
    progress: Progress


@dataclass(frozen=True)
class Ended:
    """A run gave a result, or failed finally."""

    run: Run
    outcome: Result | Failure
    seconds: float
    environment: dict[str, str]


def work(
    runs: Sequence[Run],
    trainer: str,
    *,
    workers: int = 1,
    ranks: int | None = None,
    how: Placement | None = None,
    later: Later | None = None,
    place: Place | None = None,
) -> Generator[Started | Advanced | Ended, None, None]:
    """Train every run, and yield events as they happen.

    `workers` processes share the runs; with `ranks`, each is a torchrun launch of `ranks` ranks. A run whose worker
    dies is tried once more, after the others. So is a run that raises on a rank of a launch, since ranks that lose a
    peer raise too. `how` says where runs write: after a lost worker, a run resumes from its checkpoint. `later` gives
    the runs that become known once the receiver has dealt with an event, and `place` their place among the others.
    Closing the iterator ends all workers. Workers that cannot start raise `UserError`.
    """
    todo, tries, stillborn, numbers = Queue(runs, later, place), Counter[str](), 0, count()
    team: list[_Worker] = []
    try:
        while todo or any(worker.run for worker in team):
            busy = sum(worker.run is not None for worker in team)
            while len(team) < min(workers, busy + len(todo)):
                team.append(_Worker(trainer, ranks, how or Placement(), next(numbers)))
            for worker in team:
                if worker.idle and (run := _next(worker, team, todo)):
                    yield Started(run)
            for worker in _with_news(team):
                try:
                    news, suspect = worker.hear(), ranks is not None
                except _Lost as lost:
                    team.remove(worker)
                    worker.end()
                    stillborn += not worker.environment
                    if stillborn > workers:
                        raise UserError(f"workers cannot start: {lost.why.error}\n{lost.why.detail}") from None
                    news, suspect = worker.ended(lost.why), True
                if isinstance(news, Ended):
                    tries[run_id(news.run)] += 1
                    suspect = suspect and isinstance(news.outcome, Failure) and not news.outcome.users
                    if suspect and tries[run_id(news.run)] < ATTEMPTS:
                        todo.again(news.run)
                        continue
                if news:
                    yield news
                    todo.grow()
    finally:
        for worker in team:
            worker.end()
        for worker in team:
            worker.join()


def _next(worker: "_Worker", team: list["_Worker"], todo: Queue) -> Run | None:
    """Start the next run on a worker, and return it; None if there is none for this worker."""
    found = todo.take(worker.training, {other.training for other in team if other is not worker})
    if found is None:
        return None
    run, worker.training = found
    return worker.take(run)


def _with_news(team: list["_Worker"]) -> list["_Worker"]:
    """Wait for messages, at most a second; return the workers that have sent one or died."""
    ready = wait([worker.channel for worker in team], timeout=1)
    return [worker for worker in team if worker.channel in ready or worker.process.poll() is not None]


def _one_device(number: int) -> dict[str, str]:
    """Return the setting that assigns the machine's CUDA devices to workers in turn."""
    devices = cuda_devices()
    return {"CUDA_VISIBLE_DEVICES": devices[number % len(devices)]} if len(devices) > 1 else {}


class _Lost(Exception):
    """A worker is gone."""

    def __init__(self, why: Failure) -> None:
        self.why = why


class _Worker:
    """One process or launch: starting until it has sent its environment, then idle or busy with a run."""

    def __init__(self, trainer: str, ranks: int | None, how: Placement, number: int) -> None:
        self.run: Run | None = None
        self.training = ""
        """The id of its last run's training."""
        self.environment: dict[str, str] = {}
        self._since = 0.0
        self._ranks = ranks
        self._how = how
        self._spent = False
        self._token = secrets.token_hex()
        self._log = TemporaryFile()  # noqa: SIM115 - open as long as the worker lives
        server = socket.create_server(("127.0.0.1", 0))
        self.channel: socket.socket | Connection = server
        launch = [
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={ranks}",
            "--max-restarts=0",
            "-m",
        ]
        address = f"127.0.0.1:{server.getsockname()[1]}"
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                *(launch if ranks else []),
                "syncnorm.study.run.processes.ranks",
                address,
                trainer,
            ],
            env={
                **environment_of_children(),
                **({} if ranks else _one_device(number)),
                TOKEN: self._token,
                "PYTHONFAULTHANDLER": "1",
                "OMP_NUM_THREADS": "1",
            },
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C must reach only the study
        )

    @property
    def idle(self) -> bool:
        return bool(self.environment) and self.run is None and not self._spent

    def take(self, run: Run) -> Run:
        """Start a run. If the worker has just died, `hear` notices it."""
        assert isinstance(self.channel, Connection)
        self.run, self._since = run, time.monotonic()
        with suppress(OSError):
            self.channel.send((run, self._how.of(run)))
        return run

    def hear(self) -> Advanced | Ended | None:
        """Receive one message and return its event, if it has one; raises `_Lost` if the worker is gone."""
        if isinstance(self.channel, socket.socket):
            if self.process.poll() is not None:
                raise _Lost(self._last_words())
            self._accept(self.channel)
            return None
        try:
            message = self.channel.recv()
        except (EOFError, OSError):
            raise _Lost(self._last_words()) from None
        if isinstance(message, dict):
            self.environment = message
            return None
        if isinstance(message, Progress):
            return Advanced(self.run, message) if self.run else None
        if self.run is None:
            raise UserError(message.error)
        self._spent = self._ranks is not None and isinstance(message, Failure)  # its ranks then end
        return self.ended(message)

    def ended(self, outcome: Result | Failure) -> Ended | None:
        """Finish the current run and return its outcome."""
        if self.run is None:
            return None
        run, self.run = self.run, None
        return Ended(run, outcome, time.monotonic() - self._since, self.environment)

    def end(self) -> None:
        """Tell the worker to end: it ends when its channel closes, together with a launch's other ranks."""
        self.channel.close()
        self.process.terminate()

    def join(self) -> None:
        """Wait until the process has ended; finally kill it."""
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()

    def _accept(self, server: socket.socket) -> None:
        """Accept the connection of the worker, and of no other process on this machine."""
        channel = Connection(server.accept()[0].detach())
        if channel.poll(1) and hmac.compare_digest(channel.recv_bytes(256), self._token.encode()):
            server.close()
            self.channel = channel
        else:
            channel.close()

    def _last_words(self) -> Failure:
        """Describe how the process ended, with its last output."""
        try:
            code = self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - TAIL_BYTES))
        log = self._log.read().decode(errors="replace").strip()
        what = f"the torchrun launch of {self._ranks} ranks" if self._ranks else "its worker process"
        if found := _FIRST.search(log):
            what, code = f"rank {found[1]} of {what}", int(found[2])
        return Failure(f"{what} {_ended_with(code)}.", log, lost=True)


_FIRST = re.compile(r"Root Cause .*?\brank\s*: (\d+).*?\bexitcode\s*: (-?\d+)", re.DOTALL)
"""What torchrun's report says of the rank that failed first: which one, and its exit code."""


def _ended_with(code: int) -> str:
    """Say what an exit code means."""
    if code >= 0:
        return f"ended with code {code}"
    memory = ", as the system does when memory runs out" if code == -signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{memory}"
