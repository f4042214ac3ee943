"""syncnorm's own runs over a Flower grid give the numbers that they give without Flower, to the bit."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from threading import Event
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from syncnorm.config import Clients, Data, Optim, Run
from syncnorm.errors import UserError
from syncnorm.federated import simulate
from syncnorm.federated.flower import apps, wire
from syncnorm.federated.flower.apps import client_app, federation_of, forget, play, server_app
from syncnorm.federated.flower.grid.cohort_grid import CohortGrid
from syncnorm.federated.flower.network import OverFlower
from syncnorm.federated.flower.strategy.norm_fed_avg import NormFedAvg
from syncnorm.federated.flower.wire import run_as_text, run_from_text

COUNT = 5


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    forget()


def make_run(engine: str = "loop", optim: Optim | None = None, validation: float = 0.0, **world: Any) -> Run:
    return Run(
        data=Data("digits", train_limit=300, test_limit=100, validation=validation),
        select="best" if validation else "last",
        model="mlp",
        optim=optim or Optim(lr=0.1),
        precision="float64",
        world=Clients(count=COUNT, rounds=2, engine=engine, **world),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_a_run_in_bfloat16_over_flower_is_the_run_without(precision: Any) -> None:
    """Flower's arrays have no bfloat16; what is widened and narrowed again loses nothing."""
    optim = Optim(lr=0.1, momentum=0.9)
    run = make_run("loop", optim, method="silobn", unsampled="average", participation=0.4, keep_momentum=True)
    run = replace(run, model="small_cnn", precision=precision)
    plain = json.loads(json.dumps(asdict(simulate(run))))
    flower = over_flower(run)
    for name in ("metrics", "history", "details"):
        assert flower[name] == plain[name]


def over_flower(run: Run, engine: str = "loop") -> dict[str, Any]:
    grid = CohortGrid(client_app, run.world.count, run_config={"run": run_as_text(run)}, engine=engine)
    context = grid.run_app(server_app)
    result: dict[str, Any] = json.loads(str(context.state["result"]["json"]))
    return result


@pytest.mark.parametrize("engine", ["loop", "cohort"])
@pytest.mark.parametrize(
    "world",
    [
        dict(method="fedbn", participation=0.6),
        dict(method="silobn", unsampled="average", participation=0.4, held_out=2),
        dict(method="fedavg_pooled", algorithm="scaffold"),
        dict(method="fixbn", validation=0.3, keep_momentum=True),
        dict(method="hbn"),
        dict(method="fbn", weighting="uniform"),
        dict(method="fedap"),
        dict(method="hbn", aggregation="median", hostile=0.4, attack="noise"),
        dict(method="silobn", aggregation="clipped", weighting="uniform", send_counts=False),
        dict(method="sbn", skew="dirichlet_by_class", alpha=0.1, min_batch=4),
        dict(method="centralised"),
    ],
    ids=lambda world: world["method"],
)
def test_a_run_over_flower_is_the_run_without(world: dict[str, Any], engine: str) -> None:
    optim = Optim(lr=0.1, momentum=0.0) if "algorithm" in world else None
    run = make_run(engine, optim, **world)
    plain = json.loads(json.dumps(asdict(simulate(run))))
    flower = over_flower(run, engine)
    for name in ("run_id", "config", "metrics", "evaluated_by", "history", "details"):
        assert flower[name] == plain[name]


def test_fedtan_trains_together_here_and_says_so_where_it_cannot() -> None:
    run = make_run("cohort", method="fedtan")
    plain = json.loads(json.dumps(asdict(simulate(run))))
    assert over_flower(run, "cohort")["metrics"] == plain["metrics"]
    with pytest.raises(UserError, match="choose the engine cohort"):
        over_flower(run, "loop")


def test_a_client_that_fails_is_left_out_and_keeps_what_it_had(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = apps.begin

    def broken(message: Message, context: Context) -> Any:
        if context.node_id == 3:
            raise OSError("disk full")
        return begin(message, context)

    monkeypatch.setattr(apps, "begin", broken)
    result = over_flower(make_run(method="fedbn"))
    assert result["metrics"]["clients_left_out"] == 2
    assert "disk full" in result["details"]["left_out"]["round 1, client 2"]
    monkeypatch.setattr(apps, "begin", lambda *_: 1 / 0)
    with pytest.raises(UserError, match=r"5 of 5 clients gave no usable update.*ZeroDivisionError"):
        over_flower(make_run(method="fedbn"))


def nodes_of(partitions: list[int | None], count: int, monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    monkeypatch.setattr("syncnorm.federated.flower.network.CohortGrid", type("Other", (), {}))
    monkeypatch.setattr("syncnorm.federated.flower.network.PATIENCE", 0.0)
    app = ClientApp()

    @app.query("partition")
    def partition(message: Message, context: Context) -> Message:
        given = partitions[context.node_id - 1]
        context.node_config = {} if given is None else {"partition-id": given}
        return apps.query_partition(message, context)

    text = run_as_text(replace(make_run(), world=Clients(count=count)))
    return OverFlower(federation_of(text), CohortGrid(app, len(partitions)), text, Event()).nodes


def test_clients_are_found_by_their_partition(monkeypatch: pytest.MonkeyPatch) -> None:
    assert nodes_of([2, 0, 1], 3, monkeypatch) == {2: 1, 0: 2, 1: 3}
    for partitions, sentence in (
        ([0, 1], "3 clients and the grid 2 nodes"),
        ([0, 1, 1], "two nodes have the partition-id 1"),
        ([0, 1, 7], "no node has the partition-id 2"),
        ([0, 1, None], "--node-config 'partition-id=0"),
    ):
        with pytest.raises(UserError, match=sentence):
            nodes_of(partitions, 3, monkeypatch)  # type: ignore[arg-type]


def test_waiting_ends_with_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run()
    grid, ended = CohortGrid(client_app, COUNT), Event()
    monkeypatch.setattr(grid, "pull_messages", lambda ids: ended.set() or [])
    with pytest.raises(ConnectionError, match="has ended"):
        play(grid, run_as_text(run), ended)


def test_an_evaluation_that_misses_a_client_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apps, "score", lambda *_: 1 / 0)
    with pytest.raises(UserError, match=r"0 of 5 clients answered 'evaluate': client 0 failed.*ZeroDivisionError"):
        over_flower(make_run())


@pytest.mark.parametrize("make", [lambda model: FedAvg(), lambda model: NormFedAvg(model, "fedavg")])
def test_strategies_speak_with_these_clients_too(make: Any) -> None:
    run = make_run(method="fedavg")
    text = run_as_text(run)
    model = federation_of(text).models.template
    grid = CohortGrid(client_app, COUNT, run_config={"run": text}, engine="loop")
    result = make(model).start(grid=grid, initial_arrays=ArrayRecord(model.state_dict()), num_rounds=2)
    assert set(result.train_metrics_clientapp) == set(result.evaluate_metrics_clientapp) == {1, 2}
    plain = simulate(run)
    accuracy = result.evaluate_metrics_clientapp[2]["accuracy"]
    assert accuracy == pytest.approx(plain.metrics["client_accuracy_weighted"], abs=1e-12)


def test_a_client_without_a_batch_sends_back_what_it_received() -> None:
    text = run_as_text(make_run(batch=128, min_batch=128))
    model = federation_of(text).models.template
    grid = CohortGrid(client_app, COUNT, run_config={"run": text})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "config": ConfigRecord({"server-round": 1})})
    (reply,) = grid.send_and_receive([Message(content, 2, "train")])
    assert reply.content["metrics"]["idle"] == 1
    sent = reply.content["arrays"].to_torch_state_dict()
    assert all(torch.equal(sent[name], value) for name, value in model.state_dict().items())
    with pytest.raises(UserError, match="none of its 5 clients has a batch"):
        over_flower(make_run(batch=128, min_batch=128))


def test_a_run_is_text_and_back() -> None:
    run = make_run(method="fixbn", method_options={"frozen_from": 0.25}, domains=("digits",), held_out=1)
    assert run_from_text(run_as_text(run)) == run
    assert run_from_text("{}") == Run(world=Clients())
    assert run_from_text('{"world": {"method": "fedbn"}}').world == Clients(method="fedbn")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "which is no JSON"),
        ("[]", r"run is \[\]: it must be a JSON object"),
        ('{"sed": 1}', "did you mean 'seed'"),
        ('{"world": {"methd": "fedbn"}}', "did you mean 'world.method'"),
        ('{"optim": 3}', "optim is 3: it must be a JSON object"),
    ],
)
def test_mistakes_in_the_text_are_sentences(text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        run_from_text(text)


def test_an_entry_that_the_model_does_not_have_is_refused() -> None:
    text = run_as_text(make_run())
    content = wire.pack_request(text)
    content["arrays"] = ArrayRecord({"strange": torch.ones(1)})
    (reply,) = CohortGrid(client_app, COUNT).send_and_receive([Message(content, 1, "train")])
    assert "the server sent 'strange'" in (reply.error.reason or "")


def test_the_server_prints_its_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    result = over_flower(make_run())
    assert json.loads(capsys.readouterr().out) == result["metrics"]
    assert isinstance(result["metrics"]["accuracy"], float)


class Silent(CohortGrid):
    """A grid whose client 1 never replies."""

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return all replies but those to training from node 2."""
        replies = super().pull_messages(message_ids)
        return [one for one in replies if one.metadata.src_node_id != 2 or one.metadata.message_type != "train"]


def test_a_client_that_does_not_reply_is_left_out_by_name() -> None:
    run = Run(data=Data("digits", size=8, train_limit=80, test_limit=40), world=Clients(count=3, rounds=1))
    result = play(Silent(client_app, 3), run_as_text(run), timeout=0.2)
    assert result.metrics["clients_left_out"] == 1
    assert result.details["left_out"] == {"round 1, client 1": "it did not reply within 0.2 s"}
