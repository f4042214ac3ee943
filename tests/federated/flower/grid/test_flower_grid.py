"""CohortGrid runs Flower's own apps and strategies as they are, and refuses what cannot work."""

import logging
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from flower_apps import Keeping, make_model, plain_client_app
from flwr.app import ConfigRecord, Context, RecordDict
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp import strategy as strategies
from grid_messages import app_of, echo

from syncnorm.errors import UserError
from syncnorm.federated.flower.grid.cohort_grid import CohortGrid

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
