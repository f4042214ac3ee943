"""Runs over a grid whose nodes leave, and come back under other ids without what they kept."""

import fcntl
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from deployment import COUNT, Cut, Deployment, OnNodes, make_run, nothing
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict

from syncnorm.config import Data, Run
from syncnorm.errors import UserError
from syncnorm.federated import CohortGrid, client_app, server_app, simulate
from syncnorm.federated.flower import apps, network
from syncnorm.federated.flower.apps import forget, play
from syncnorm.federated.flower.wire import run_as_text


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    forget()


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


def test_a_node_that_returns_under_its_old_id_takes_part_again() -> None:
    """A SuperNode that proves who it is by a key keeps its id."""

    def event(grid: Deployment, kind: str, count: int) -> None:
        if (kind, count) == ("train", 2):
            grid.leave(1)
        elif (kind, count) == ("train", 3):
            grid.nodes[1002] = 1

    found = play(Deployment(event), run_as_text(make_run(rounds=4)))
    assert found.details["left_out"] == {
        "round 2, client 1": "Node Unavailable",
        "round 3, client 1": "no node with the partition-id 1 is connected",
    }


def test_nodes_that_are_slow_to_say_who_they_are_take_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that comes after the time for it is no lost one: a site may need a minute to start its client."""
    monkeypatch.setattr(network, "INTRODUCTION", 0.0)
    grid = Deployment(nothing)
    pull, asked = grid.pull_messages, dict[str, int]()

    def slowly(message_ids: Iterable[str]) -> Iterable[Message]:
        due = []
        for name in message_ids:
            asked[name] = asked.get(name, 0) + 1
            if asked[name] == 4 or grid._inbox[name].metadata.message_type != "query.partition":
                due.append(name)
        return pull(due)

    monkeypatch.setattr(grid, "pull_messages", slowly)
    assert "left_out" not in play(grid, run_as_text(make_run())).details
    assert sum(count >= 4 for count in asked.values()) == COUNT  # each was asked once


def test_a_message_that_flower_has_dropped_is_sent_once_more() -> None:
    """Flower says nothing where a client's process dies, or is too slow to start."""
    dropped: list[str] = []

    class Dropping(Deployment):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            """Lose the first message of each phase for ever."""
            due = []
            for name in sorted(message_ids):
                if name in dropped or name not in self._inbox:
                    continue
                message = self._inbox[name].metadata
                if message.message_type == "train" and message.dst_node_id == 1001 and len(dropped) < 2:
                    dropped.append(name)
                else:
                    due.append(name)
            return super().pull_messages(due)

    found = play(Dropping(nothing), run_as_text(make_run(rounds=2)), timeout=1.0)
    assert found.details["left_out"] == {"round 1, client 0": "it did not reply within 1 s"}
    assert len(dropped) == 2
    dropped[:] = ["none"]  # only one is lost
    found = play(Dropping(nothing), run_as_text(make_run(rounds=2)), timeout=1.0)
    assert "left_out" not in found.details


@pytest.mark.parametrize("how", ["before it trains", "before its reply is out"])
@pytest.mark.parametrize("world", [{"method": "fedbn"}, {"method": "silobn", "algorithm": "scaffold"}])
def test_a_client_that_is_killed_goes_on_with_what_it_kept_on_disk(
    how: str, world: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is to the bit the one in which the client fails once, and no node restarts."""

    def event(grid: Deployment, kind: str, count: int) -> None:
        second = (kind, count) == ("train", 2)
        grid.mute = {1} if second and how == "before its reply is out" else set()
        if second and not grid.mute:
            grid.restart(1, node=2001)

    run = make_run(**world)
    deployment = Deployment(event, folder=tmp_path)
    found = play(deployment, run_as_text(run))
    assert list(found.details["left_out"]) == ["round 2, client 1"]
    assert "lost_states" not in found.details
    assert not deployment.inner.states
    assert all(len(list(client.iterdir())) <= 2 for client in tmp_path.glob("run-*/client-*"))

    begin = apps.begin

    def failing(message: Message, context: Context) -> Any:
        if (context.node_id, message.content["config"]["server-round"]) == (2, 2):
            raise OSError
        return begin(message, context)

    monkeypatch.setattr(apps, "begin", failing)
    expected = play(CohortGrid(client_app, COUNT, engine="loop"), run_as_text(run))
    assert list(expected.details["left_out"]) == ["round 2, client 1"]
    assert found.metrics == expected.metrics
    assert found.history == expected.history


def test_a_loss_is_said_where_the_disk_has_lost_it_too(tmp_path: Path) -> None:
    def event(grid: Deployment, kind: str, count: int) -> None:
        if (kind, count) == ("train", 3):
            (client,) = tmp_path.glob("run-*/client-2")
            shutil.rmtree(client)
            (damaged,) = tmp_path.glob("run-*/client-3/round-2.pt")
            damaged.write_bytes(b"half a file")

    found = play(Deployment(event, folder=tmp_path), run_as_text(make_run(method="fedbn")))
    assert [one.split(" had")[0] for one in found.details["lost_states"]] == ["client 2", "client 3"]


@pytest.mark.parametrize("at", [("train", 1), ("train", 3), ("evaluate", 1)])
def test_a_server_that_is_killed_goes_on_after_its_last_round(at: tuple[str, int], tmp_path: Path) -> None:
    def event(grid: Deployment, kind: str, count: int) -> None:
        if (kind, count) == at:
            grid.deliver_all()  # clients have trained, and kept what came of it
            raise Cut

    run = make_run(method="fedbn", global_norm="average")
    with pytest.raises(Cut):
        play(Deployment(event, folder=tmp_path / "sites"), run_as_text(run), folder=tmp_path / "server")
    again = Deployment(nothing, folder=tmp_path / "sites")
    found = play(again, run_as_text(run), folder=tmp_path / "server")
    assert again.phases.get("train", 0) == {("train", 1): 3, ("train", 3): 1, ("evaluate", 1): 0}[at]
    expected = simulate(run)
    assert found.metrics == expected.metrics
    assert found.history == expected.history
    assert not {"missing_clients", "lost_states", "left_out"} & found.details.keys()


def test_a_folder_is_for_one_run_and_one_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def serve(run: Run) -> None:
        config = {"run": run_as_text(run), "folder": str(tmp_path)}
        CohortGrid(client_app, COUNT, run_config=config, engine="loop").run_app(server_app)

    serve(make_run())
    assert json.loads((tmp_path / "result.json").read_text())["metrics"] == simulate(make_run()).metrics
    with pytest.raises(UserError, match=r"holds another run, which run\.json describes"):
        serve(make_run(method="fedbn"))
    monkeypatch.setattr(apps, "LOCKED", 0.0)
    with (tmp_path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another run is at work in"):
            serve(make_run())


OWN_DATA = """
import numpy as np

def load(site, sites):
    if site == ABSENT:
        raise OSError("the disk of this site")
    rng = np.random.default_rng(site)
    def some(count):
        y = rng.integers(0, 3, count)
        return rng.normal(size=(count, 5)) + y[:, None] * (1 + site), y
    return some(20 + 7 * site), some(10)
"""


def own_data(folder: Path, absent: int | None = None) -> str:
    path = folder / f"data-{absent}.py"
    path.write_text(OWN_DATA.replace("ABSENT", str(absent)))
    return str(path)


@pytest.mark.parametrize("method", ["fedbn", "fedavg_pooled", "sbn"])
def test_sites_that_have_their_own_data_come_to_the_simulated_model(method: str, tmp_path: Path) -> None:
    sites = Data("sites", options={"shape": [5], "classes": 3})
    run, file = replace(make_run(method=method), data=sites), own_data(tmp_path)
    found = play(Deployment(nothing, data=file), run_as_text(run))
    expected = simulate(replace(run, data=replace(sites, path=file)))
    elsewhere = {name for name in expected.metrics if name.startswith("global_")}
    assert found.metrics == {name: value for name, value in expected.metrics.items() if name not in elsewhere}
    assert found.history == expected.history
    assert found.details["accuracy_by_client"] == expected.details["accuracy_by_client"]


def test_a_site_whose_function_fails_is_left_out_by_name(tmp_path: Path) -> None:
    run = replace(make_run(), data=Data("sites", options={"shape": [5], "classes": 3}))
    broken = Deployment(nothing, data=own_data(tmp_path, absent=2))
    found = play(broken, run_as_text(run))
    assert sorted(found.details["accuracy_by_client"]) == [0, 1, 3]
    assert "load(2, 4)" in found.details["left_out"]["round 3, client 2"]
    assert found.details["missing_clients"][0].startswith("client 2 failed at 'evaluate'")
    assert "the disk of this site" in found.details["missing_clients"][0]
    with pytest.raises(UserError, match=r"1 of 4 clients gave no usable update.*the disk of this site"):
        play(broken, run_as_text(replace(run, world=replace(run.world, enough=1.0))))


@pytest.mark.parametrize("session", ["../other", "", "a/b"])
def test_a_server_cannot_choose_where_a_client_writes(session: str, tmp_path: Path) -> None:
    text = run_as_text(make_run(method="fedbn"))
    model = apps.federation_of(text).models.template
    config = ConfigRecord({"server-round": 1, "run": text, "session": session, "last-round": -1})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "config": config})
    (reply,) = CohortGrid(OnNodes(folder=str(tmp_path)), COUNT).send_and_receive([Message(content, 1, "train")])
    assert "that is no name of a folder" in reply.error.reason
    assert not list(tmp_path.iterdir())


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


def test_a_message_that_cannot_be_sent_once_more_ends_no_run() -> None:
    """A SuperLink may refuse content that it has already; the client is left out of the round, and no more."""
    refused: list[int] = []

    class Refusing(Deployment):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            """Refuse what is sent once more."""
            given = list(messages)
            if len(given) == 1 and given[0].metadata.message_type == "train":
                refused.append(given[0].metadata.dst_node_id)
                raise RuntimeError("Failed to push object")
            return super().push_messages(given)

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            """Keep one node's messages back."""
            waiting = [self._inbox[name].metadata for name in message_ids if name in self._inbox]
            due = [one.message_id for one in waiting if (one.dst_node_id, one.message_type) != (1001, "train")]
            return super().pull_messages(due)

    found = play(Refusing(nothing), run_as_text(make_run(rounds=1)), timeout=1.0)
    assert refused == [1001]
    assert found.details["left_out"] == {"round 1, client 0": "it did not reply within 1 s"}


def test_clients_work_one_after_the_other_if_asked_to() -> None:
    """Of each phase, one message is out at a time, and the numbers are the same."""
    run, out = make_run(method="fedbn"), list[int]()

    class Counting(Deployment):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            """Count the messages that are waited for."""
            asked = list(message_ids)
            out.append(len(asked))
            return super().pull_messages(asked)

    found = play(Counting(nothing), run_as_text(run), at_once=1)
    assert max(out) == 1
    assert found.metrics == simulate(run).metrics
