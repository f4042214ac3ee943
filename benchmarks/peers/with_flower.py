"""A Flower app as its user would write it, on Flower's Ray simulation or on syncnorm's CohortGrid.

python -m peers.with_flower ray|grid TASK STATE     train the task's clients, write the last model to STATE
python -m peers.with_flower ray|grid noop CLIENTS   clients that send back what they get, a tenth a round
"""

import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from peers.flower_client import client_app
from peers.process import Host
from peers.task import load, two_layer_cnn
from syncnorm.federated.flower.grid.cohort_grid import CohortGrid
from syncnorm.federated.flower.grid.logs import hush_flower

ENOUGH = 1_000_000
"""Rounds: as many as are asked for."""
RAY = {
    "client_resources": {"num_cpus": 1, "num_gpus": 0.0},  # an actor a core
    "init_args": {"log_to_driver": False},
}


class Ended(Exception):
    """No more rounds are wanted."""


class OnDemand(FedAvg):
    """FedAvg that starts a round when it is told to and says how long it took, up to the next model."""

    def __init__(self, host: Host, clients: int, **options: Any) -> None:
        super().__init__(fraction_evaluate=0.0, min_available_nodes=clients, **options)
        self._host, self._begun = host, 0.0
        self.arrays: ArrayRecord | None = None
        self.replies = 0

    def summary(self) -> None:
        """Say nothing."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Wait for the word, and then do what FedAvg does."""
        if server_round == 1:
            while len(list(grid.get_node_ids())) < self.min_available_nodes:
                time.sleep(0.1)
            self._host.say("ready")
        if not self._host.told_to_play():
            raise Ended
        self._begun = time.perf_counter()
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate, and stop the clock."""
        replies = list(replies)
        self.arrays, metrics = super().aggregate_train(server_round, replies)
        for reply in replies:
            if reply.has_error():
                raise RuntimeError(reply.error.reason)
        self.replies += len(replies)
        self._host.say(time.perf_counter() - self._begun)
        return self.arrays, metrics


def main() -> None:
    """Play rounds for the process that has started this one."""
    host = Host()
    engine, what, argument = sys.argv[1:]
    torch.set_num_threads(1)
    hush_flower()
    train_config: dict[str, Any] = {}
    if what == "noop":
        clients, first, options = int(argument), two_layer_cnn(3, 10).state_dict(), {"fraction_train": 0.1}
    else:
        task = load(Path(what))
        clients, first, options = task.clients, task.state, {}
        train_config = {"task": what}
    server_app = ServerApp()
    strategy = OnDemand(host, clients, **options)

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        with suppress(Ended):
            strategy.start(
                grid=grid,
                initial_arrays=ArrayRecord(dict(first)),
                num_rounds=ENOUGH,
                train_config=ConfigRecord(train_config),
            )

    if engine == "grid":
        CohortGrid(client_app, clients, seed=0).run_app(server_app)
    else:
        from flwr.simulation import run_simulation

        run_simulation(server_app, client_app, clients, backend_config=RAY)  # type: ignore[arg-type]
    if what != "noop":
        assert strategy.arrays is not None
        torch.save(dict(strategy.arrays.to_torch_state_dict()), argument)
    host.say({"replies": strategy.replies})


if __name__ == "__main__":
    main()
