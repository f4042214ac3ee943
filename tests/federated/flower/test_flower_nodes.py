"""Runs over a grid whose nodes leave, and come back under other ids without what they kept."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from syncnorm.config import Clients, Data, Optim, Run
from syncnorm.errors import UserError
from syncnorm.federated import CohortGrid, client_app, server_app, simulate
from syncnorm.federated.flower.apps import forget, play
from syncnorm.federated.flower.grid.identity import stamp
from syncnorm.federated.flower.wire import run_as_text

COUNT = 4


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    forget()


class Deployment(Grid):
    """Nodes with ids of their own in front of a CohortGrid.

    Args:
        event: called with the deployment and the kind of each phase, before its messages are delivered.
    """

    def __init__(self, event: Callable[["Deployment", str, int], None]) -> None:
        self.inner = CohortGrid(client_app, COUNT, engine="loop")
        self.event = event
        self.nodes = {1001 + client: client for client in range(COUNT)}
        self.phases: dict[str, int] = {}
        self._inbox: dict[str, Message] = {}
        self._sent = 0

    def restart(self, client: int, node: int) -> None:
        """Let a client come back as another node, without its state."""
        self.leave(client)
        self.nodes[node] = client
        self.inner.states.pop(client + 1, None)

    def leave(self, client: int) -> None:
        """Take a client's node away."""
        self.nodes = {node: own for node, own in self.nodes.items() if own != client}

    set_run = run = create_message = None  # type: ignore[assignment]

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes that are connected."""
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages."""
        names = []
        for message in messages:
            self._sent += 1
            stamp(message, f"m{self._sent}")
            self._inbox[f"m{self._sent}"] = message
            names.append(f"m{self._sent}")
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Deliver messages and return the replies; Flower's own error in the place of a node that has left."""
        asked = [self._inbox.pop(name) for name in sorted(message_ids) if name in self._inbox]
        if asked:
            kind = asked[0].metadata.message_type
            self.phases[kind] = self.phases.get(kind, 0) + 1
            self.event(self, kind, self.phases[kind])
        return [self._deliver(message) for message in asked]

    def _deliver(self, message: Message) -> Message:
        node, name = message.metadata.dst_node_id, message.metadata.message_id
        if node not in self.nodes:
            error = Message(Error(ErrorCode.NODE_UNAVAILABLE, "Node Unavailable"), reply_to=message)
            error.metadata.__dict__["_src_node_id"] = 1
            return error
        inner = Message(message.content, self.nodes[node] + 1, message.metadata.message_type)
        (reply,) = self.inner.send_and_receive([inner])
        reply.metadata.__dict__.update(_src_node_id=node, _reply_to_message_id=name)
        return reply

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and return the replies."""
        return self.pull_messages(self.push_messages(messages))


def make_run(**world: Any) -> Run:
    return Run(
        data=Data("digits", train_limit=200, test_limit=80), model="mlp", optim=Optim(lr=0.1), precision="float64",
        world=Clients(count=COUNT, rounds=3, engine="loop", **world),
    )  # fmt: skip


def nothing(grid: Deployment, kind: str, count: int) -> None:
    """No node leaves."""


def test_a_deployment_gives_the_numbers_of_a_simulation() -> None:
    run = make_run(method="fedbn")
    result = play(Deployment(nothing), run_as_text(run))
    assert json.dumps(asdict(result)["metrics"]) == json.dumps(asdict(simulate(run))["metrics"])
    assert not {"missing_clients", "lost_states"} & result.details.keys()


def test_a_node_that_restarts_takes_part_again_and_its_loss_is_said() -> None:
    def event(grid: Deployment, kind: str, count: int) -> None:
        if (kind, count) == ("train", 2):
            grid.restart(1, node=2001)

    result = play(Deployment(event), run_as_text(make_run(method="fedbn")))
    assert result.details["left_out"] == {"round 2, client 1": "Node Unavailable"}
    assert result.metrics["clients_left_out"] == 1
    assert "client 1 had lost what it keeps between rounds" in result.details["lost_states"][0]
    assert len(result.details["accuracy_by_client"]) == COUNT
    assert "missing_clients" not in result.details


def test_the_final_phase_asks_a_client_that_is_back_once_more() -> None:
    def event(grid: Deployment, kind: str, count: int) -> None:
        if (kind, count) == ("evaluate", 1):
            grid.restart(2, node=2002)

    result = play(Deployment(event), run_as_text(make_run()))
    assert len(result.details["accuracy_by_client"]) == COUNT
    assert "missing_clients" not in result.details


@pytest.mark.parametrize("method", ["fedavg_pooled", "fedbn", "sbn"])
def test_a_run_ends_with_those_who_are_there_and_names_the_others(method: str) -> None:
    def event(grid: Deployment, kind: str, count: int) -> None:
        if (kind, count) == ("train", 3):
            grid.leave(0)

    result = play(Deployment(event), run_as_text(make_run(method=method, unsampled="average", global_norm="pooled")))
    assert sorted(result.details["accuracy_by_client"]) == [1, 2, 3]
    assert any("client 0 was missing at 'evaluate'" in one for one in result.details["missing_clients"])
    assert result.details["left_out"] == {"round 3, client 0": "Node Unavailable"}


def test_a_round_without_a_clients_node_goes_on() -> None:
    def event(grid: Deployment, kind: str, count: int) -> None:
        if (kind, count) == ("train", 1):
            grid.leave(3)

    result = play(Deployment(event), run_as_text(make_run()))
    assert result.details["left_out"]["round 1, client 3"] == "Node Unavailable"
    assert result.details["left_out"]["round 2, client 3"] == "no node with the partition-id 3 is connected"


def test_the_model_is_kept_round_by_round(tmp_path: Path) -> None:
    def event(grid: Deployment, kind: str, count: int) -> None:
        if (kind, count) == ("train", 3):
            for client in (0, 1, 2):
                grid.leave(client)

    with pytest.raises(UserError, match="round 3: 3 of 4 clients gave no usable update"):
        play(Deployment(event), run_as_text(make_run()), folder=tmp_path)
    kept = torch.load(tmp_path / "global.pt", weights_only=True)
    assert kept["round"] == 2
    grid = CohortGrid(client_app, COUNT, run_config={"run": run_as_text(make_run()), "folder": str(tmp_path)})
    grid.run_app(server_app)
    assert torch.load(tmp_path / "global.pt", weights_only=True)["round"] == 3
