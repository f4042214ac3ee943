"""NormFedAvg with the server's step of another strategy, partial states, and messages that others make."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from flower_apps import SIZES, Keeping, fit, make_model, plain_client_app
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp import strategy as strategies
from torch import Tensor

from syncnorm.errors import UserError
from syncnorm.federated import CohortGrid, NormFedAvg

ALL = len(SIZES)
PARAMETERS = [name for name, _ in make_model().named_parameters()]


class NormFedAdam(NormFedAvg, strategies.FedAdam):
    """FedAdam's step."""


class NormFedAvgM(NormFedAvg, strategies.FedAvgM):
    """Server momentum."""


class NormFedProx(NormFedAvg, strategies.FedProx):
    """A proximal term at the clients."""


class NormKrum(NormFedAvg, strategies.Krum):
    """One client's update."""


class NormFedMedian(NormFedAvg, strategies.FedMedian):
    """The median."""


def run(strategy: NormFedAvg, app: ClientApp | None = None, rounds: int = 2) -> Keeping:
    server = Keeping(lambda: strategy, rounds=rounds)
    CohortGrid(app or plain_client_app(), ALL, seed=0).run_app(server)
    return server


def trained(state: dict[str, Tensor], partition: int) -> dict[str, Tensor]:
    model = make_model()
    model.load_state_dict(state)
    fit(model, partition)
    return {name: value.clone() for name, value in model.state_dict().items()}


def averaged(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the mean of a round's clients; of counters the maximum."""
    states = [trained(state, partition) for partition in range(ALL)]
    return {
        name: sum(size * one[name] for size, one in zip(SIZES, states, strict=True)) / sum(SIZES)
        if value.is_floating_point()
        else torch.stack([one[name] for one in states]).amax(0)
        for name, value in state.items()
    }


def test_fedadam_steps_on_the_parameters_alone() -> None:
    eta, beta_1, beta_2, tau = 0.05, 0.9, 0.99, 1e-3
    strategy = NormFedAdam(make_model(), "fedavg", eta=eta, beta_1=beta_1, beta_2=beta_2, tau=tau)
    server = run(strategy)
    state = dict(make_model().state_dict())
    m = {name: torch.zeros_like(state[name]) for name in PARAMETERS}
    v = {name: torch.zeros_like(state[name]) for name in PARAMETERS}
    for round_ in (1, 2):
        mean = averaged(state)
        for name in PARAMETERS:
            change = mean[name] - state[name]
            m[name] = beta_1 * m[name] + (1 - beta_1) * change
            v[name] = beta_2 * v[name] + (1 - beta_2) * change**2
            rate = eta * np.sqrt(1 - beta_2 ** (round_ + 1.0)) / (1 - beta_1 ** (round_ + 1.0))
            mean[name] = state[name] + rate * m[name] / (v[name].sqrt() + tau)
        state = mean
    for name, value in state.items():
        torch.testing.assert_close(server.state[name], value, rtol=1e-9, atol=1e-12)


def test_fedavgm_steps_on_the_parameters_alone() -> None:
    server = run(NormFedAvgM(make_model(), "fedavg", server_learning_rate=0.5, server_momentum=0.9))
    state = dict(make_model().state_dict())
    momentum = {name: torch.zeros_like(state[name]) for name in PARAMETERS}
    for _ in range(2):
        mean = averaged(state)
        for name in PARAMETERS:
            momentum[name] = 0.9 * momentum[name] + state[name] - mean[name]
            mean[name] = state[name] - 0.5 * momentum[name]
        state = mean
    for name, value in state.items():
        torch.testing.assert_close(server.state[name], value, rtol=1e-9, atol=1e-12)


def test_krum_selects_and_the_statistics_are_those_of_its_choice() -> None:
    server = run(NormKrum(make_model(), "fedavg", num_malicious_nodes=1), rounds=1)
    states = [trained(dict(make_model().state_dict()), partition) for partition in range(ALL)]
    same = [state for state in states if torch.equal(state["0.weight"], server.state["0.weight"])]
    assert len(same) == 1
    assert all(torch.equal(same[0][name], value) for name, value in server.state.items())


def test_the_median_is_that_of_the_parameters() -> None:
    server = run(NormFedMedian(make_model(), "silobn"), rounds=1)
    states = [trained(dict(make_model().state_dict()), partition) for partition in range(ALL)]
    for name, value in server.state.items():
        stacked = torch.stack([state[name] for state in states]).numpy()
        expected = np.median(stacked, 0) if name in PARAMETERS else make_model().state_dict()[name].numpy()
        np.testing.assert_allclose(value.numpy(), expected, rtol=1e-12)


def test_fedprox_tells_the_clients_its_mu() -> None:
    seen = []
    app, plain = ClientApp(), plain_client_app()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        seen.append(message.content["config"]["proximal-mu"])
        return plain(message, context)

    run(NormFedProx(make_model(), proximal_mu=0.3, fraction_evaluate=0.0), app, rounds=1)
    assert seen == [0.3] * ALL


def test_the_wrong_order_of_classes_is_refused() -> None:
    with pytest.raises(UserError, match=r"write class Wrong\(NormFedAvg, FedAdam\)"):

        class Wrong(strategies.FedAdam, NormFedAvg):
            pass


def part_app(names: list[str], all_of: bool) -> ClientApp:
    """Return an app that trains everything and sends some entries, under plain records."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        model, partition = make_model(), int(context.node_config["partition-id"])
        received = message.content["arrays"].to_torch_state_dict()
        assert all_of == (len(received) == len(model.state_dict()))
        model.load_state_dict(received, strict=all_of)
        fit(model, partition)
        state = {name: value for name, value in model.state_dict().items() if name in names}
        content = {"arrays": ArrayRecord(state), "metrics": MetricRecord({"num-examples": SIZES[partition]})}
        return Message(RecordDict(content), reply_to=message)

    return app


HEAD = ["5.weight", "5.bias", "5.running_mean", "5.running_var", "5.num_batches_tracked", "7.weight", "7.bias"]


def test_the_arrays_may_be_a_part_of_the_model() -> None:
    results: list[Any] = []
    strategy, app = NormFedAvg(make_model(), fraction_evaluate=0.0), ServerApp()
    initial = {name: value for name, value in make_model().state_dict().items() if name in HEAD}

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        results.append(strategy.start(grid=grid, initial_arrays=ArrayRecord(initial), num_rounds=1))

    CohortGrid(part_app(HEAD, all_of=False), ALL, seed=0).run_app(app)
    found = results[0].arrays.to_torch_state_dict()
    expected = averaged(dict(make_model().state_dict()))
    assert list(found) == list(initial)
    torch.testing.assert_close(found["7.weight"], expected["7.weight"])
    assert not strategy.notes


def test_entries_that_nobody_sends_stay_as_they_are() -> None:
    strategy = NormFedAvg(make_model(), fraction_evaluate=0.0)
    server = run(strategy, part_app(HEAD, all_of=True), rounds=1)
    initial, expected = make_model().state_dict(), averaged(dict(make_model().state_dict()))
    for name, value in server.state.items():
        if name not in HEAD:
            assert torch.equal(value, initial[name])
        elif not name.endswith("running_var"):
            torch.testing.assert_close(value, expected[name])
    assert "most clients sent no '0.weight'" in strategy.notes[1][0]


def test_of_several_records_the_one_under_the_key_is_the_model() -> None:
    app, plain = ClientApp(), plain_client_app()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        reply = plain(message, context)
        reply.content["control"] = ArrayRecord({"c": torch.zeros(2)})
        reply.content["timing"] = MetricRecord({"seconds": 2.0})
        return reply

    strategy = NormFedAvg(make_model(), fraction_evaluate=0.0)
    server = run(strategy, app)
    assert not strategy.left_out
    assert server.result.train_metrics_clientapp[1]["seconds"] == pytest.approx(2.0)
    assert torch.equal(server.state["0.weight"], run(NormFedAvg(make_model())).state["0.weight"])


@pytest.mark.parametrize("kind", [NormFedAvg, NormFedAdam])
def test_arrays_in_a_list_go_by_their_places(kind: type[NormFedAvg]) -> None:
    app, results = ClientApp(), list[Any]()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        model, partition = make_model(), int(context.node_config["partition-id"])
        values = message.content["arrays"].to_numpy_ndarrays()
        names = list(model.state_dict())
        model.load_state_dict({name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)})
        fit(model, partition)
        sent = ArrayRecord([value.numpy() for value in model.state_dict().values()])
        content = {"arrays": sent, "metrics": MetricRecord({"num-examples": SIZES[partition]})}
        return Message(RecordDict(content), reply_to=message)

    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        initial = ArrayRecord([value.numpy() for value in make_model().state_dict().values()])
        strategy = kind(make_model(), fraction_evaluate=0.0)
        results.append(strategy.start(grid=grid, initial_arrays=initial, num_rounds=2))

    CohortGrid(app, ALL, seed=0).run_app(server)
    expected = run(kind(make_model()))
    assert list(results[0].arrays) == [str(place) for place in range(len(expected.state))]
    for value, other in zip(results[0].arrays.to_numpy_ndarrays(), expected.state.values(), strict=True):
        np.testing.assert_allclose(value, other.numpy(), rtol=1e-9, atol=1e-12)


class OwnMessages(NormFedAvg):
    """Messages without FedAvg's help."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        content = RecordDict({"arrays": arrays, "config": config})
        return [Message(content, node, "train") for node in grid.get_node_ids()]


class Fewer(NormFedAvg):
    """Half of FedAvg's messages."""

    def configure_train(self, *arguments: Any) -> Iterable[Message]:
        return list(super().configure_train(*arguments))[: ALL // 2]


@pytest.mark.parametrize("kind", [OwnMessages, Fewer])
def test_messages_of_a_subclass_are_counted_as_they_are_sent(kind: type[NormFedAvg]) -> None:
    strategy = kind(make_model(), enough=1.0)
    server = run(strategy)
    assert not strategy.left_out
    assert server.result.train_metrics_clientapp[2]["clients-left-out"] == 0


def test_flowers_own_errors_name_the_client_that_was_asked() -> None:
    grid = CohortGrid(plain_client_app(), 5)
    strategy = NormFedAvg(make_model(), enough=0.1)
    state = ArrayRecord(make_model().state_dict())

    def replies(round_: int, known: bool) -> list[Message]:
        messages = list(strategy.configure_train(round_, state, ConfigRecord(), grid))
        found = [reply for reply in grid.send_and_receive(messages) if reply.metadata.src_node_id != 4]
        lost = next(message for message in messages if message.metadata.dst_node_id == 4)
        error = Message(Error(ErrorCode.NODE_UNAVAILABLE, "Node Unavailable"), reply_to=lost)
        error.metadata.__dict__["_src_node_id"] = 1
        if not known:
            error.metadata.__dict__["_reply_to_message_id"] = "another"
        return [*found, error]

    strategy.aggregate_train(1, replies(1, known=True))
    assert strategy.left_out[1] == ["client 4: Node Unavailable"]
    strategy.aggregate_train(2, replies(2, known=False))
    assert strategy.left_out[2] == ["a node: Node Unavailable"]


def test_too_few_clients_for_the_strategy_are_refused_at_once() -> None:
    with pytest.raises(UserError, match="waits for 2 clients, and CohortGrid has 1 for good: set its min"):
        CohortGrid(plain_client_app(), 1).run_app(Keeping(lambda: NormFedAvg(make_model())))
    one = dict.fromkeys(("min_train_nodes", "min_evaluate_nodes", "min_available_nodes"), 1)
    server = Keeping(lambda: NormFedAvg(make_model(), **one), rounds=1)
    CohortGrid(plain_client_app(), 1).run_app(server)
    assert server.state
