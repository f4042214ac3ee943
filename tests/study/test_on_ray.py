"""Studies on a Ray cluster of two nodes, which are processes of this machine."""

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from drive import clients
from moving import check, played, until
from ray.cluster_utils import Cluster

from syncnorm.config import Devices, Result, Run
from syncnorm.errors import UserError
from syncnorm.study import run_study
from syncnorm.study.run.executors.executor import Exit, Order, Wish
from syncnorm.study.run.executors.on_ray import OnRay
from syncnorm.study.run.processes.events import Ended
from syncnorm.study.run.processes.workers import work


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of two nodes of one core; the second is `cluster.second`."""
    made: Any = None
    for last in (False, False, True):
        try:
            made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
            made.second = made.add_node(num_cpus=1)
            break
        except Exception:  # Ray gives a node 30 seconds to start, which a busy machine may exceed
            if made:
                made.shutdown()
            if last:
                raise
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.mark.dist
@pytest.mark.fault
def test_a_node_is_killed_and_its_run_goes_on_elsewhere(
    cluster: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    journal = tmp_path / "journal"
    journal.touch()
    study = replace(clients(round=0.8, journal=str(journal)), seeds=2)

    def kill() -> None:
        until(lambda: sum(rounds in (1, 2, 3) for rounds in played(journal).values()) == 2)  # both nodes are in a run
        cluster.remove_node(cluster.second, allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    run_study(study, tmp_path / "out", on=f"ray:{cluster.address}", wandb="off", trainer="fake_fit")
    killer.join()
    check(tmp_path / "out", journal, runs=4)
    said = capfd.readouterr().err
    assert f"on the Ray cluster at {cluster.address}: 2 nodes, 2 cores" in said
    assert "It goes on elsewhere" in said


@pytest.mark.dist
@pytest.mark.slow
def test_ranks_of_torchrun_share_a_node(cluster: Any) -> None:
    cluster.add_node(num_cpus=2)
    executor = OnRay(Wish(cluster.address))
    runs = [Run(world=Devices(ranks=2, engine="torchrun"), seed=seed) for seed in range(2)]
    ends = [event for event in work(runs, "fake_fit", executor, ranks=2) if isinstance(event, Ended)]
    executor.close()
    assert [type(end.outcome) for end in ends] == [Result, Result]


@pytest.mark.dist
def test_what_the_cluster_lacks_is_said(cluster: Any) -> None:
    with pytest.raises(UserError, match="and the Ray cluster has no GPU: leave it out"):
        OnRay(Wish(cluster.address, gpus_per_run=0.5))
    executor = OnRay(Wish(cluster.address))
    with pytest.raises(UserError, match="has the 3 cores that 3 ranks need on one node: the largest of "):
        executor.slots(3)
    assert OnRay(Wish(cluster.address, jobs=1)).slots(1) == 1
    (task,) = executor.start([Order(("-c", "raise SystemExit(7)"), {}, str(Path.cwd()))])
    until(lambda: task.exit() is not None)
    assert task.exit() == Exit(7, "")
    executor.close()


@pytest.mark.parametrize("answer", [None, b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_an_address_without_a_cluster_is_refused(answer: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if answer is None:
        monkeypatch.setattr("syncnorm.study.run.executors.on_ray.ANSWER_SECONDS", 0.5)
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        link, _ = server.accept()
        link.recv(100)
        if answer is None:
            time.sleep(2)
        else:
            link.sendall(answer)
        link.close()

    thread = threading.Thread(target=serve)
    thread.start()
    port = server.getsockname()[1]
    why = "nothing came within 0.5 s" if answer is None else "something else does"
    with pytest.raises(UserError, match=f"no Ray cluster answers at 127.0.0.1:{port} .{why}"):
        run_study(clients(), "out", on=f"ray:127.0.0.1:{port}")
    thread.join()
    server.close()
    with pytest.raises(UserError, match="Connection refused"):
        run_study(clients(), "out", on=f"ray:127.0.0.1:{port}")
    with pytest.raises(UserError, match="'node0' is no address of a Ray cluster: write HOST:PORT"):
        run_study(clients(), "out", on="ray:node0")
