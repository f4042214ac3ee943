"""The contract of Flower's tests of its strategies (serverapp/strategy): sampling, averages, and every server step.

Each strategy of Flower that averages arrays, mixed into NormFedAvg, gives the parameters that it gives by itself.
What NormFedAvg does with statistics is in tests/federated.
"""

import inspect
from typing import Any

import pytest
import torch
from flower_apps import SIZES, data, fit, make_model, plain_client_app
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp import strategy as strategies
from torch import Tensor

from syncnorm.federated import CohortGrid, NormFedAvg

ALL = len(SIZES)
PARAMETERS = [name for name, _ in make_model().named_parameters()]
OPTIONS: dict[str, dict[str, Any]] = {
    "Bulyan": {"num_malicious_nodes": 0},
    "FedProx": {"proximal_mu": 0.1},
    "FedTrimmedAvg": {"beta": 0.2},
    "FedAvgM": {"server_learning_rate": 0.5, "server_momentum": 0.9},
    "MultiKrum": {"num_malicious_nodes": 1, "num_nodes_to_select": 3},
    "QFedAvg": {"client_learning_rate": 0.1, "q": 0.2, "train_loss_key": "loss"},
}
OTHERS = ("FedXgb",)  # trees
# Krum's kind measures distances, ours those of parameters. q-FedAvg by itself fails on counters, whole numbers.
PARAMETERS_ALONE = ("Krum", "MultiKrum", "Bulyan", "QFedAvg")
STEPS = sorted(
    name
    for name, kind in vars(strategies).items()
    if inspect.isclass(kind) and issubclass(kind, strategies.FedAvg) and not name.startswith(OTHERS)
)


def run(
    strategy: Any, rounds: int = 2, app: ClientApp | None = None, alone: bool = False
) -> tuple[dict[str, Tensor], Any]:
    """Run rounds of a strategy, and return the last global state and the result; `alone`: without buffers."""
    server, results = ServerApp(), []
    state = {name: value for name, value in make_model().state_dict().items() if not alone or name in PARAMETERS}

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        results.append(strategy.start(grid=grid, initial_arrays=ArrayRecord(state), num_rounds=rounds))

    CohortGrid(app or plain_client_app(), ALL, seed=0).run_app(server)
    return results[0].arrays.to_torch_state_dict(), results[0]


def parameter_app() -> ClientApp:
    """Return an app whose messages hold parameters alone."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        model, partition = make_model(), int(context.node_config["partition-id"])
        model.load_state_dict(message.content["arrays"].to_torch_state_dict(), strict=False)
        loss = fit(model, partition)
        trained = {name: value for name, value in model.state_dict().items() if name in PARAMETERS}
        metrics = MetricRecord({"num-examples": len(data(partition)[0]), "loss": loss})
        return Message(RecordDict({"arrays": ArrayRecord(trained), "metrics": metrics}), reply_to=message)

    return app


@pytest.mark.parametrize("name", STEPS)
def test_the_parameters_are_those_of_the_strategy_alone(name: str) -> None:
    """Over two rounds, with the options that a strategy cannot do without."""
    kind, options = getattr(strategies, name), {**OPTIONS.get(name, {}), "fraction_evaluate": 0.0}
    mixed: Any = NormFedAvg if name == "FedAvg" else type(f"Norm{name}", (NormFedAvg, kind), {})
    ours, _ = run(mixed(make_model(), "fedavg", **options))
    alone = name in PARAMETERS_ALONE
    theirs, _ = run(kind(**options), app=parameter_app() if alone else None, alone=alone)
    for parameter in PARAMETERS:
        torch.testing.assert_close(ours[parameter], theirs[parameter], rtol=1e-9, atol=1e-12)
    assert any(not torch.equal(ours[parameter], make_model().state_dict()[parameter]) for parameter in PARAMETERS)


@pytest.mark.parametrize(("fraction", "least", "asked"), [(1.0, 2, ALL), (0.5, 2, 3), (0.1, 2, 2), (0.0, 2, 0)])
def test_as_many_clients_are_asked_as_fedavg_asks(fraction: float, least: int, asked: int) -> None:
    """The share of those that are there, at least the least number; of a share of 0, none."""
    counts = {}
    for kind in (NormFedAvg, strategies.FedAvg):
        seen: list[int] = []
        app, plain = ClientApp(), plain_client_app()

        @app.train()
        def train(message: Message, context: Context, seen: list[int] = seen, plain: ClientApp = plain) -> Message:
            seen.append(int(context.node_config["partition-id"]))
            return plain(message, context)

        options = {"fraction_train": fraction, "min_train_nodes": least, "fraction_evaluate": 0.0}
        given = (make_model(), "fedavg") if kind is NormFedAvg else ()
        run(kind(*given, **options), rounds=1, app=app)
        assert len(set(seen)) == len(seen)
        counts[kind] = len(seen)
    assert counts == {NormFedAvg: asked, strategies.FedAvg: asked}


def test_metrics_are_averaged_with_the_weights_that_fedavg_takes() -> None:
    """Training losses, and accuracies of evaluation, by the number of examples."""
    found = run(NormFedAvg(make_model(), "fedavg"))[1]
    expected = run(strategies.FedAvg())[1]
    for round_ in (1, 2):
        ours, theirs = found.train_metrics_clientapp[round_], expected.train_metrics_clientapp[round_]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-12)
        assert set(found.evaluate_metrics_clientapp[round_]) >= {"accuracy"}
