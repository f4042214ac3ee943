"""NormFedAvg treats batch norm by its policy, and lets nothing touch the model that must not."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from flower_apps import SIZES, Keeping, data, fit, home_client_app, make_model, plain_client_app
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from torch import nn

from syncnorm.errors import UserError
from syncnorm.federated.flower.clients import HOME, load_global, reply_with
from syncnorm.federated.flower.grid.cohort_grid import CohortGrid
from syncnorm.federated.flower.records import from_record
from syncnorm.federated.flower.strategy.norm_fed_avg import NormFedAvg
from syncnorm.federated.policies import POLICIES, Policy

ALL = len(SIZES)
COUNTERS = ("1.num_batches_tracked", "5.num_batches_tracked")


@pytest.fixture(autouse=True)
def warnings_are_seen() -> Iterator[None]:
    logger = logging.getLogger("flwr")
    before = logger.level, logger.propagate
    logger.propagate = True
    yield
    logger.setLevel(before[0])
    logger.propagate = before[1]


def train_alone(state: Mapping[str, torch.Tensor], partition: int) -> dict[str, torch.Tensor]:
    model = make_model()
    model.load_state_dict(state)
    fit(model, partition)
    return {name: value.clone() for name, value in model.state_dict().items()}


def one_round(policy: str, **options: Any) -> tuple[dict[str, torch.Tensor], Keeping, CohortGrid]:
    server = Keeping(lambda: NormFedAvg(make_model(), policy, **options), rounds=1)
    grid = CohortGrid(home_client_app(policy), ALL, seed=0)
    grid.run_app(server)
    return server.state, server, grid


def mean(states: list[dict[str, torch.Tensor]], name: str) -> torch.Tensor:
    return sum(size * state[name] for size, state in zip(SIZES, states, strict=True)) / sum(SIZES)


def test_the_pooled_variance_is_that_of_all_clients_samples() -> None:
    states = [train_alone(make_model().state_dict(), partition) for partition in range(ALL)]
    pooled, _, _ = one_round("fedavg_pooled")
    for layer in ("1", "5"):
        mu = mean(states, f"{layer}.running_mean")
        second = mean([{"x": s[f"{layer}.running_var"] + s[f"{layer}.running_mean"] ** 2} for s in states], "x")
        torch.testing.assert_close(pooled[f"{layer}.running_mean"], mu, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(pooled[f"{layer}.running_var"], second - mu**2, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(pooled["0.weight"], mean(states, "0.weight"), rtol=1e-12, atol=1e-12)


def test_counters_stay_integers_where_flower_averages_them() -> None:
    ours, _, _ = one_round("fedavg")
    flowers = Keeping(FedAvg, rounds=1)
    CohortGrid(plain_client_app(), ALL, seed=0).run_app(flowers)
    for name in COUNTERS:
        assert (ours[name].dtype, ours[name].shape, ours[name].item()) == (torch.int64, (), 2)
        assert flowers.state[name].dtype == torch.float64
    for name in set(ours) - set(COUNTERS):
        torch.testing.assert_close(ours[name], flowers.state[name], rtol=1e-12, atol=1e-12)


def test_it_is_a_drop_in_for_fedavg() -> None:
    """The app of Flower's documentation, unchanged, FedAvg's options, evaluation and metrics."""
    options = dict(fraction_train=0.5, fraction_evaluate=0.5, weighted_by_key="num-examples")
    ours = Keeping(lambda: NormFedAvg(make_model(), "fedavg", **options))
    theirs = Keeping(lambda: FedAvg(**options))
    for server in (ours, theirs):
        CohortGrid(plain_client_app(), 12, seed=3).run_app(server)
    for round_ in (1, 2, 3):
        left = dict(ours.result.train_metrics_clientapp[round_])
        assert left.pop("clients-left-out") == 0
        assert left == pytest.approx(dict(theirs.result.train_metrics_clientapp[round_]))
        assert dict(ours.result.evaluate_metrics_clientapp[round_]) == pytest.approx(
            dict(theirs.result.evaluate_metrics_clientapp[round_])
        )


@pytest.mark.parametrize(
    ("policy", "home"),
    [
        ("fedbn", ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
        ("silobn", ("running_mean", "running_var", "num_batches_tracked")),
        ("stats_shared", ("weight", "bias")),
    ],
)
def test_what_stays_home_is_the_clients_own_and_never_sent(policy: str, home: tuple[str, ...]) -> None:
    initial = make_model().state_dict()
    state, _, grid = one_round(policy)
    names = {f"{layer}.{part}" for layer in ("1", "5") for part in home}
    for partition in range(ALL):
        kept = from_record(grid.states[partition + 1][HOME])
        alone = train_alone(initial, partition)
        assert set(kept) == names
        assert all(torch.equal(kept[name], alone[name]) for name in names)
    assert all(torch.equal(state[name], initial[name]) for name in names)
    # A bias before a batch norm has no gradient.
    moved = set(state) - names - {"0.bias", "4.bias"}
    assert not any(torch.equal(state[name], initial[name]) for name in moved)

    second = Keeping(lambda: NormFedAvg(make_model(), policy), rounds=2)
    grid = CohortGrid(home_client_app(policy), ALL, seed=0)
    grid.run_app(second)
    mixed = {**state, **{name: train_alone(initial, 2)[name] for name in names}}
    alone = train_alone(mixed, 2)
    kept = from_record(grid.states[3][HOME])
    assert all(torch.equal(kept[name], alone[name]) for name in names)


def test_an_evaluation_uses_what_stays_home_and_keeps_nothing() -> None:
    _, _, grid = one_round("fedbn", fraction_evaluate=1.0)
    before = {node: from_record(state[HOME]) for node, state in grid.states.items()}
    message = Message(RecordDict({"a": ArrayRecord(make_model(seed=9).state_dict())}), 2, "evaluate")
    (reply,) = grid.send_and_receive([message])
    assert [type(record) for record in reply.content.values()] == [MetricRecord]
    model = make_model(seed=9)
    model.load_state_dict({**model.state_dict(), **before[2]})
    x, y = data(1)
    assert reply.content["metrics"]["accuracy"] == (model.eval()(x).argmax(1) == y).double().mean()
    after = from_record(grid.states[2][HOME])
    assert all(torch.equal(after[name], value) for name, value in before[2].items())


def test_nothing_is_kept_where_everything_is_shared() -> None:
    _, _, grid = one_round("fedavg_pooled")
    assert not grid.states


def bad_app(bad: Mapping[int, str]) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        kind = bad.get(context.node_id, "good")
        model = make_model()
        load_global(model, message, context)
        metrics: dict[str, Any] = {"num-examples": 1, "loss": float(context.node_id)}
        if kind == "raises":
            raise OSError("disk full")
        with torch.no_grad():
            model[0].bias.fill_(float(context.node_id))
            if kind == "nan":
                model[4].weight[0, 0] = torch.nan
            if kind == "far":
                model[1].running_mean[0] = 1e200
            if kind == "negative":
                model[1].running_var[0] = -1
        if kind == "shape":
            model[0] = nn.Conv2d(1, 4, 3).double()
        if kind == "dtype":
            model[0].bias = nn.Parameter(model[0].bias.detach().cfloat())
        if kind == "extra":
            model.add_module("more", nn.Linear(1, 1))
        if kind == "weight":
            metrics["num-examples"] = float("nan")
        if kind == "nothing":
            metrics["num-examples"] = 0
        if kind == "unweighted":
            del metrics["num-examples"]
        if kind == "names":
            metrics["accuracy"] = 1.0
        if kind == "list":
            metrics["loss"] = [1.0, 2.0]
        reply = reply_with(model, message, context, metrics)
        if kind == "no metrics":
            del reply.content["metrics"]
        if kind == "missing":
            del reply.content["arrays"]["0.bias"]
        if kind == "empty":
            reply.content["arrays"] = ArrayRecord({})
        if kind == "no model":
            del reply.content["arrays"]
        return reply

    return app


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("raises", "client 3: OSError: disk full (test_flower_strategy.py, line"),
        ("nan", "client 3: sent '4.weight' with values that are not finite."),
        ("negative", "client 3: sent '1.running_var' with a negative variance: noise of a mod"),
        ("shape", "client 3: sent '0.bias' as torch.float64 of shape (4,)"),
        ("dtype", "client 3: sent '0.bias' as torch.complex64"),
        ("extra", "client 3: sent 'more.bias', which the global model does not have."),
        ("missing", "client 3: sent no '0.bias'"),
        ("no model", "client 3: a message holds 0 ArrayRecords"),
        ("weight", "client 3: its weight 'num-examples' is nan"),
        ("unweighted", "client 3: its metrics have no 'num-examples'"),
    ],
)
def test_a_bad_reply_is_named_counted_and_left_out(
    kind: str, sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    strategy = NormFedAvg(make_model(), fraction_evaluate=0.0)
    server = Keeping(lambda: strategy, rounds=1)
    CohortGrid(bad_app({3: kind}), 5).run_app(server)
    assert strategy.left_out[1][0].startswith(sentence)
    assert server.result.train_metrics_clientapp[1]["clients-left-out"] == 1
    assert server.result.train_metrics_clientapp[1]["loss"] == pytest.approx((1 + 2 + 4 + 5) / 4)
    assert server.state["0.bias"].tolist() == pytest.approx([3.0] * 3)
    assert sentence in caplog.text


@pytest.mark.parametrize(
    ("bad", "enough", "sentence"),
    [
        (
            {2: "nan", 4: "raises"},
            0.8,
            r"round 1: 2 of 5 clients gave no usable reply, and enough is 0.8 \(client 2: ",
        ),
        (dict.fromkeys(range(1, 6), "nan"), 0.0, "round 1: 5 of 5 clients gave no usable reply"),
        (dict.fromkeys(range(1, 6), "unweighted"), 0.5, "client 1: its metrics have no 'num-examples', which weighs"),
        (dict.fromkeys(range(1, 6), "no metrics"), 0.5, "client 1: it sent no metrics, so it has no 'num-examples'"),
        (dict.fromkeys(range(1, 6), "nothing"), 0.5, "the weights 'num-examples' of all 5 clients are zero"),
        (
            dict.fromkeys(range(1, 6), "empty"),
            0.5,
            "round 1: no entry of the model came from half of the 5 clients: ",
        ),
        ({3: "far"}, 0.5, "together '1.running_var' is too large"),
    ],
)
def test_a_round_that_too_few_fill_fails_with_the_reason(bad: dict[int, str], enough: float, sentence: str) -> None:
    strategy = NormFedAvg(make_model(), enough=enough, fraction_evaluate=0.0)
    with pytest.raises(UserError, match=sentence):
        CohortGrid(bad_app(bad), 5).run_app(Keeping(lambda: strategy, rounds=2))
    initial = make_model().state_dict()
    last = strategy.arrays.to_torch_state_dict()
    assert all(torch.equal(last[name], value) for name, value in initial.items())


def test_a_client_of_weight_zero_changes_nothing_and_counts() -> None:
    strategy = NormFedAvg(make_model(), enough=1.0, fraction_evaluate=0.0)
    server = Keeping(lambda: strategy, rounds=1)
    CohortGrid(bad_app({1: "nothing", 2: "nothing", 4: "nothing"}), 5).run_app(server)
    assert not strategy.left_out
    assert server.state["0.bias"].tolist() == pytest.approx([4.0] * 3)


def test_metrics_decide_nothing_over_updates() -> None:
    for bad in ({1: "names"}, {5: "names"}, {1: "list"}, {5: "list"}):
        strategy = NormFedAvg(make_model(), enough=1.0, fraction_evaluate=0.0)
        server = Keeping(lambda strategy=strategy: strategy, rounds=1)
        CohortGrid(bad_app(bad), 5).run_app(server)
        metrics = dict(server.result.train_metrics_clientapp[1])
        assert metrics.pop("clients-left-out") == 0
        if "list" in bad.values():
            assert metrics == {}
        else:
            assert metrics == {"loss": pytest.approx(3.0), "accuracy": 1.0}
        assert server.state["0.bias"].tolist() == pytest.approx([3.0] * 3)


def test_a_function_of_ones_own_gets_metrics_as_they_are() -> None:
    def lengths(contents: list[RecordDict], key: str) -> MetricRecord:
        found = [content["metrics"]["loss"] for content in contents]
        return MetricRecord(
            {"lists": sum(isinstance(one, list) for one in found), "all": len(found), "key": len(key)}
        )

    strategy = NormFedAvg(make_model(), train_metrics_aggr_fn=lengths, fraction_evaluate=0.0)
    server = Keeping(lambda: strategy, rounds=1)
    CohortGrid(bad_app({1: "list", 4: "list"}), 5).run_app(server)
    assert dict(server.result.train_metrics_clientapp[1]) == {
        "lists": 2, "all": 5, "key": len("num-examples"), "clients-left-out": 0,
    }  # fmt: skip


def test_replies_in_half_precision_are_taken() -> None:
    app = ClientApp()
    initial = make_model().state_dict()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        half = {k: v.half() if v.is_floating_point() else v for k, v in initial.items()}
        half["0.bias"] = torch.full((3,), float(context.node_id)).half()
        content = {"arrays": ArrayRecord(half), "metrics": MetricRecord({"num-examples": 1})}
        return Message(RecordDict(content), reply_to=message)

    strategy = NormFedAvg(make_model(), fraction_evaluate=0.0)
    server = Keeping(lambda: strategy, rounds=1)
    CohortGrid(app, 3).run_app(server)
    assert not strategy.left_out
    assert {name: value.dtype for name, value in server.state.items()} == {k: v.dtype for k, v in initial.items()}
    assert server.state["0.bias"].tolist() == [2.0] * 3


def test_clients_that_do_not_reply_are_counted() -> None:
    strategy = NormFedAvg(make_model(), enough=0.1)
    grid = CohortGrid(bad_app({}), 5)
    messages = list(strategy.configure_train(1, ArrayRecord(make_model().state_dict()), _config(), grid))
    replies = [reply for reply in grid.send_and_receive(messages) if reply.metadata.src_node_id != 2]
    arrays, metrics = strategy.aggregate_train(1, replies[::-1])
    assert arrays is not None
    assert metrics is not None
    assert metrics["clients-left-out"] == 1
    assert strategy.left_out[1] == ["1 of 5 clients did not reply"]


def test_a_bad_evaluation_is_left_out() -> None:
    app = plain_client_app()
    other = ClientApp()
    other.train()(lambda message, context: app(message, context))

    @other.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        metrics = {"num-examples": 2, "accuracy": 0.5} if context.node_id != 2 else {"accuracy": 1.0}
        return Message(RecordDict({"m": MetricRecord(metrics)}), reply_to=message)

    strategy = NormFedAvg(make_model())
    server = Keeping(lambda: strategy, rounds=1)
    CohortGrid(other, 4).run_app(server)
    assert server.result.evaluate_metrics_clientapp[1]["accuracy"] == 0.5
    assert strategy.left_out[1] == ["client 2: its metrics have no 'num-examples', which weighs its update"]
    strategy = NormFedAvg(make_model(), weighted_by_key="samples", enough=0.0)
    with pytest.raises(UserError, match="its metrics have no 'samples'"):
        CohortGrid(other, 4).run_app(Keeping(lambda: strategy, rounds=1))


def _config() -> Any:
    from flwr.app import ConfigRecord

    return ConfigRecord()


def test_layers_are_found_by_type_and_counted_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    strategy = NormFedAvg(make_model(), "silobn")
    assert strategy.layers == ["1", "5"]
    with caplog.at_level("INFO", logger="flwr"):
        strategy.summary()
    assert "Batch norm: 2 layers, found by type" in caplog.text
    assert "affine shared | statistics local" in caplog.text


def test_the_model_given_is_only_read() -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    CohortGrid(plain_client_app(), 4).run_app(Keeping(lambda: NormFedAvg(model), rounds=1))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_mistakes_are_sentences() -> None:
    with pytest.raises(UserError, match="did you mean 'fedbn'"):
        NormFedAvg(make_model(), "fedbm")
    with pytest.raises(UserError, match=r"fbn also changes how clients train.*fedavg, fedavg_pooled, fedbn, silobn"):
        NormFedAvg(make_model(), "fbn")
    with pytest.raises(UserError, match="no batch norm"):
        NormFedAvg(nn.Linear(2, 2))
    with pytest.raises(UserError, match="enough is 2"):
        NormFedAvg(make_model(), enough=2)
    strategy, grid = NormFedAvg(make_model()), CohortGrid(bad_app({}), 2)
    other = ArrayRecord(nn.Linear(2, 2).state_dict())
    with pytest.raises(UserError, match=r"differ from the model given to NormFedAvg in 'bias' \(2 entries"):
        strategy.configure_train(1, other, _config(), grid)


def test_a_row_of_ones_own_is_a_policy() -> None:
    mine = Policy("local", "pooled", "mine")
    assert mine not in POLICIES.values()
    strategy = NormFedAvg(make_model(), mine)
    assert strategy.reductions["1.weight"] == "local"
    assert strategy.reductions["1.running_var"] == "pooled"
