"""A study on a Ray cluster of two nodes, in which any of its processes is killed, and the second node now and then.

A node that was killed is replaced by another. The study must end with the rows of an undisturbed one on this machine.
"""

import os
import signal
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fates import Fate, below
from studies import FILES, calm, command, under_fire

KILLS = 6


def lacks() -> str:
    """Say if Ray is not installed."""
    return "" if find_spec("ray") else "ray is not installed"


def cases(small: bool) -> list[str]:
    """Return the names of studies."""
    return [] if small else ["clients", "virtual"]


def play(name: str, folder: Path) -> Counter[str]:
    """Kill what belongs to a study on a cluster, and compare its rows."""
    from ray.cluster_utils import Cluster

    whole, fate = calm(name, folder), Fate("nodes", name)
    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1)]

    def a_node_of_Ray() -> None:
        cluster.remove_node(nodes.pop(), allow_graceful=False)
        nodes.append(cluster.add_node(num_cpus=1))

    def a_worker_on_a_node() -> None:
        workers = [pid for pid in below(os.getpid()) if _trains(pid)]
        if workers:
            os.kill(fate.one(workers), signal.SIGKILL)

    try:
        on = ("--on", f"ray:{cluster.address}")
        others = (a_node_of_Ray, a_worker_on_a_node, a_worker_on_a_node)
        return under_fire(
            lambda out: command(FILES[name], folder, out, *on), folder, whole, fate, KILLS, lambda: others
        )
    finally:
        cluster.shutdown()


def _trains(pid: int) -> bool:
    try:
        return b"study.run.processes.ranks" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
