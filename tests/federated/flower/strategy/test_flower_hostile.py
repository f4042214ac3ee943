"""NormFedAvg among hostile clients: its aggregations, Flower's robust strategies, replies that nobody should send."""

import logging
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from flower_apps import SIZES, Keeping, fit, home_client_app, make_model
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy as strategies
from torch import Tensor

from syncnorm.errors import UserError
from syncnorm.federated import CohortGrid, NormFedAvg, aggregate
from syncnorm.federated.flower.network import OverFlower

ALL, THIRD = len(SIZES), (1, 4)
PARAMETERS = [name for name, _ in make_model().named_parameters()]
State = dict[str, Tensor]
Spoil = Callable[[State, State], State]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


def trained(partition: int) -> State:
    """Return what an honest client sends in the first round."""
    model = make_model()
    fit(model, partition)
    return {name: value.clone() for name, value in model.state_dict().items()}


HONEST = [trained(partition) for partition in range(ALL)]
BEFORE = dict(make_model().state_dict())


def reals(make: Callable[[str, Tensor, Tensor], Tensor]) -> Spoil:
    """Return an attack on entries that are real numbers."""
    return lambda before, after: {
        name: make(name, before[name], value) if value.is_floating_point() else value for name, value in after.items()
    }


ATTACKS: dict[str, Spoil] = {
    "scaled": reals(lambda name, before, after: (before + 1e6 * (after - before)).abs()),
    "flipped": reals(lambda name, before, after: after if "running" in name else 2 * before - after),
    "variance": reals(lambda name, before, after: after * 0 + 1e30 if name.endswith("_var") else after),
    "no variance": reals(lambda name, before, after: after * 0 + 1e-30 if name.endswith("_var") else after),
    "counter": lambda before, after: {
        name: torch.full_like(value, 2**53) if name.endswith("tracked") else value for name, value in after.items()
    },
}


def app_of(answer: Callable[[int], RecordDict]) -> ClientApp:
    """Return an app whose clients answer a train message so, by partition."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(answer(int(context.node_config["partition-id"])), reply_to=message)

    return app


def content(state: State, **metrics: Any) -> RecordDict:
    """Return an honest reply's content."""
    return RecordDict({"arrays": ArrayRecord(state), "metrics": MetricRecord({"num-examples": 1, **metrics})})


def sent_under(attack: str) -> list[State]:
    """Return what all clients send if a third is hostile."""
    return [ATTACKS[attack](BEFORE, one) if at in THIRD else one for at, one in enumerate(HONEST)]


def run(strategy: NormFedAvg, app: ClientApp, rounds: int = 1) -> State:
    """Return the global model after some rounds."""
    server = Keeping(lambda: strategy, rounds=rounds)
    CohortGrid(app, ALL, seed=0).run_app(server)
    return server.state


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("name", ["median", "trimmed", "clipped", "krum"])
def test_the_strategy_is_the_servers_arithmetic(name: str, attack: str) -> None:
    states = sent_under(attack)
    strategy = NormFedAvg(make_model(), "fedavg_pooled", aggregation=name, fraction_evaluate=0)
    found = run(strategy, app_of(lambda k: content(states[k])))
    expected = aggregate(make_model(), states, [1.0] * ALL, "fedavg_pooled", aggregation=name)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[entry], value) for entry, value in expected.items())


class NormFedMedian(NormFedAvg, strategies.FedMedian):
    """The median of parameters."""


class NormFedTrimmedAvg(NormFedAvg, strategies.FedTrimmedAvg):
    """The trimmed mean of parameters."""


class NormKrum(NormFedAvg, strategies.Krum):
    """One client's parameters."""


class NormMultiKrum(NormFedAvg, strategies.MultiKrum):
    """The mean of some clients' parameters."""


BESIDE: list[tuple[type[NormFedAvg], dict[str, Any], str]] = [
    (NormFedMedian, {}, "median"),
    (NormFedTrimmedAvg, {"beta": 0.34}, "trimmed"),
    (NormKrum, {"num_malicious_nodes": 2}, "mean"),
    (NormMultiKrum, {"num_malicious_nodes": 2, "num_nodes_to_select": 3}, "median"),
]


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize(("kind", "options", "aggregation"), BESIDE, ids=lambda value: getattr(value, "__name__", ""))
def test_beside_flowers_robust_strategies(
    kind: type[NormFedAvg], options: dict[str, Any], aggregation: str, attack: str
) -> None:
    """Parameters are theirs, statistics those of our aggregation over the clients that they used."""
    states = sent_under(attack)
    strategy = kind(make_model(), "fedavg_pooled", aggregation=aggregation, fraction_evaluate=0, **options)
    found = run(strategy, app_of(lambda k: content(states[k])))
    values = {name: np.stack([one[name].numpy() for one in HONEST]) for name in found}
    for name in PARAMETERS:
        if attack in ("scaled", "flipped"):
            assert (found[name].numpy() >= values[name].min(0) - 1e-12).all()
            assert (found[name].numpy() <= values[name].max(0) + 1e-12).all()
    if aggregation != "mean" and kind in (NormFedMedian, NormFedTrimmedAvg):
        expected = aggregate(make_model(), states, [1.0] * ALL, "fedavg_pooled", aggregation=aggregation)
        for name in found.keys() - set(PARAMETERS):
            assert torch.equal(found[name], expected[name])
    assert not any("still their mean" in note for notes in strategy.notes.values() for note in notes)


def test_a_robust_strategy_with_the_mean_of_statistics_is_told() -> None:
    strategy = NormFedMedian(make_model(), "fedavg_pooled", fraction_evaluate=0)
    run(strategy, app_of(lambda k: content(HONEST[k])), rounds=2)
    assert strategy.notes == {
        1: [
            "NormFedMedian bounds what clients can do to parameters, and running statistics are still their mean: "
            "give it an aggregation, such as median"
        ]
    }


# -- counts


@pytest.mark.parametrize("policy", ["fedavg_pooled", "silobn"])
def test_without_counts_neither_weights_nor_counters_leave_a_client(policy: str) -> None:
    metrics: list[set[str]] = []
    arrays: set[str] = set()
    inner, app = home_client_app(policy), ClientApp()

    def seen(message: Message, context: Context) -> Message:
        reply = inner(message, context)
        records = [record for record in reply.content.values() if isinstance(record, MetricRecord)]
        metrics.append({name for record in records for name in record})
        arrays.update(reply.content.get("arrays", {}))
        return reply

    app.train()(seen)
    app.evaluate()(seen)
    strategy = NormFedAvg(make_model(), policy, send_counts=False)
    found = run(strategy, app)
    assert metrics == [{"loss"}] * ALL + [{"accuracy"}] * ALL
    assert arrays
    assert not any("tracked" in name for name in arrays)
    expected = aggregate(make_model(), HONEST, [1.0] * ALL, policy)
    for name, value in found.items():
        kept = BEFORE[name] if name.endswith("tracked") else expected[name]
        torch.testing.assert_close(value, kept, rtol=1e-12, atol=1e-14)
    assert strategy.notes == {}
    assert strategy.left_out == {}


def test_weights_that_clients_send_all_the_same_are_not_used() -> None:
    app = app_of(lambda k: content(HONEST[k]) if k else content(HONEST[k], **{"num-examples": 10**9}))
    found = run(NormFedAvg(make_model(), "fedavg", send_counts=False, fraction_evaluate=0), app)
    expected = aggregate(make_model(), HONEST, [1.0] * ALL, "fedavg")
    torch.testing.assert_close(found["0.weight"], expected["0.weight"], rtol=1e-12, atol=1e-14)


def test_two_weights_whose_sum_is_infinite_are_shares_all_the_same() -> None:
    app = app_of(lambda k: content(HONEST[k], **{"num-examples": 1.7e308 if k < 2 else 1.0}))
    found = run(NormFedAvg(make_model(), "fedavg", fraction_evaluate=0), app)
    torch.testing.assert_close(found["0.weight"], (HONEST[0]["0.weight"] + HONEST[1]["0.weight"]) / 2)


# -- replies that nobody should send


def odd_record(state: State, rng: random.Random) -> RecordDict:
    """Return a reply whose arrays or metrics no honest app makes."""
    good = content(state)
    name = rng.choice(sorted(state))
    array = good["arrays"][name]  # type: ignore[index]
    shape, kind, payload = array.shape, array.dtype, array.data
    odd = rng.choice([
        Array("float64", shape, "numpy.ndarray", b""),
        Array("float64", shape, "numpy.ndarray", payload[: len(payload) // 2]),
        Array(kind, shape, "pickle", payload),
        Array("object", shape, "numpy.ndarray", b"\x80\x04N."),
        Array(kind, (1 << 40,), "numpy.ndarray", payload),
        Array("float64", shape, "numpy.ndarray", rng.randbytes(64)),
        Array(np.full(shape, 1e300)),
        Array(np.full(shape, np.nan)),
        Array(np.array(["text"])),
        Array(np.full(shape, 2**64 - 1, dtype="uint64")),
    ])  # fmt: skip
    records: list[Callable[[], RecordDict]] = [
        lambda: RecordDict({"arrays": ArrayRecord({**good["arrays"], name: odd}), "metrics": good["metrics"]}),  # type: ignore[dict-item]
        lambda: RecordDict({"metrics": good["metrics"]}),
        lambda: RecordDict({"arrays": good["arrays"]}),
        lambda: RecordDict(
            {"arrays": good["arrays"], "metrics": MetricRecord({"num-examples": rng.choice(WEIGHTS)})}
        ),
        lambda: RecordDict({"arrays": good["arrays"], "other": good["arrays"], "metrics": good["metrics"]}),
        lambda: RecordDict({"one": good["arrays"], "two": good["arrays"], "metrics": good["metrics"]}),
        lambda: RecordDict({**good, "norm-client": ConfigRecord({"client": "x", "had-own-entries": 3})}),
        lambda: RecordDict({"config": ConfigRecord({"x": 1})}),
        lambda: RecordDict({}),
    ]
    return rng.choice(records)()


WEIGHTS: list[Any] = [-1, float("nan"), float("inf"), 1e308, 0, [1.0, 2.0], 2**62]


@pytest.mark.parametrize("aggregation", ["mean", "median", "trimmed", "clipped", "krum"])
def test_records_that_no_app_makes_leave_a_finite_model(aggregation: str) -> None:
    rng, sentences = random.Random(0), 0
    for _ in range(12):
        odd = {k: odd_record(HONEST[k], rng) for k in THIRD}
        app = app_of(lambda k, odd=odd: odd.get(k) or content(HONEST[k]))
        strategy = NormFedAvg(make_model(), "fedavg_pooled", aggregation=aggregation, fraction_evaluate=0)
        try:
            run(strategy, app)
        except UserError:
            sentences += 1
        sentences += sum(map(len, strategy.left_out.values()))
        for name, array in strategy.arrays.items():
            value = array.numpy()
            assert np.isfinite(value).all(), name
            assert value.shape == tuple(BEFORE[name].shape), name
    assert sentences > 6


def test_a_reply_to_a_run_of_ours_that_cannot_be_read_is_an_error_of_that_client() -> None:
    network = OverFlower.__new__(OverFlower)
    network.federation = None  # type: ignore[assignment]
    for record in (RecordDict({}), content(HONEST[0])):
        asked = Message(RecordDict({}), 1, "train")
        asked.metadata.__dict__["_message_id"] = "one"
        reply = network._reply(3, Message(record, reply_to=asked))
        assert reply is not None
        assert reply.client == 3
        assert reply.error.startswith("its reply cannot be read (")


def test_an_answer_of_a_client_that_cannot_be_read_is_named_and_left_out() -> None:
    network = OverFlower.__new__(OverFlower)
    network.missing = []
    good = RecordDict({"metrics": MetricRecord({"accuracy": 0.5, "loss": 1.0})})
    network._contents = lambda kind, contents: {0: good, 1: RecordDict({}), 2: good}  # type: ignore[method-assign]
    network._broadcasts = lambda *_: {}  # type: ignore[method-assign]
    assert network.validate([0, 1, 2], lambda client: None, {}) == [(0.5, 1.0)] * 2  # type: ignore[arg-type,return-value]
    (sentence,) = network.missing
    assert sentence.startswith("client 1 sent an answer to 'evaluate.validation' that cannot be read: KeyError")
    network._contents = lambda kind, contents: {1: RecordDict({})}  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"no client's answer to 'evaluate.validation' can be used: client 1"):
        network.validate([1], lambda client: None, {})  # type: ignore[arg-type,return-value]
