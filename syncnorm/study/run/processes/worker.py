"""One worker as the study sees it: a process that an executor has started, and the connection to it."""

import os
import re
import secrets
import signal
import socket
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge

from syncnorm.config import Progress, Result, Run
from syncnorm.environment import environment
from syncnorm.errors import UserError
from syncnorm.registry import environment_of_children
from syncnorm.study.run.executors.executor import Executor, Exit, Order, Process
from syncnorm.study.run.executors.serve import END_SECONDS
from syncnorm.study.run.processes.attempt import Failure
from syncnorm.study.run.processes.events import Advanced, Ended, Placement
from syncnorm.study.run.processes.ranks import TOKEN

GREETING_SECONDS = 5
"""Seconds in which a process that connects has to prove that it knows the token."""
THIS_MACHINE = "127.0.0.1"
ALIKE = ("python", "torch", "numpy", "commit")
"""What of the environment has to be the same on all machines, whose rows are compared; processors may differ."""


class Lost(Exception):
    """A worker's process is gone, or its place: the machine, or the job.

    `why` says how; `place` whether it went with its place, which is no fault of its run; `back` whether it will come
    back by itself.
    """

    def __init__(self, why: Failure, place: bool = False, back: bool = False) -> None:
        super().__init__(why.error)
        self.why, self.place, self.back = why, place, back


class Worker:
    """One process or launch: starting until it has sent its environment, then idle or busy with a run.

    Its process connects to a socket of its own. The socket stays open, for an executor may start the process again.
    """

    def __init__(self, executor: Executor, trainer: str, ranks: int | None, how: Placement, number: int) -> None:
        self.run: Run | None = None
        self.training = ""
        """The id of its last run's training."""
        self.environment: dict[str, str] = {}
        self.process: Process
        self.came = False
        """Whether its process has ever sent its environment."""
        self._since = 0.0
        self._gone: float | None = None
        """When the connection was lost, as long as it is not known why."""
        self._ranks, self._how, self._restarts = ranks, how, executor.restarts
        self._spent = False
        self._token = secrets.token_hex()
        self._own = own = tuple(executor.hosts) == (THIS_MACHINE,)
        self._server = socket.create_server((THIS_MACHINE if own else "", 0))
        self.channel: socket.socket | Connection = self._server
        self.peer = ""
        """The address from which the process has connected."""
        port = self._server.getsockname()[1]
        launch = ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "--max-restarts=0", "-m"]
        addresses = ",".join(f"{host}:{port}" for host in executor.hosts)
        self.order = Order(
            ("-m", *(launch if ranks else []), "syncnorm.study.run.processes.ranks", addresses, trainer),
            {
                **_sent(),
                TOKEN: self._token,
                "PYTHONFAULTHANDLER": "1",
                "OMP_NUM_THREADS": "1",
            },
            os.getcwd(),
            ranks or 1,
            number,
        )

    @property
    def idle(self) -> bool:
        """Whether it waits for a run."""
        return bool(self.environment) and self.run is None and not self._spent

    @property
    def overdue(self) -> bool:
        """Whether it should be known by now why the connection was lost."""
        return self._gone is not None and time.monotonic() - self._gone > END_SECONDS

    def take(self, run: Run, together: Sequence[Run] = ()) -> Run:
        """Start a run, in a stack of others. If the worker has just died, `hear` notices it."""
        assert isinstance(self.channel, Connection)
        self.run, self._since = run, time.monotonic()
        with suppress(OSError):
            self.channel.send((run, self._how.of(run, together)))
        return run

    def hear(self, ready: bool) -> Advanced | Ended | None:
        """Receive one message if one is `ready`, and return its event, if it has one.

        Raises:
            Lost: the worker, or its place, is gone; it then has no run any more but for `leave` or `ended`.
            UserError: it cannot train anything.
        """
        if isinstance(self.channel, socket.socket):
            self._wait(self.channel, ready)
            return None
        try:
            if not ready and not self.channel.poll():  # its process has ended, or has lost its machine
                raise EOFError
            message = self.channel.recv()
        except (EOFError, OSError):
            self._hang_up()
            return None
        if isinstance(message, dict):
            self._came(message)
            return None
        if isinstance(message, Progress):
            return Advanced(self.run, message) if self.run else None
        if self.run is None:
            raise UserError(message.error)
        self._spent = self._ranks is not None and isinstance(message, Failure)  # its ranks then end
        return self.ended(message)

    def ended(self, outcome: Result | Failure) -> Ended | None:
        """Finish the current run and return its outcome."""
        seconds, environment = time.monotonic() - self._since, self.environment
        run = self.leave()
        return Ended(run, outcome, seconds, environment) if run else None

    def leave(self) -> Run | None:
        """Return the current run, which it does no more."""
        run, self.run = self.run, None
        return run

    def end(self) -> None:
        """Tell the worker to end: it ends when its channel closes, together with a launch's other ranks."""
        self.channel.close()
        self._server.close()
        self.process.end()

    def _came(self, there: dict[str, str]) -> None:
        """Take note of the environment of the process; on another machine it has to be like this one's."""
        for name in () if self._own else ALIKE:
            # Files that are edited while a study runs make no other commit; fingerprints tell where they matter.
            was, now = (one.get(name, "").removesuffix("-dirty") or "none" for one in (there, environment()))
            if was != now:
                raise UserError(
                    f"the worker at {self.peer} has {name} {was}, and this machine {now}: give all machines "
                    "of a study the same."
                )
        self.environment, self.came = there, True

    def _wait(self, server: socket.socket, ready: bool) -> None:
        """Deal with a process that is not connected: it comes, comes back, or has ended."""
        if ready:
            self._accept(server)
            if self.run is not None and self.channel is not server:  # started again, sooner than we knew
                raise Lost(Failure("it was started again.", lost=True), place=True, back=True)
        elif exit := self.process.exit():
            raise Lost(self._last_words(exit), place=exit.code is None)
        elif self.overdue:
            self._gone = None
            if self._restarts:
                raise Lost(Failure("the connection to it was lost.", lost=True), place=True, back=True)
            self.process.join()

    def _hang_up(self) -> None:
        """Close a connection that is lost; what became of the process shows later."""
        self.channel.close()
        self.channel, self._gone = self._server, time.monotonic()
        self._spent = True

    def _accept(self, server: socket.socket) -> None:
        """Accept the connection of the worker, and of no other process: each side proves that it has the token."""
        accepted, (self.peer, _) = server.accept()
        _notice_a_dead_machine(accepted)
        channel = Connection(accepted.detach())
        try:
            deliver_challenge(channel, self._token.encode())
            answer_challenge(channel, self._token.encode())
        except (AuthenticationError, EOFError, OSError):
            channel.close()
            return
        _patient(channel)
        self.channel, self._gone, self._spent, self.environment = channel, None, False, {}

    def _last_words(self, exit: Exit) -> Failure:
        """Describe how the process ended, with its last output."""
        what = f"the torchrun launch of {self._ranks} ranks" if self._ranks else "its worker process"
        if exit.code is None:
            return Failure(f"{what} is gone: {exit.log or 'nobody knows where'}.", exit.log, lost=True)
        code = exit.code
        if found := _FIRST.search(exit.log):
            what, code = f"rank {found[1]} of {what}", int(found[2])
        return Failure(f"{what} {_ended_with(code)}.", exit.log, lost=True)


def start_workers(
    executor: Executor, trainer: str, ranks: int | None, how: Placement, numbers: Sequence[int]
) -> list[Worker]:
    """Have an executor start workers; return them."""
    workers = [Worker(executor, trainer, ranks, how, number) for number in numbers]
    for worker, process in zip(workers, executor.start([one.order for one in workers]), strict=True):
        worker.process = process
    return workers


def _sent() -> dict[str, str]:
    """Return of the environment of children what a process needs on any machine, beside that machine's own."""
    every = environment_of_children()
    return {name: value for name, value in every.items() if name in _PYTHON or name.startswith(_OURS)}


_PYTHON, _OURS = ("PYTHONPATH", "PYTHONSAFEPATH"), ("SYNCNORM_", "HF_")
_FIRST = re.compile(r"Root Cause .*?\brank\s*: (\d+).*?\bexitcode\s*: (-?\d+)", re.DOTALL)
"""What torchrun's report says of the rank that failed first: which one, and its exit code."""


def _ended_with(code: int) -> str:
    """Say what an exit code means."""
    if code >= 0:
        return f"ended with code {code}"
    memory = ", as the system does when memory runs out" if code == -signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{memory}"


def _notice_a_dead_machine(accepted: socket.socket) -> None:
    """Have the system ask an idle connection for a sign of life, and wait for a greeting no longer than it takes."""
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            accepted.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", GREETING_SECONDS, 0))


def _patient(channel: Connection) -> None:
    """Wait for further messages as long as they take."""
    with socket.socket(fileno=os.dup(channel.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 0))
