"""Clients that fail are named, counted and left out, and the model is as if they had not been there."""

import sys
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from small_runs import Spoiled, assert_same, bits, changed, play, small_run, start
from torch import Tensor, nn

from syncnorm.errors import UserError
from syncnorm.federated.local import Update
from syncnorm.federated.messages import Reply
from syncnorm.federated.server.rounds import Rounds
from syncnorm.federated.server.server import Server

FAULTS: dict[str, tuple[Callable[[Update], Update], str]] = {
    "error": (lambda u: Update(u.client, {}, error="RuntimeError: no more power"), "RuntimeError: no more power"),
    "nan weight": (
        lambda u: changed(u, classifier__bias=torch.full((10,), torch.nan).double()),
        "after training 'classifier.bias' has values that are not finite.",
    ),
    "infinite weight": (
        lambda u: changed(u, classifier__bias=torch.full((10,), torch.inf).double()),
        "after training 'classifier.bias' has values that are not finite.",
    ),
    "nan statistics": (
        lambda u: changed(u, features__1__running_mean=torch.full((2,), torch.nan).double()),
        "after training 'features.1.running_mean' has values that are not finite.",
    ),
    "shape": (
        lambda u: changed(u, classifier__bias=torch.zeros(9).double()),
        "client 1 sent 'classifier.bias' as torch.float64 of shape (9,): the global model has torch.float64 of shape "
        "(10,).",
    ),
    "type": (
        lambda u: changed(u, classifier__bias=torch.zeros(10)),
        "client 1 sent 'classifier.bias' as torch.float32 of shape (10,): the global model has torch.float64 of "
        "shape (10,).",
    ),
    "negative variance": (
        lambda u: changed(u, features__5__running_var=-torch.ones(4).double()),
        "client 1 sent 'features.5.running_var' with a negative variance.",
    ),
    "nothing": (lambda u: replace(u, state={}), "training left no 'features.0.weight'."),
}


def keep_replies(rounds: Rounds) -> list[Reply]:
    """Return a list in which the replies of the rounds to come are collected."""
    found: list[Reply] = []
    inner = rounds.network.train

    def train(clients: Any, to: Any) -> list[Reply]:
        found[:] = inner(clients, to)
        return found

    rounds.network.train = train  # type: ignore[method-assign]
    return found


CASES = [(fault, method) for fault in FAULTS for method in ("fedavg", "fedavg_pooled")]
CASES += [(fault, "fbn") for fault in ("error", "nan weight", "shape", "nothing")]


@pytest.mark.parametrize(("fault", "method"), CASES)
def test_a_faulty_client_is_named_counted_and_left_out(fault: str, method: str) -> None:
    spoil, sentence = FAULTS[fault]
    run = small_run(method=method, skew="shards")
    calm = start(run)
    replies = keep_replies(calm)
    calm.play()
    without = Server(start(run).federation)
    without.receive(0, [reply for reply in replies if reply.client != 1])

    rounds = start(run, Spoiled(spoil, [1]))
    rounds.play()
    assert bits(rounds.server.state) == bits(without.state)
    assert bits(rounds.server.state) != bits(calm.server.state)
    rounds.play()
    result = rounds.result(0.0)
    assert result.metrics["clients_left_out"] == 1
    assert result.history["left_out"] == [1.0, 0.0]
    assert result.details["left_out"] == {"round 1, client 1": sentence}
    assert result.metrics["never_sampled"] == 0


@pytest.mark.parametrize("method", ["fedbn", "silobn", "local_only", "fedap"])
def test_what_a_faulty_client_kept_before_is_what_it_goes_on_with(method: str) -> None:
    """NaN in a part that stays at home reaches no server, and must not stay for ever either."""
    spoil = FAULTS["nan statistics"][0]
    rounds = start(small_run(method=method, rounds=3), Spoiled(spoil, [1], rounds=[1]))
    rounds.play()
    before = bits(rounds.network.client_states([1])[1])
    rounds.play()
    assert bits(rounds.network.client_states([1])[1]) == before
    assert list(rounds.log.left_out) == ["round 2, client 1"]
    rounds.play()
    assert bits(rounds.network.client_states([1])[1]) != before
    metrics = rounds.result(0.0).metrics
    assert metrics["clients_left_out"] == 1
    assert all(torch.tensor(value).isfinite() for value in metrics.values())


def test_a_control_of_a_faulty_client_moves_no_other() -> None:
    rounds = start(small_run(algorithm="scaffold"), Spoiled(FAULTS["nan weight"][0], [0, 2], rounds=[1]))
    for _ in range(2):
        enough = replace(rounds.federation.world, enough=0.3)
        rounds.federation.world = enough
        rounds.play()
    kept = rounds.network.client_states([0, 1, 2])
    for name, value in rounds.server.memory["control"].items():
        mean = torch.stack([kept[client][f"algorithm.{name}"] for client in range(3)]).mean(0)
        torch.testing.assert_close(value, mean, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold", "fedadam"])
def test_too_few_clients_stop_the_run_and_leave_the_server_as_it_was(algorithm: str) -> None:
    rounds = start(small_run(algorithm=algorithm, enough=0.5), Spoiled(FAULTS["error"][0], [0, 2], rounds=[1]))
    rounds.play()
    server = rounds.server
    before = [bits(part) for part in (server.state, *server.memory.values())]
    with pytest.raises(UserError) as caught:
        rounds.play()
    assert str(caught.value) == (
        "round 2: 2 of 3 clients gave no usable update, and enough is 0.5 (client 0: RuntimeError: no more power) "
        "Lower optim.lr if training diverges, or lower enough."
    )
    assert [bits(part) for part in (server.state, *server.memory.values())] == before
    assert rounds.next == 1


def test_enough_is_a_fraction_of_the_rounds_clients() -> None:
    for enough, stops in ((0.0, False), (1 / 3, False), (0.34, True), (1.0, True)):
        rounds = start(small_run(enough=enough), Spoiled(FAULTS["error"][0], [0, 2]))
        if stops:
            with pytest.raises(UserError, match="2 of 3 clients gave no usable update"):
                rounds.play()
        else:
            rounds.play()
    rounds = start(small_run(enough=0.0), Spoiled(FAULTS["error"][0], [0, 1, 2]))
    with pytest.raises(UserError, match="3 of 3 clients gave no usable update"):
        rounds.play()


class Fragile(nn.Module):
    """Raises for an image that is not finite, as a model with an assertion of its own would."""

    def __init__(self, in_channels: int, classes: int, strict: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(in_channels, 3, 3), nn.BatchNorm2d(3), nn.ReLU())
        self.head = nn.Linear(3, classes)
        self.strict = strict

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes)."""
        if self.strict and not x.isfinite().all():
            raise RuntimeError("this image is broken")
        logits: Tensor = self.head(self.body(x).mean((2, 3)))
        return logits


@pytest.mark.filterwarnings("ignore:the clients could not train in one batched step")
@pytest.mark.parametrize("engine", ["loop", "cohort"])
@pytest.mark.parametrize("strict", [True, False])
def test_a_client_whose_data_break_the_model_fails_alone(
    engine: str, strict: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("a_fragile_package")
    module.net = Fragile  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_fragile_package", module)
    run = replace(small_run(model="a_fragile_package:net", engine=engine), model_options={"strict": strict})
    calm = start(run)
    replies = keep_replies(calm)
    calm.play()
    without = Server(start(run).federation)
    without.receive(0, [reply for reply in replies if reply.client != 1])

    rounds = start(run)
    population = rounds.federation.population
    broken = population.x.clone()
    broken[population.train(1)[7]] = torch.nan
    rounds.federation.population = replace(population, x=broken)
    rounds.play()
    assert_same(rounds.server.state, without.state)
    (where, why), *others = rounds.log.left_out.items()
    assert not others
    assert where == "round 1, client 1"
    expected = "RuntimeError: this image is broken" if strict else "after training 'body.0.weight' has values"
    assert why.startswith(expected)


def test_a_client_that_raises_before_it_trains_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under hbn a pass over a client's data comes before its training."""
    module = ModuleType("a_fragile_package")
    module.net = Fragile  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_fragile_package", module)
    run = replace(small_run(model="a_fragile_package:net", method="hbn"), model_options={"strict": True})
    rounds = start(run)
    population = rounds.federation.population
    broken = population.x.clone()
    broken[population.train(1)[7]] = torch.nan
    rounds.federation.population = replace(population, x=broken)
    rounds.play()
    assert rounds.log.left_out == {"round 1, client 1": "RuntimeError: this image is broken"}


def test_a_client_without_a_batch_is_idle_and_no_fault() -> None:
    """Sizes by Dirichlet: one client has a single sample, which no batch of two can be made of."""
    rounds = play(small_run(count=4, seed=3, skew="quantity", rounds=2))
    sizes = [len(rounds.federation.schedule.samples(client)) for client in range(4)]
    assert sizes.count(1) == 1
    result = rounds.result(0.0)
    assert result.metrics["idle"] == 2
    assert result.metrics["clients_left_out"] == 0
    assert result.metrics["never_sampled"] == 1
    assert len(result.details["accuracy_by_client"]) == 4


def test_a_round_without_a_single_batch_says_what_to_change() -> None:
    run = small_run(count=60, batch=16, min_batch=16)
    with pytest.raises(UserError) as caught:
        play(run)
    assert str(caught.value) == (
        "round 1: none of its 60 clients has a batch of 16 samples or more: lower min_batch, set small_batch to "
        "use_running, or use fewer clients."
    )


def test_replies_count_in_the_order_of_clients_whatever_order_they_come_in() -> None:
    rounds = start(small_run(skew="shards"))
    replies = keep_replies(rounds)
    rounds.play()
    other = Server(start(small_run(skew="shards")).federation)
    received = other.receive(0, replies[::-1])
    assert received.used == [0, 1, 2]
    assert bits(other.state) == bits(rounds.server.state)
