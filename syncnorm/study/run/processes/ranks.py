"""The side of a study that trains: one process, or all ranks of one torchrun launch.

    python -m syncnorm.study.run.processes.ranks HOST:PORT[,...] TRAINER                 one process
    torchrun --nproc-per-node R -m syncnorm.study.run.processes.ranks HOST:PORT TRAINER  one rank of R

Rank 0 receives jobs from the study over a connection and sends back results; `take_part` is the same loop for a
torchrun that the user started. No process here outlives its parent.
"""

import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from json import dumps, loads
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from pathlib import Path
from queue import SimpleQueue
from typing import NoReturn

from syncnorm.config import Execution, Progress, Result, Run, silent
from syncnorm.environment import environment, note_exit, rank, world_size
from syncnorm.errors import UserError
from syncnorm.registry import load_plugins
from syncnorm.study.run.processes.attempt import Failure, Trainer, attempt, load_trainer
from syncnorm.study.run.processes.launch import SaidElsewhere

TOKEN = "SYNCNORM_STUDY_TOKEN"
REACH_SECONDS = 10.0
"""Seconds that one of the study's addresses has to answer."""
NOTED_SECONDS = 60.0
"""Seconds that a failed rank waits for rank 0 to write the row and the report, since its end also ends rank 0."""
LOST_SECONDS = 3.0
"""Seconds that rank 0 waits after another rank is gone: for torchrun, which ends this machine's ranks and names the
one that died, or for a failure that a rank has told."""
MISTAKE = "mistake"
"""In the place of a job: rank 0 says what is wrong, and all ranks end."""

Emit = Callable[[Run, Result | Failure], None]
Tell = Callable[[Run, Progress], None]
Job = tuple[Run, Execution]


def take_part(jobs: Iterable[Job], trainer: Trainer, emit: Emit, tell: Tell | None = None) -> None:
    """Train the runs of `jobs` on all ranks together; every rank calls this, and rank 0's jobs are used.

    `emit` gets the end of each run, `tell` its progress.

    A run is finished once all its ranks have finished it. If a rank leaves a collective, the others would wait for
    minutes, so an exception on any rank ends all of them: rank 0 emits the first failure, and the process exits with
    1.
    """
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group()
    alarm = _Alarm(emit)
    source = iter(jobs)
    while True:
        box: list[Job | str | None] = [next(source, None) if rank() == 0 else None]
        if isinstance(box[0], tuple):
            alarm.run = box[0][0]  # before another rank has the job, and may fail
        dist.broadcast_object_list(box)
        job = box[0]
        if job is None:
            break
        if isinstance(job, str):
            raise SaidElsewhere("rank 0 says why this launch ends.")
        run, execution = job
        outcome = attempt(trainer, run, listening(execution, run, tell))
        failure = outcome if isinstance(outcome, Failure) else _lost_at_the_end()
        if failure:
            alarm.ring(failure)
        if rank() == 0:
            emit(run, outcome)
    alarm.over.set()
    _parted.set()
    dist.destroy_process_group()


def _lost_at_the_end() -> Failure | None:
    """Wait until all ranks have finished a run; return the failure if one is gone."""
    import torch.distributed as dist

    try:
        dist.barrier()
    except RuntimeError as error:
        return Failure(f"{type(error).__name__}: {error}", traceback.format_exc(), lost=True)
    return None


@contextmanager
def ending_others() -> Iterator[None]:
    """On rank 0 of a launch that a user started: after a mistake, end the other ranks, which wait for a job in
    `take_part`, with the code of a mistake."""
    try:
        yield
    except UserError:
        if world_size() is not None and not _parted.is_set():
            import torch.distributed as dist

            if not dist.is_initialized():
                dist.init_process_group()
            dist.broadcast_object_list([MISTAKE])
            dist.destroy_process_group()
        raise


_parted = threading.Event()
"""Set once the ranks have no more jobs."""


def listening(execution: Execution, run: Run, tell: Tell | None) -> Execution:
    """Return an execution whose progress goes to `tell`, or nowhere."""
    return replace(execution, report=partial(tell, run) if tell else silent)


class _Alarm:
    """Tells rank 0 of a failure on any rank, over the launch's key-value store, and ends the process.

    A thread of rank 0 listens, because its main thread may wait in a collective for the rank that failed.
    """

    def __init__(self, emit: Emit) -> None:
        from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        client = TCPStore(address, port, is_master=False, wait_for_workers=False)
        self.run: Run | None = None
        """The run that trains, as far as rank 0 knows."""
        self.over = threading.Event()
        self._emit = emit
        self._store = PrefixStore(f"syncnorm/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", client)
        self._lock = threading.Lock()
        self._store.set(f"host/{rank()}", socket.gethostname())
        if rank() == 0:
            threading.Thread(target=self._listen, daemon=True).start()

    def ring(self, failure: Failure) -> NoReturn:
        if rank() != 0:
            with suppress(RuntimeError):  # the store is gone with its machine
                self._store.set(f"survives/{rank()}", "yes")
                if not failure.lost:
                    self._store.set("failure", dumps(asdict(failure)))
                end = time.monotonic() + NOTED_SECONDS
                while time.monotonic() < end and not self._store.check(["noted"]):
                    time.sleep(0.1)
            self._exit(failure)
        time.sleep(LOST_SECONDS if failure.lost else 0.5)  # one failing rank makes others fail: keep its message
        self._end(self._heard() or self._named(failure))

    def _named(self, failure: Failure) -> Failure:
        """Return the failure with the ranks that are gone in the place of what a collective says of it."""
        if not failure.lost:
            return failure
        peers, where = range(1, world_size() or 1), ""
        with suppress(RuntimeError):
            gone = [peer for peer in peers if not self._store.check([f"survives/{peer}"])]
            where = ", ".join(f"rank {peer} on {self._host(peer)}" for peer in gone)
        return replace(failure, error=f"gone while it trained: {where}.") if where else failure

    def _host(self, peer: int) -> str:
        """Return a rank's machine; asked for one that has died before it told, the store would wait."""
        key = f"host/{peer}"
        return str(self._store.get(key).decode()) if self._store.check([key]) else "a machine that it has not told"

    def _listen(self) -> None:
        while not self.over.wait(0.2):
            if failure := self._heard():
                self._end(failure)

    def _heard(self) -> Failure | None:
        try:
            return Failure(**loads(self._store.get("failure"))) if self._store.check(["failure"]) else None
        except RuntimeError:  # the store is gone with its machine
            return None

    def _end(self, failure: Failure) -> NoReturn:
        with self._lock:
            if self.run is not None:
                self._emit(self.run, failure)
            with suppress(RuntimeError):
                self._store.set("noted", "1")
            self._exit(failure)

    def _exit(self, failure: Failure) -> NoReturn:
        if failure.users:
            note_exit(2)
        os._exit(1)


def main() -> None:
    """Serve the study at the address in `sys.argv` until it closes the connection or dies."""
    address, trainer_name = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the study, which then ends its workers
    die_with_parent()
    link = _Link(address) if rank() == 0 else None
    try:
        load_plugins()
        trainer = load_trainer(trainer_name)
    except UserError as error:
        if link:
            link.send(Failure(str(error)))
        raise
    except Exception as error:
        if link:
            link.send(Failure(f"cannot import {trainer_name}: {type(error).__name__}: {error}."))
        raise
    if link:
        link.send(environment())
    jobs = link.jobs() if link else iter(())
    emit: Emit = link.emit if link else _nothing
    tell = link.tell if link else None
    if world_size() is None:
        for run, execution in jobs:
            emit(run, attempt(trainer, run, listening(execution, run, tell)))
    else:
        take_part(jobs, trainer, emit, tell)


class _Link:
    """The connection to the study. It closes when the study dies; then this process ends at once."""

    def __init__(self, address: str) -> None:
        token = os.environ[TOKEN].encode()
        self._connection = Connection(_reached(address.split(",")).detach())
        answer_challenge(self._connection, token)
        deliver_challenge(self._connection, token)
        self._inbox: SimpleQueue[Job] = SimpleQueue()
        self._sending = threading.Lock()
        threading.Thread(target=self._receive, daemon=True).start()

    def jobs(self) -> Iterator[Job]:
        while True:
            yield self._inbox.get()

    def send(self, message: object) -> None:
        with self._sending:  # another rank may fail while this one reports progress
            self._connection.send(message)

    def emit(self, run: Run, outcome: Result | Failure) -> None:
        self.send(outcome)

    def tell(self, run: Run, progress: Progress) -> None:
        self.send(progress)

    def _receive(self) -> None:
        try:
            while True:
                self._inbox.put(self._connection.recv())
        except (EOFError, OSError):
            os._exit(1)


def _reached(addresses: Sequence[str]) -> socket.socket:
    """Return a connection to the first of some addresses HOST:PORT that answers."""
    failures = []
    for address in addresses:
        host, _, port = address.rpartition(":")
        try:
            link = socket.create_connection((host, int(port)), timeout=REACH_SECONDS)
        except OSError as error:
            failures.append(f"{address} ({error})")
        else:
            link.settimeout(None)
            return link
    raise UserError(f"{socket.gethostname()} cannot reach the study at {' or '.join(failures)}.")


def _nothing(run: Run, outcome: Result | Failure) -> None:
    """Ranks other than 0 emit nothing."""


def die_with_parent() -> None:
    """End this process soon after its parent has died; at once where a launcher has died before."""
    parent = os.getppid()
    if parent == 1 and world_size() is not None and b"torch" not in Path("/proc/1/cmdline").read_bytes():
        os._exit(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
