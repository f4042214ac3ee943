"""CohortGrid runs Flower's own apps and strategies as they are, in order, by a seed, through failures and in time."""

import logging
import random
import sys
import time
from collections.abc import Callable, Iterator
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest
import torch
from flower_apps import Keeping, make_model, plain_client_app
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp import strategy as strategies

from syncnorm.errors import UserError
from syncnorm.federated.flower.grid.cohort_grid import CohortGrid


@pytest.fixture(autouse=True)
def same_generators_after() -> Iterator[None]:
    state = random.getstate()
    with torch.random.fork_rng():
        yield
    random.setstate(state)


def app_of(function: Callable[[Message, Context], Message]) -> ClientApp:
    app = ClientApp()
    app.train()(function)
    return app


def echo(message: Message, context: Context) -> Message:
    return Message(RecordDict({"m": MetricRecord({"node": context.node_id})}), reply_to=message)


def to(nodes: list[int], content: RecordDict | None = None, **options: float) -> list[Message]:
    return [Message(content or RecordDict(), node, "train", **options) for node in nodes]


def nodes_of(replies: list[Message]) -> list[int]:
    return [reply.metadata.src_node_id for reply in replies]


OPTIONS = dict(fraction_train=0.5, fraction_evaluate=0.5)
STRATEGIES = {
    "FedAvg": {},
    "FedAdam": {},
    "FedAdagrad": {},
    "FedYogi": {},
    "FedAvgM": {},
    "FedProx": {"proximal_mu": 0.1},
    "FedMedian": {},
    "FedTrimmedAvg": {},
    "Krum": {"num_malicious_nodes": 1},
    "MultiKrum": {"num_malicious_nodes": 1, "num_nodes_to_select": 3},
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_flowers_strategies_run_unchanged_and_a_seed_fixes_them(name: str) -> None:
    def final(seed: int) -> dict[str, torch.Tensor]:
        server = Keeping(lambda: getattr(strategies, name)(**OPTIONS, **STRATEGIES[name]))
        CohortGrid(plain_client_app(), 12, seed=seed).run_app(server)
        assert set(server.result.train_metrics_clientapp) == {1, 2, 3}
        assert all(0 <= m["accuracy"] <= 1 for m in server.result.evaluate_metrics_clientapp.values())
        return server.state

    first, second, other = final(0), final(0), final(1)
    assert list(first) == list(make_model().state_dict())
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])


def test_a_wrapping_strategy_runs_unchanged() -> None:
    def make() -> strategies.Strategy:
        return strategies.DifferentialPrivacyServerSideFixedClipping(
            strategies.FedAvg(**OPTIONS), noise_multiplier=0.0, clipping_norm=1e9, num_sampled_clients=6
        )

    server, plain = Keeping(make), Keeping(lambda: strategies.FedAvg(**OPTIONS))
    CohortGrid(plain_client_app(), 12, seed=0).run_app(server)
    CohortGrid(plain_client_app(), 12, seed=0).run_app(plain)
    torch.testing.assert_close(server.state, plain.state, rtol=1e-9, atol=1e-9)


def test_apps_of_the_older_kind_run_unchanged() -> None:
    from flwr.client import NumPyClient
    from flwr.server import ServerAppComponents, ServerConfig
    from flwr.server.strategy import FedAvg

    class Shift(NumPyClient):
        def __init__(self, by: int) -> None:
            self.by = by

        def fit(
            self, parameters: list[np.ndarray], config: dict[str, Any]
        ) -> tuple[list[np.ndarray], int, dict[str, Any]]:
            return [value + self.by for value in parameters], 1, {}

    finals = []

    class Keep(FedAvg):
        def aggregate_fit(self, *arguments: Any) -> Any:
            result = super().aggregate_fit(*arguments)
            finals.append(parameters_to_ndarrays(result[0])[0].tolist())
            return result

    def server_fn(context: Context) -> ServerAppComponents:
        strategy = Keep(initial_parameters=ndarrays_to_parameters([np.zeros(2)]), fraction_evaluate=0.0)
        return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=2))

    client = ClientApp(lambda context: Shift(int(context.node_config["partition-id"])).to_client())
    CohortGrid(client, 5).run_app(ServerApp(server_fn=server_fn))
    torch.testing.assert_close(torch.tensor(finals), torch.tensor([[2.0, 2.0], [4.0, 4.0]]))


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
    assert "KeyError: 'no such file' (test_flower_grid.py, line" in (replies[1].error.reason or "")
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
    def slow(message: Message, context: Context) -> Message:
        time.sleep(0.6 if context.node_id == 2 else 0.05)
        return echo(message, context)

    grid = CohortGrid(app_of(slow), 8)
    assert nodes_of(grid.send_and_receive(to(list(range(1, 9))), timeout=0.3)) == [1, 3, 4, 5, 6, 7, 8]
    assert grid.send_and_receive(to([1]), timeout=0) == []


def test_waiting_for_more_clients_than_there_ever_will_be_is_refused() -> None:
    for strategy in (strategies.FedAvg(), strategies.FedAvg(min_train_nodes=1, min_available_nodes=1)):
        with pytest.raises(UserError, match=r"waits for more clients, and CohortGrid has 1.*min_available_nodes"):
            CohortGrid(plain_client_app(), 1).run_app(Keeping(lambda strategy=strategy: strategy, rounds=1))
    one = dict.fromkeys(("min_train_nodes", "min_evaluate_nodes", "min_available_nodes"), 1)
    server = Keeping(lambda: strategies.FedAvg(**one), rounds=2)
    CohortGrid(plain_client_app(), 1).run_app(server)
    assert server.state


def test_a_thread_may_watch_the_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("syncnorm.federated.flower.grid.cohort_grid.MOMENT", 0.0)
    grid, seen = CohortGrid(app_of(echo), 2), list[int]()
    watch = Thread(target=lambda: seen.extend(len(grid.get_node_ids()) for _ in range(20)))
    watch.start()
    watch.join()
    assert seen == [2] * 20
    with pytest.raises(UserError, match="waits for more clients"):
        seen.extend(len(grid.get_node_ids()) for _ in range(20))


def test_numbers_of_numpy_are_numbers() -> None:
    grid = CohortGrid(app_of(echo), np.int64(2), seed=np.int32(5))
    assert (grid.num_clients, type(grid.num_clients), grid.seed) == (2, int, 5)


def test_a_client_that_never_ends_holds_up_nobody_else() -> None:
    never = Event()

    def stuck(message: Message, context: Context) -> Message:
        if context.node_id == 2 and not never.is_set():
            never.wait()
        return echo(message, context)

    grid = CohortGrid(app_of(stuck), 3)
    assert nodes_of(grid.send_and_receive(to([1, 2]), timeout=0.3)) == [1]
    assert nodes_of(grid.send_and_receive(to([1, 3]), timeout=5)) == [1, 3]
    never.set()
    assert nodes_of(grid.send_and_receive(to([1, 2, 3]), timeout=5)) == [1, 2, 3]


def test_a_client_that_raises_a_timeout_of_its_own_has_failed() -> None:
    def broken(message: Message, context: Context) -> Message:
        raise TimeoutError("no answer from the scanner")

    (reply,) = CohortGrid(app_of(broken), 1).send_and_receive(to([1]), timeout=5)
    assert "TimeoutError: no answer from the scanner" in reply.error.reason


def test_an_expired_message_is_an_error_reply() -> None:
    def slow(message: Message, context: Context) -> Message:
        time.sleep(0.05)
        return echo(message, context)

    grid = CohortGrid(app_of(slow), 3)
    replies = grid.send_and_receive(to([1, 2], ttl=0.02))
    assert [reply.error.code for reply in replies] == [3, 3]
    assert "before its reply came" in (replies[0].error.reason or "")
    assert "before its client had a turn" in (replies[1].error.reason or "")


def test_a_main_function_can_use_the_grid_itself() -> None:
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        message = grid.create_message(RecordDict(), "train", 2, "1")
        replies = list(grid.send_and_receive([message]))
        nodes = [node.node_id for node in grid.get_nodes()]
        context.state["seen"] = ConfigRecord(
            {"lr": context.run_config["lr"], "nodes": nodes, "node": replies[0].content["m"]["node"]}
        )
        grid.set_run(grid.run)

    context = CohortGrid(app_of(echo), 3, run_config={"lr": 0.5}).run_app(server)
    assert dict(context.state["seen"]) == {"lr": 0.5, "nodes": [1, 2, 3], "node": 2.0}


def test_mistakes_are_sentences() -> None:
    with pytest.raises(UserError, match="num_clients is 0: it must be a whole number of at least 1"):
        CohortGrid(app_of(echo), 0)
    with pytest.raises(UserError, match="did you mean 'cohort'"):
        CohortGrid(app_of(echo), 1, engine="cohrt")


def test_flowers_log_is_silent_unless_the_user_sets_a_level(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("flwr")
    before = logger.level
    for chosen, environment, after in (
        (logging.DEBUG, None, logging.WARNING),
        (logging.INFO, None, logging.INFO),
        (logging.DEBUG, "INFO", logging.DEBUG),
    ):
        monkeypatch.delenv("FLWR_LOG_LEVEL", raising=False)
        if environment:
            monkeypatch.setenv("FLWR_LOG_LEVEL", environment)
        logger.setLevel(chosen)
        CohortGrid(app_of(echo), 1)
        assert logger.level == after
    logger.setLevel(before)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_clients": "4"}, "num_clients is '4'"),
        ({"num_clients": 2.5}, "num_clients is 2.5"),
        ({"seed": "a"}, "seed"),
    ],
)
def test_numbers_of_another_kind_get_a_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=f"{sentence}.* whole number"):
        CohortGrid(app_of(echo), **{"num_clients": 2, **options})
