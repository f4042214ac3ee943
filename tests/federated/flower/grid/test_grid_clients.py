"""Clients of a CohortGrid: in order, by a seed, with what they keep, through failures and in time."""

import random
import sys
import time
from threading import Event

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp import strategy as strategies
from grid_messages import app_of, echo, nodes_of, to

from syncnorm.federated.flower.grid.cohort_grid import CohortGrid


def test_clients_are_asked_and_answer_in_the_order_of_their_ids() -> None:
    asked = []

    def record(message: Message, context: Context) -> Message:
        asked.append(context.node_id)
        return echo(message, context)

    grid = CohortGrid(app_of(record), 10)
    assert nodes_of(grid.send_and_receive(to([7, 2, 9, 4]))) == [2, 4, 7, 9] == asked


def test_who_a_client_is() -> None:
    seen = []

    def record(message: Message, context: Context) -> Message:
        seen.append((context.node_id, dict(context.node_config), dict(context.run_config)))
        context.run_config["lr"] = 7.0
        return echo(message, context)

    grid = CohortGrid(app_of(record), 3, run_config={"lr": 0.1})
    grid.send_and_receive(to([1, 3]))
    assert seen == [(node, {"partition-id": node - 1, "num-partitions": 3}, {"lr": 0.1}) for node in (1, 3)]
    assert grid.run_config == {"lr": 0.1}


def test_a_million_clients_cost_nothing_until_asked() -> None:
    grid = CohortGrid(app_of(echo), 1_000_000)
    assert nodes_of(grid.send_and_receive(to([1_000_000, 5]))) == [5, 1_000_000]
    assert len(grid.get_node_ids()) == 1_000_000
    assert not grid.states
    sampled, everyone = strategies.strategy_utils.sample_nodes(grid, 2, 3)
    assert len(sampled) == 3
    assert len(everyone) == 1_000_000


def count(message: Message, context: Context) -> Message:
    before = context.state["kept"]["n"] if "kept" in context.state else 0
    context.state["kept"] = ConfigRecord({"n": before + 1, "list": [1]})
    context.state["kept"]["list"].append(2)
    if message.content.get("fail"):
        raise RuntimeError("no more disk")
    return Message(RecordDict({"m": MetricRecord({"n": before + 1})}), reply_to=message)


def test_a_client_keeps_its_state_and_a_failed_message_leaves_it_as_it_was() -> None:
    grid = CohortGrid(app_of(count), 5)
    fail = RecordDict({"fail": ConfigRecord({"yes": True})})
    grid.send_and_receive(to([1, 2]))
    failed = grid.send_and_receive(to([2], fail))
    assert failed[0].has_error()
    replies = grid.send_and_receive(to([1, 2, 3]))
    assert [reply.content["m"]["n"] for reply in replies] == [2, 2, 1]
    assert set(grid.states) == {1, 2, 3}
    assert grid.states[2]["kept"]["list"] == [1, 2]


def test_a_state_that_a_client_empties_is_gone() -> None:
    def forget(message: Message, context: Context) -> Message:
        if "x" in context.state:
            del context.state["x"]
        else:
            context.state["x"] = ConfigRecord({"n": 1})
        return echo(message, context)

    grid = CohortGrid(app_of(forget), 2)
    grid.send_and_receive(to([1]))
    assert set(grid.states) == {1}
    grid.send_and_receive(to([1]))
    assert not grid.states


def test_a_client_that_raises_is_one_error_reply() -> None:
    def some_raise(message: Message, context: Context) -> Message:
        if context.node_id == 2:
            raise KeyError("no such file")
        if context.node_id == 3:
            return None  # type: ignore[return-value]
        if context.node_id == 5:
            sys.exit(3)
        return echo(message, context)

    replies = CohortGrid(app_of(some_raise), 5).send_and_receive(to([5, 4, 3, 2, 1]))
    assert nodes_of(replies) == [1, 2, 3, 4, 5]
    assert [reply.has_error() for reply in replies] == [False, True, True, False, True]
    assert "SystemExit: 3" in (replies[4].error.reason or "")
    assert "KeyError: 'no such file' (test_grid_clients.py, line" in (replies[1].error.reason or "")
    assert "returned NoneType, not a Message" in (replies[2].error.reason or "")
    assert replies[1].error.code == 2


def test_a_message_type_without_a_function_and_an_unknown_client_are_error_replies() -> None:
    grid = CohortGrid(app_of(echo), 2)
    replies = grid.send_and_receive([Message(RecordDict(), 1, "query"), Message(RecordDict(), 3, "train")])
    assert "No query function registered" in (replies[0].error.reason or "")
    assert "there is no client 3" in (replies[1].error.reason or "")


def test_one_client_cannot_change_what_another_receives() -> None:
    seen = []

    def spoil(message: Message, context: Context) -> Message:
        content = message.content
        seen.append((len(content["arrays"]), content["config"]["lr"], list(content["config"]["list"])))
        del content["arrays"]["w"]
        content["config"]["lr"] = 9.0
        content["config"]["list"].append(9)
        del content["config"]
        return echo(message, context)

    content = RecordDict(
        {"arrays": ArrayRecord({"w": torch.ones(2)}), "config": ConfigRecord({"lr": 0.1, "list": [1]})}
    )
    replies = CohortGrid(app_of(spoil), 2).send_and_receive(to([1, 2], content))
    assert not any(reply.has_error() for reply in replies)
    assert seen == [(1, 0.1, [1])] * 2
    assert content["config"]["list"] == [1]


def draws(message: Message, context: Context) -> Message:
    if context.node_id == 1:
        random.random(), np.random.rand(3), torch.rand(5)
    values = [random.random(), np.random.rand(), torch.rand(()).item()]
    return Message(RecordDict({"m": MetricRecord({"values": values})}), reply_to=message)


def values_of(replies: list[Message]) -> list[list[float]]:
    return [reply.content["m"]["values"] for reply in replies]


def test_with_a_seed_a_clients_draws_are_its_own() -> None:
    alone, together = (CohortGrid(app_of(draws), 3, seed=0) for _ in range(2))
    first = values_of(alone.send_and_receive(to([2])))
    assert first[0] == values_of(together.send_and_receive(to([1, 2, 3])))[1]
    assert first != values_of(alone.send_and_receive(to([2])))
    assert first != values_of(CohortGrid(app_of(draws), 3, seed=1).send_and_receive(to([2])))


def test_with_a_seed_clients_leave_the_servers_generators_alone() -> None:
    def server_draws(grid: Grid) -> list[float]:
        torch.manual_seed(0), np.random.seed(0)
        grid.send_and_receive(to([1, 2]))
        return [random.random(), np.random.rand(), torch.rand(()).item()]

    before = np.random.get_state()
    assert server_draws(CohortGrid(app_of(draws), 2, seed=5)) == server_draws(CohortGrid(app_of(echo), 2, seed=5))
    np.random.set_state(before)


def test_without_a_seed_the_global_generators_go_on() -> None:
    def run() -> tuple[list[list[float]], float]:
        random.seed(3), torch.manual_seed(3), np.random.seed(3)
        return values_of(CohortGrid(app_of(draws), 2).send_and_receive(to([1, 2]))), random.random()

    before = np.random.get_state()
    assert run() == run()
    np.random.set_state(before)


def test_push_and_pull() -> None:
    grid = CohortGrid(app_of(echo), 5)
    ids = grid.push_messages(to([4, 2]))
    assert len(set(ids)) == 2
    replies = grid.pull_messages(ids)
    assert nodes_of(replies) == [2, 4]
    assert [reply.metadata.reply_to_message_id for reply in replies] == ids[::-1]
    assert grid.pull_messages(ids) == []
    assert grid.pull_messages(["never sent"]) == []


def test_every_client_has_the_whole_timeout() -> None:
    over = Event()

    def slow(message: Message, context: Context) -> Message:
        if context.node_id == 2:
            over.wait()
        time.sleep(0.3)
        return echo(message, context)

    grid = CohortGrid(app_of(slow), 8)
    try:
        assert nodes_of(grid.send_and_receive(to(list(range(1, 9))), timeout=1.5)) == [1, 3, 4, 5, 6, 7, 8]
    finally:
        over.set()
    assert grid.send_and_receive(to([1]), timeout=0) == []


def test_a_client_that_never_ends_holds_up_nobody_else() -> None:
    never = Event()

    def stuck(message: Message, context: Context) -> Message:
        if context.node_id == 2 and not never.is_set():
            never.wait()
        return echo(message, context)

    grid = CohortGrid(app_of(stuck), 3)
    assert nodes_of(grid.send_and_receive(to([1, 2]), timeout=1.0)) == [1]
    assert nodes_of(grid.send_and_receive(to([1, 3]), timeout=20)) == [1, 3]
    never.set()
    assert nodes_of(grid.send_and_receive(to([1, 2, 3]), timeout=20)) == [1, 2, 3]


def test_a_client_that_raises_a_timeout_of_its_own_has_failed() -> None:
    def broken(message: Message, context: Context) -> Message:
        raise TimeoutError("no answer from the scanner")

    (reply,) = CohortGrid(app_of(broken), 1).send_and_receive(to([1]), timeout=5)
    assert "TimeoutError: no answer from the scanner" in reply.error.reason


def test_an_expired_message_is_an_error_reply() -> None:
    def slow(message: Message, context: Context) -> Message:
        time.sleep(1.2)
        return echo(message, context)

    grid = CohortGrid(app_of(slow), 3)
    replies = grid.send_and_receive(to([1, 2], ttl=1.0))
    assert [reply.error.code for reply in replies] == [3, 3]
    assert "before its reply came" in (replies[0].error.reason or "")
    assert "before its client had a turn" in (replies[1].error.reason or "")
