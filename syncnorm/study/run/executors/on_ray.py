"""`--on ray[:ADDRESS]`: worker processes as tasks of a Ray cluster.

Each task starts one worker process on its node and waits for it, so Ray decides where there is room. A task is never
retried by Ray: the study notices that a node is lost, and moves its runs.
"""

import logging
import math
import os
import socket
import time
import warnings
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import LocalRayletDiedError, NodeDiedError, OwnerDiedError, TaskCancelledError, WorkerCrashedError

from syncnorm.errors import UserError
from syncnorm.progress import counted
from syncnorm.study.run.executors import serve as shipped
from syncnorm.study.run.executors.executor import Exit, Order, Process, Wish

_RAY: Any = ray  # parts of it have no types
ANSWER_SECONDS = 10
"""Seconds that a cluster has to answer."""
SHARE = 0.25
"""Share of a GPU for a run of one process where the cluster has GPUs: what workers of one machine do as well."""
LOOK_SECONDS = 2.0
"""Seconds between two looks at the cluster's nodes."""
LOST = (NodeDiedError, LocalRayletDiedError, OwnerDiedError, WorkerCrashedError, TaskCancelledError)
"""What Ray raises where a task went with its node, or with the process that held it."""


class OnRay:
    """The nodes of a Ray cluster: one task a worker process.

    A run of one process asks for a core and a share of a GPU; a launch of R ranks asks one node for R cores, and for
    R GPUs if the cluster has any.
    """

    restarts: bool = False

    def __init__(self, wish: Wish) -> None:
        self._wish, self._ours = wish, not ray.is_initialized()
        if self._ours:
            _connect(wish.address)
        self._looked, self._nodes = 0.0, list[dict[str, float]]()
        self._fitted = set[int]()
        self.hosts: Sequence[str] = (_RAY.util.get_node_ip_address(),)
        self._gpus = any(node.get("GPU", 0) for node in self._look())
        if wish.gpus_per_run and not self._gpus:
            self.close()
            raise UserError(f"--gpus-per-run is {wish.gpus_per_run:g}, and the Ray cluster has no GPU: leave it out.")
        _RAY.cloudpickle.register_pickle_by_value(shipped)
        self._serve = ray.remote(shipped.serve)

    def slots(self, ranks: int) -> int:
        """Return for how many processes the living nodes have room, at most as many as asked for.

        Where nodes had room and are gone, one process waits for others to come.
        """
        needs, nodes = self._needs(ranks), self._look()
        room = sum(_fit(node, needs) for node in nodes)
        if not room and ranks not in self._fitted:
            large = {kind: max((node.get(kind, 0) for node in nodes), default=0) for kind in needs}
            what = f"{ranks} ranks need on one node" if ranks > 1 else "a run needs"
            raise UserError(
                f"no node of the Ray cluster has the {_words(needs)} that {what}: the largest of "
                f"{counted(len(nodes), 'node')} has {_words(large)}."
            )
        self._fitted.add(ranks)
        return min(room, self._wish.jobs or room) or 1

    def start(self, orders: Sequence[Order]) -> list[Process]:
        """Submit a task for each worker."""
        tasks = []
        for order in orders:
            needs = self._needs(order.ranks)
            task = self._serve.options(
                num_cpus=needs["CPU"],
                num_gpus=needs["GPU"],
                max_retries=0,
                scheduling_strategy="SPREAD",
                name=f"syncnorm {order.number}",
            )
            tasks.append(_Task(task.remote(order.arguments, order.environment, order.folder)))
        return [*tasks]

    def words(self) -> str:
        """Name the cluster, and what it has."""
        nodes = self._look()
        has = {kind: sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU")}
        where = ray.get_runtime_context().gcs_address
        return f"on the Ray cluster at {where}: {counted(len(nodes), 'node')}, {_words(has)}"

    def close(self) -> None:
        """Leave the cluster, which ends if it was started here; not one that the caller had joined."""
        if self._ours:
            ray.shutdown()

    def _needs(self, ranks: int) -> dict[str, float]:
        """Return what Ray has to keep for a process of so many ranks."""
        share = SHARE if self._wish.gpus_per_run is None else self._wish.gpus_per_run
        gpus = float(ranks) if ranks > 1 and share else share
        return {"CPU": float(ranks), "GPU": gpus if self._gpus else 0.0}

    def _look(self) -> list[dict[str, float]]:
        """Return what each living node has in all."""
        now = time.monotonic()
        if not self._nodes or now - self._looked > LOOK_SECONDS:
            self._looked = now
            self._nodes = [node["Resources"] for node in _RAY.nodes() if node["Alive"]]
        return self._nodes


class _Task:
    def __init__(self, task: Any) -> None:
        self._task = task
        self._exit: Exit | None = None

    def exit(self) -> Exit | None:
        if self._exit is None and ray.wait([self._task], timeout=0)[0]:
            self._exit = self._ended()
        return self._exit

    def end(self) -> None:
        ray.cancel(self._task)

    def join(self) -> None:
        if not ray.wait([self._task], timeout=shipped.END_SECONDS)[0]:
            ray.cancel(self._task, force=True)

    def _ended(self) -> Exit:
        try:
            return Exit(*ray.get(self._task))
        except LOST as error:
            return Exit(None, _gone(error))
        except Exception as error:  # the task's own, or that Ray could not start it
            return Exit(1, str(error))


def opened(wish: Wish) -> OnRay:
    """Join a cluster, or start one on this machine.

    Raises:
        UserError: nothing answers, or not as Ray of this version.
    """
    return OnRay(wish)


def _connect(address: str) -> None:
    """Join the cluster at an address; without one, this machine's, or a new one."""
    address = address or os.environ.get("RAY_ADDRESS", "")
    where = address.removeprefix("ray://")
    if address not in ("", "auto", "local"):
        host, _, port = where.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise UserError(
                f"'{address}' is no address of a Ray cluster: write HOST:PORT, as in --on ray:node0:6379."
            )
        if why := _silent(host, int(port)):
            raise UserError(
                f"no Ray cluster answers at {where} ({why}): start one there with `ray start --head`, or write its "
                "address as --on ray:HOST:PORT."
            )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            ray.init(address or None, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # of many kinds: another version, another program behind the port, no such cluster
        said = " ".join(str(error).split())
        raise UserError(f"cannot join the Ray cluster at {where or 'this machine'}: {said}") from error


def _silent(host: str, port: int) -> str:
    """Say why no server of gRPC, which Ray speaks, answers within `ANSWER_SECONDS`; empty if one does.

    Ray itself tries for minutes. A server of gRPC without TLS greets with a frame of settings (RFC 9113, 3.4).
    """
    try:
        with socket.create_connection((host, port), timeout=ANSWER_SECONDS) as link:
            if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
                return ""
            link.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
            return "" if link.recv(9)[3:4] == b"\4" else "something else does"
    except TimeoutError:
        return f"nothing came within {ANSWER_SECONDS} s"
    except OSError as error:
        return error.strerror or str(error)


def _fit(node: dict[str, float], needs: dict[str, float]) -> int:
    """Return how many times a node has what is needed."""
    return min(math.floor(node.get(kind, 0) / amount + 1e-6) for kind, amount in needs.items() if amount)


def _words(amounts: dict[str, float]) -> str:
    """Return e.g. "8 cores and 2 GPUs"."""
    cores, gpus = counted(int(amounts["CPU"]), "core"), amounts["GPU"]
    return f"{cores} and {gpus:g} {'GPU' if gpus <= 1 else 'GPUs'}" if gpus else cores


def _gone(error: Exception) -> str:
    """Say where a task went."""
    if isinstance(error, TaskCancelledError):
        return "its task was cancelled"
    return "its task's process died" if isinstance(error, WorkerCrashedError) else "its node is lost"
