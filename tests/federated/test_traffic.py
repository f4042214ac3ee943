"""What leaves a client and what a client gets, entry by entry and byte by byte, against a table written out here."""

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from small_runs import (
    PLAIN,
    assert_same,
    batches_of,
    bits,
    by_hand,
    fresh_model,
    play,
    small_run,
    start,
    weighted_mean,
)
from torch import Tensor, nn

from syncnorm.federated.client.client import finish, section
from syncnorm.federated.client.client import start as start_client
from syncnorm.federated.engines.engine import AutoEngine
from syncnorm.federated.messages import Broadcast, Reply
from syncnorm.federated.policies import POLICIES, shared_bytes
from syncnorm.norms import FrozenBatchNorm

WEIGHTS = {"stem.weight", "stem.bias", "downsample.0.weight", "head.weight", "head.bias"}
AFFINE = {f"{layer}.{part}" for layer in ("norm1", "again", "downsample.1") for part in ("weight", "bias")}
RUNNING = {
    f"{layer}.{part}" for layer in ("norm1", "again", "downsample.1") for part in ("running_mean", "running_var")
}
COUNTER = {f"{layer}.num_batches_tracked" for layer in ("norm1", "again", "downsample.1")}
MIX = {f"{layer}.mix" for layer in ("norm1", "again", "downsample.1")}
ALL = WEIGHTS | AFFINE | RUNNING | COUNTER

REPLIES = {
    "fedavg": ALL,
    "fedavg_pooled": ALL,
    "fedbn": WEIGHTS,
    "silobn": WEIGHTS | AFFINE,
    "stats_shared": WEIGHTS | RUNNING | COUNTER,
    "fixbn": ALL,
    "fedtan": ALL,
    "sbn": WEIGHTS | AFFINE,
    "fbn": ALL,
    "hbn": ALL,
    "fedap": WEIGHTS | RUNNING,
    "local_only": set(),
    "centralised": ALL,
}
KEPT = {
    "fedbn": AFFINE | RUNNING | COUNTER,
    "silobn": RUNNING | COUNTER,
    "stats_shared": AFFINE,
    "hbn": MIX,
    "fedap": AFFINE | RUNNING | COUNTER,
    "local_only": ALL,
}


class Net(nn.Module):
    """Names that say nothing of batch norm, and one layer under two names, used twice."""

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 4, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(4)
        self.again = self.norm1
        self.downsample = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes)."""
        h = self.norm1(self.stem(x)).relu()
        h = self.again(h + self.downsample(h)).relu()
        logits: Tensor = self.head(h.mean((2, 3)))
        return logits


@pytest.fixture(autouse=True)
def _package(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("a_users_package")
    module.net = Net  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_users_package", module)


def run_of(method: str, **world: Any) -> Any:
    engine = "cohort" if method == "fedtan" else "loop"
    return small_run(model="a_users_package:net", method=method, **{"engine": engine, **world})


class Watched:
    """A network that keeps what went through it."""

    def __init__(self, rounds: Any) -> None:
        self.broadcasts: dict[int, Broadcast] = {}
        self.replies: list[Reply] = []
        inner = rounds.network.train

        def train(clients: Any, to: Any) -> list[Reply]:
            self.broadcasts = {client: to(client) for client in clients}
            self.replies = inner(clients, to)
            return self.replies

        rounds.network.train = train


def test_every_policy_is_in_the_table() -> None:
    assert REPLIES.keys() == POLICIES.keys()


@pytest.mark.parametrize("method", POLICIES)
def test_messages_hold_what_the_row_says_by_type_of_layer(method: str) -> None:
    rounds = start(run_of(method))
    watched = Watched(rounds)
    for _ in range(2):
        rounds.play()
    clients = [0] if method == "centralised" else [0, 1, 2]
    assert [reply.client for reply in watched.replies] == clients
    everything = ALL | (MIX if method == "hbn" else set())
    for reply in watched.replies:
        assert reply.error == ""
        assert set(reply.state) == REPLIES[method]
    for client, broadcast in watched.broadcasts.items():
        kept = KEPT.get(method, set())
        unused = RUNNING | COUNTER if method == "sbn" else set()  # no training looks at them
        assert set(broadcast.state) == everything - kept - unused, client
        own = rounds.network.states.get(client)
        assert set(section(own or {}, "state")) == kept


@pytest.mark.parametrize("method", POLICIES)
def test_traffic_is_counted_to_the_byte(method: str) -> None:
    rounds = start(run_of(method))
    watched = Watched(rounds)
    rounds.play()
    up = sum(value.numel() * value.element_size() for reply in watched.replies for value in reply.state.values())
    down = sum(
        value.numel() * value.element_size() for sent in watched.broadcasts.values() for value in sent.state.values()
    )
    # FedTAN: mean, variance, and a gradient for each, of the 4 channels of each use of a layer.
    inside = 3 * 3 * 4 * 4 * 8 if method == "fedtan" else 0
    assert rounds.log.counts["bytes_up"] == up + inside
    assert rounds.log.counts["bytes_down"] == down + inside
    assert up == len(watched.replies) * shared_bytes(rounds.federation.models.template, method)


@pytest.mark.parametrize("method", ["fedavg", "fedbn", "hbn", "stats_shared"])
def test_scaffold_sends_a_control_for_every_averaged_parameter_and_nothing_else(method: str) -> None:
    rounds = start(run_of(method, algorithm="scaffold"))
    watched = Watched(rounds)
    rounds.play()
    trained = WEIGHTS | (AFFINE - {"again.weight", "again.bias"})
    expected = trained - KEPT.get(method, set())
    numbers = {name: rounds.server.state[name].numel() for name in expected}
    for reply in watched.replies:
        assert set(reply.extra) == expected
    assert set(rounds.server.memory["control"]) == expected
    plain = shared_bytes(rounds.federation.models.template, method)
    assert rounds.log.counts["bytes_up"] == 3 * (plain + 8 * sum(numbers.values()))
    assert set(section(rounds.network.states.get(1), "algorithm")) == expected


@pytest.mark.parametrize("method", sorted(POLICIES.keys() - {"centralised", "fedtan"}))
@pytest.mark.parametrize("engine", ["loop", "cohort"])
def test_what_a_client_does_with_its_own_touches_nobody_else(method: str, engine: str) -> None:
    """Perturb what client 0 keeps: client 1, the template and what all were built from stay as they were."""
    calm, spoiled = (play(run_of(method, engine=engine), rounds=1) for _ in range(2))
    own = spoiled.network.states.get(0)
    if own is not None:
        for name, value in own.items():
            if value.is_floating_point():
                value.add_(3.0) if name.endswith("running_var") else value.mul_(-2.0)
    first = bits(fresh_model(spoiled).state_dict())
    assert bits(spoiled.federation.models.template.state_dict()) == first
    results = []
    for rounds in (calm, spoiled):
        federation = rounds.federation
        started = start_client(federation, 1, rounds.broadcast(1), rounds.network.states.get(1))
        pool, local = federation.population, federation.local(1)
        (update,) = AutoEngine(engine).train(local, pool.x, pool.y, [started.task])
        reply, kept = finish(federation, started, update)
        (score,) = rounds.network.score([1], rounds.broadcast, {})
        results.append((bits(reply.state), bits(kept or {}), score.accuracy, score.loss))
    assert results[0] == results[1]
    assert bits(calm.server.state) == bits(spoiled.server.state)
    assert bits(fresh_model(spoiled).state_dict()) == first
    if own is not None:
        spoiled.play()
        assert bits(section(spoiled.network.states.get(0) or {}, "state")) != bits(section(own, "state"))


@pytest.mark.parametrize("method", sorted(POLICIES))
def test_an_evaluated_sample_does_not_see_its_neighbours(method: str) -> None:
    rounds = play(run_of(method), rounds=2)
    federation = rounds.federation
    rounds.evaluator.gather(rounds.next)
    model = federation.models.with_state(rounds.network.model_state(0, rounds.broadcast, {}))
    x = federation.population.x[:20]
    with torch.no_grad():
        model.eval()
        together, flipped = model(x), model(x.flip(0)).flip(0)
        alone = torch.cat([model(one) for one in x.split(1)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(together, flipped, rtol=1e-12, atol=1e-12)


def test_frozen_layers_of_fixbn_hold_in_training_mode() -> None:
    rounds = start(run_of("fixbn", rounds=2, method_options={"frozen_from": 0.5}))
    frozen = rounds.federation.local(1).classifier.model.train()
    layers = [module for module in frozen.modules() if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm)]
    assert len(layers) == 2
    assert all(type(layer) is FrozenBatchNorm for layer in layers)


@pytest.mark.parametrize("algorithm", ["fedprox", "fedavgm", "fedadam"])
def test_other_algorithms_send_what_fedavg_sends(algorithm: str) -> None:
    counts = [play(run_of("fedavg", algorithm=name)).log.counts for name in ("fedavg", algorithm)]
    assert counts[0] == counts[1]
    assert PLAIN.momentum == 0


def test_aliases_of_one_layer_agree_after_a_server_optimiser() -> None:
    state = play(run_of("fedavg", algorithm="fedadam")).server.state
    for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(state[f"norm1.{part}"], state[f"again.{part}"]), part


class Tied(Net):
    """Two modules that hold one weight besides."""

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__(in_channels, classes)
        self.mirror = nn.Conv2d(4, 4, 1, bias=False)
        self.mirror.weight = self.downsample[0].weight

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes)."""
        h = self.again(self.norm1(self.stem(x)).relu())
        logits: Tensor = self.head(self.mirror(h + self.downsample(h)).mean((2, 3)))
        return logits


@pytest.mark.parametrize("engine", ["loop", "cohort"])
def test_tied_weights_and_a_layer_under_two_names_train_as_in_a_plain_loop(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["a_users_package"], "net", Tied)
    rounds = play(run_of("fedavg", engine=engine, count=2))
    x, y = rounds.federation.population.x, rounds.federation.population.y
    state = fresh_model(rounds).state_dict()
    for round_ in range(2):
        models = [fresh_model(rounds, state) for _ in range(2)]
        for client, model in enumerate(models):
            by_hand(model, x, y, batches_of(rounds, client, round_), 0.1)
        state = weighted_mean([model.state_dict() for model in models], [1, 1])
    assert_same(rounds.server.state, state)
    assert torch.equal(rounds.server.state["mirror.weight"], rounds.server.state["downsample.0.weight"])
