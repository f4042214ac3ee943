"""Server and clients agree on a policy, and what clients lose or wrongly send is said."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from flower_apps import SIZES, Keeping, data, fit, home_client_app, make_model, plain_client_app
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from syncnorm.errors import UserError
from syncnorm.federated import CohortGrid, NormFedAvg, Policy, load_global, reply_with
from syncnorm.federated.flower.clients import HOME
from syncnorm.federated.flower.records import from_record

ALL = len(SIZES)
PERSONAL = ("fedbn", "silobn", "stats_shared")


def following_app(policy: str | Policy | None = None, **options: Any) -> ClientApp:
    """Return an app whose two lines leave the policy to the server, unless one is given."""
    app = ClientApp()
    keeping = {name: value for name, value in options.items() if name == "folder"}

    @app.train()
    def train(message: Message, context: Context) -> Message:
        model, partition = make_model(), int(context.node_config["partition-id"])
        load_global(model, message, context, policy, **batches(options, partition))
        loss = fit(model, partition)
        metrics = {"num-examples": len(data(partition)[0]), "loss": loss}
        return reply_with(model, message, context, metrics, policy, **keeping)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        model, partition = make_model(), int(context.node_config["partition-id"])
        load_global(model, message, context, policy, **batches(options, partition))
        x, y = data(partition)
        with torch.no_grad():
            accuracy = (model.eval()(x).argmax(1) == y).double().mean().item()
        return reply_with(model, message, context, {"num-examples": len(x), "accuracy": accuracy}, policy)

    return app


def batches(options: Mapping[str, Any], partition: int) -> dict[str, Any]:
    if options.get("batches"):
        return {**options, "batches": [data(partition)[0]]}
    return dict(options)


def run(strategy: NormFedAvg, app: ClientApp, rounds: int = 2, clients: int = ALL) -> tuple[Keeping, CohortGrid]:
    server, grid = Keeping(lambda: strategy, rounds=rounds), CohortGrid(app, clients, seed=0)
    grid.run_app(server)
    return server, grid


@pytest.mark.parametrize("policy", [*PERSONAL, "fedavg_pooled"])
def test_clients_follow_the_policy_of_the_server(policy: str) -> None:
    follows, grid = run(NormFedAvg(make_model(), policy), following_app())
    named, other = run(NormFedAvg(make_model(), policy), home_client_app(policy))
    assert all(torch.equal(follows.state[name], value) for name, value in named.state.items())
    for node, state in grid.states.items():
        own, same = from_record(state[HOME]), from_record(other.states[node][HOME])
        assert all(torch.equal(own[name], value) for name, value in same.items())
    assert len(grid.states) == (ALL if policy in PERSONAL else 0)


def test_a_policy_of_ones_own_is_followed_too() -> None:
    mine = Policy("local", "pooled", "mine")
    strategy = NormFedAvg(make_model(), mine)
    _, grid = run(strategy, following_app())
    assert set(from_record(grid.states[1][HOME])) == {"1.weight", "1.bias", "5.weight", "5.bias"} == strategy.home
    assert not strategy.notes


@pytest.mark.parametrize(
    ("server", "client"), [("fedbn", "silobn"), ("fedavg_pooled", "fedbn"), ("silobn", "fedavg")]
)
def test_a_client_that_contradicts_the_server_fails_with_both_names(server: str, client: str) -> None:
    with pytest.raises(UserError, match=f"the server's policy is {server}, and this client's is {client}"):
        run(NormFedAvg(make_model(), server), following_app(client))


@pytest.mark.parametrize("policy", PERSONAL)
def test_what_should_stay_home_and_came_is_said_in_the_first_round(policy: str) -> None:
    strategy = NormFedAvg(make_model(), policy)
    run(strategy, plain_client_app(), rounds=3)
    (sentence,) = strategy.notes[1]
    assert f"{ALL} of {ALL} clients (client 1 first) sent '1." in sentence
    assert f"which the policy {policy} keeps with them" in sentence
    assert list(strategy.notes) == [1]
    assert not strategy.left_out


def test_nothing_is_said_where_nothing_is_wrong() -> None:
    for policy, app in (
        ("fedavg", plain_client_app()),
        ("fedbn", following_app()),
        ("fedbn", home_client_app("fedbn")),
    ):
        strategy = NormFedAvg(make_model(), policy)
        run(strategy, app)
        assert not strategy.notes


class Losing(NormFedAvg):
    """Some clients lose their state before a phase of round 2."""

    grid: CohortGrid
    nodes = (2, 5)
    phase = "train"

    def configure_train(self, server_round: int, *arguments: Any) -> Any:
        if server_round == 2 and self.phase == "train":
            self.lose()
        return super().configure_train(server_round, *arguments)

    def configure_evaluate(self, server_round: int, *arguments: Any) -> Any:
        if server_round == 2 and self.phase == "evaluate":
            self.lose()
        return super().configure_evaluate(server_round, *arguments)

    def lose(self) -> None:
        for node in self.nodes:
            del self.grid.states[node]


def lose_states(strategy: Losing, app: ClientApp, phase: str) -> Keeping:
    strategy.phase = phase
    server, strategy.grid = Keeping(lambda: strategy, rounds=3), CohortGrid(app, ALL, seed=0)
    strategy.grid.run_app(server)
    return server


@pytest.mark.parametrize("phase", ["train", "evaluate"])
@pytest.mark.parametrize("policy", PERSONAL)
def test_lost_states_are_counted_and_named(policy: str, phase: str) -> None:
    strategy = Losing(make_model(), policy)
    server = lose_states(strategy, following_app(), phase)
    train = [server.result.train_metrics_clientapp[r]["clients-lost-state"] for r in (1, 2, 3)]
    evaluate = [server.result.evaluate_metrics_clientapp[r]["clients-lost-state"] for r in (1, 2, 3)]
    assert (train, evaluate) == (([0, 2, 0], [0, 0, 0]) if phase == "train" else ([0, 0, 2], [0, 2, 0]))
    named = [sentence for sentences in strategy.notes.values() for sentence in sentences]
    assert [sentence.split(" has")[0] for sentence in named[:2]] == [
        "client 2 (partition 1)",
        "client 5 (partition 4)",
    ]
    assert "has lost the entries that stay with it, and got the initial ones" in named[0]


def test_states_in_a_folder_survive(tmp_path: Path) -> None:
    strategy = Losing(make_model(), "fedbn")
    lost = lose_states(strategy, following_app(folder=tmp_path), "train")
    kept, _ = run(NormFedAvg(make_model(), "fedbn"), following_app(), rounds=3)
    assert not strategy.notes
    assert all(torch.equal(lost.state[name], value) for name, value in kept.state.items())


def mean(states: list[Mapping[str, Tensor]], name: str) -> Tensor:
    return sum(size * state[name] for size, state in zip(SIZES, states, strict=True)) / sum(SIZES)


@pytest.mark.parametrize("rule", ["average", "pooled"])
def test_new_and_lost_clients_get_the_average_or_the_pooled_batch_norms(rule: str) -> None:
    server, grid = run(NormFedAvg(make_model(), "fedbn", unsampled=rule), following_app())
    own = [from_record(grid.states[node][HOME]) for node in range(1, ALL + 1)]
    for layer in ("1", "5"):
        for part in ("weight", "bias", "running_mean"):
            torch.testing.assert_close(server.state[f"{layer}.{part}"], mean(own, f"{layer}.{part}"))
        var, mu = mean(own, f"{layer}.running_var"), mean(own, f"{layer}.running_mean")
        spread = mean([{"x": (one[f"{layer}.running_mean"] - mu) ** 2} for one in own], "x")
        expected = var + spread if rule == "pooled" else var
        torch.testing.assert_close(server.state[f"{layer}.running_var"], expected)
    ordinary, _ = run(NormFedAvg(make_model(), "fedbn"), following_app())
    assert torch.equal(ordinary.state["0.weight"], server.state["0.weight"])

    strategy = Losing(make_model(), "fedbn", unsampled=rule)
    lose_states(strategy, following_app(), "train")
    assert "got the clients' " + rule[:4] in strategy.notes[2][0]


def test_new_clients_measure_their_own_statistics() -> None:
    app = following_app(batches=True)
    _, grid = run(NormFedAvg(make_model(), "silobn", unsampled="reestimated"), app)
    strategy = NormFedAvg(make_model(), "silobn", unsampled="reestimated")
    other = ArrayRecord(make_model(seed=3).state_dict())
    (message, *_) = strategy.configure_evaluate(1, other, ConfigRecord(), grid)
    model = make_model()
    context = Context(1, 9, {"partition-id": 2}, RecordDict(), {})
    load_global(model, message, context, batches=[data(2)[0]])
    x = make_model(seed=3)[0](data(2)[0])
    expected = x.transpose(0, 1).flatten(1)
    torch.testing.assert_close(model[1].running_mean, expected.mean(1).detach())
    torch.testing.assert_close(model[1].running_var, expected.var(1).detach())
    with pytest.raises(UserError, match="call load_global with batches="):
        load_global(model, message, context)


def test_whole_replies_hold_what_stays_home_as_it_was_received() -> None:
    seen = []

    class Looking(NormFedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            replies = list(replies)
            seen.extend(from_record(reply.content["arrays"]) for reply in replies)
            return super().aggregate_train(server_round, replies)

    strategy = Looking(make_model(), "fedbn", whole_replies=True)
    server, _ = run(strategy, following_app())
    initial = make_model().state_dict()
    assert all(list(state) == list(initial) for state in seen)
    assert all(torch.equal(state[name], initial[name]) for state in seen for name in strategy.home)
    plain, _ = run(NormFedAvg(make_model(), "fedbn"), following_app())
    assert all(torch.equal(server.state[name], value) for name, value in plain.state.items())
    assert not strategy.notes


def test_unknown_rules_are_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'average'"):
        NormFedAvg(make_model(), "fedbn", unsampled="averag")
    for policy in ("stats_shared", "fedavg"):
        with pytest.raises(UserError, match=f"with the policy {policy} clients keep no statistics"):
            NormFedAvg(make_model(), policy, unsampled="reestimated")
