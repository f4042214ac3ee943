"""SCAFFOLD and the server's optimisers, against their papers' formulas written out in float64."""

from dataclasses import replace
from itertools import product
from math import cos, pi
from typing import Any

import pytest
import torch
from small_runs import (
    PLAIN,
    STATISTICS,
    State,
    assert_same,
    batches_of,
    bits,
    by_hand,
    fresh_model,
    is_affine,
    is_statistics,
    play,
    small_run,
    start,
    weighted_mean,
)
from torch import Tensor

from syncnorm.federated.algorithms.base import Algorithm
from syncnorm.federated.algorithms.fedavg import FedAvg
from syncnorm.federated.algorithms.fedprox import FedProx
from syncnorm.federated.algorithms.fedtan import FedTAN
from syncnorm.federated.algorithms.scaffold import Scaffold
from syncnorm.federated.algorithms.together import Together
from syncnorm.federated.client.client import section
from syncnorm.federated.client.states import InMemory
from syncnorm.federated.engines.engine import AutoEngine
from syncnorm.federated.federation import Federation
from syncnorm.federated.messages import Reply
from syncnorm.federated.policies import SENT
from syncnorm.federated.server.network import InProcess
from syncnorm.federated.server.rounds import Rounds
from syncnorm.federated.server.server import Server

ENGINES = pytest.mark.parametrize("engine", ["loop", "cohort"])


@ENGINES
@pytest.mark.parametrize(
    "world",
    [
        {},
        {"participation": 0.5},
        {"local_steps": 3},
        {"participation": 0.5, "weighting": "uniform", "skew": "quantity", "skew_options": {"min_size": 5}},
    ],
)
def test_scaffold_is_option_two_of_the_paper(engine: str, world: dict[str, Any]) -> None:
    """y - lr (g - c_k + c); c_k+ = c_k - c + (w - y) / (K lr); c + sum_S (c_k+ - c_k) / N."""
    optim = replace(PLAIN, schedule="cosine", weight_decay=0.01)
    rounds = start(small_run(algorithm="scaffold", engine=engine, count=4, rounds=4, seed=3, optim=optim, **world))
    x, y = rounds.federation.population.x, rounds.federation.population.y
    state = fresh_model(rounds).state_dict()
    names = [name for name, _ in fresh_model(rounds).named_parameters()]
    c: State = {name: torch.zeros_like(state[name]) for name in names}
    own = [dict(c) for _ in range(4)]
    sampled = set()
    for round_ in range(4):
        rate = 0.1 * (1 + cos(pi * round_ / 4)) / 2
        clients = rounds.federation.schedule.cohort(round_)
        sampled |= set(clients)
        states, weights = [], []
        moved: State = {name: torch.zeros_like(value) for name, value in c.items()}
        for k in clients:
            model = fresh_model(rounds, state)
            batches = batches_of(rounds, k, round_)
            correction = {name: c[name] - own[k][name] for name in names}
            by_hand(model, x, y, batches, rate, decay=0.01, correction=correction)
            trained = model.state_dict()
            new = {
                name: own[k][name] - c[name] + (state[name] - trained[name]) / (len(batches) * rate) for name in names
            }
            moved = {name: moved[name] + new[name] - own[k][name] for name in names}
            own[k] = new
            states.append(trained)
            weights.append(1 if "weighting" in world else len(rounds.federation.schedule.samples(k)))
        state = weighted_mean(states, weights)
        c = {name: c[name] + moved[name] / 4 for name in names}
        rounds.play()
        assert_same(rounds.server.state, state)
        assert_same(rounds.server.memory["control"], c)
        for k in clients:
            assert_same(section(rounds.network.client_states([k])[k], "algorithm"), own[k])
    assert sampled == {0, 1, 2, 3}
    mean = {name: torch.stack([mine[name] for mine in own]).mean(0) for name in names}
    assert_same(c, mean)  # the paper's invariant


@ENGINES
def test_controls_of_a_personal_policy_are_those_of_what_is_averaged(engine: str) -> None:
    rounds = play(small_run(method="fedbn", algorithm="scaffold", engine=engine))
    assert rounds.server.memory["control"].keys() == {
        name for name in rounds.server.state if not is_affine(name) and not is_statistics(name)
    }
    alone = play(small_run(method="fedbn", algorithm="scaffold", engine=engine, rounds=1))
    plain = play(small_run(method="fedbn", engine=engine, rounds=1))
    assert_same(alone.server.state, plain.server.state)  # the first controls are zero
    second = play(small_run(method="fedbn", engine=engine))
    assert not torch.allclose(rounds.server.state["classifier.weight"], second.server.state["classifier.weight"])


def replies_of(rounds: Rounds, round_: int) -> list[Reply]:
    """Return replies of random values, the same for every server that the run may have."""
    generator = torch.Generator().manual_seed(round_)
    replies = []
    for client in range(3):
        state = {
            name: torch.rand(value.shape, generator=generator, dtype=torch.float64)
            if value.is_floating_point()
            else torch.tensor(round_ + client)
            for name, value in rounds.server.state.items()
            if rounds.federation.layout.reductions[name] in SENT
        }
        replies.append(Reply(client, state, samples=10 * (client + 1)))
    return replies


def servers(algorithm: str, options: dict[str, float], method: str) -> tuple[Rounds, list[tuple[State, State]]]:
    """Return a run, and its server's states beside FedAvg's, which gets the same replies, after each of 3 rounds."""
    plain = start(small_run(method=method))
    rounds = start(small_run(algorithm=algorithm, algorithm_options=options, method=method))
    pairs = []
    for round_ in range(3):
        replies = replies_of(plain, round_)
        # FedAvg's average is what the change is measured against; its own state is what the last round made.
        for run in (plain, rounds):
            run.server.receive(round_, replies)
        pairs.append((rounds.server.state, plain.server.state))
    return rounds, pairs


@pytest.mark.parametrize("options", [{}, {"lr": 0.5, "momentum": 0.3}])
def test_fedavgm_is_momentum_on_the_mean_change(options: dict[str, float]) -> None:
    rounds, pairs = servers("fedavgm", options, "fedavg")
    rate, momentum = options.get("lr", 1.0), options.get("momentum", 0.9)
    for name, value in fresh_model(rounds).named_parameters():
        w, v = value.detach().clone(), torch.zeros_like(value)
        for found, average in pairs:
            v = momentum * v + (average[name] - w)
            w = w + rate * v
            torch.testing.assert_close(found[name], w, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("options", [{}, {"lr": 0.01, "beta1": 0.5, "beta2": 0.8, "tau": 0.1}])
def test_fedadam_is_algorithm_two_of_the_paper(options: dict[str, float]) -> None:
    rounds, pairs = servers("fedadam", options, "fedavg")
    rate, tau = options.get("lr", 0.1), options.get("tau", 1e-3)
    beta1, beta2 = options.get("beta1", 0.9), options.get("beta2", 0.99)
    for name, value in fresh_model(rounds).named_parameters():
        w, m, v = value.detach().clone(), torch.zeros_like(value), torch.zeros_like(value)
        for found, average in pairs:
            change = average[name] - w
            m, v = beta1 * m + (1 - beta1) * change, beta2 * v + (1 - beta2) * change**2
            w = w + rate * m / (v.sqrt() + tau)
            torch.testing.assert_close(found[name], w, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("algorithm", ["fedavgm", "fedadam"])
@pytest.mark.parametrize("method", ["fedavg", "fedavg_pooled", "stats_shared", "fbn", "fedbn"])
def test_server_optimisers_leave_buffers_as_fedavg_makes_them(algorithm: str, method: str) -> None:
    _, pairs = servers(algorithm, {"lr": 0.5}, method)
    for round_, (found, average) in enumerate(pairs):
        buffers = [name for name in found if is_statistics(name)]
        assert len(buffers) == 9
        assert bits({name: found[name] for name in buffers}) == bits({name: average[name] for name in buffers})
        counter = found["features.1.num_batches_tracked"]
        assert counter.dtype == torch.int64
        assert counter == (0 if method == "fedbn" else round_ + 2)
        assert all(found[name].min() >= 0 for name in buffers if name.endswith(STATISTICS[1]))
        own = [name for name in found if is_affine(name)]
        still = method in ("fedbn", "stats_shared")
        assert all((bits({"": found[name]}) == bits({"": average[name]})) == still for name in own)


def test_plain_momentum_without_momentum_is_fedavg() -> None:
    options = {"lr": 1.0, "momentum": 0.0}
    found = play(small_run(algorithm="fedavgm", algorithm_options=options)).server.state
    assert_same(found, play(small_run()).server.state)


def test_a_server_goes_on_from_what_it_remembers() -> None:
    for algorithm in ("fedavgm", "fedadam", "scaffold"):
        rounds = play(small_run(algorithm=algorithm), rounds=1)
        again = Server(rounds.federation)
        again.recall(rounds.server.remember())
        replies = replies_of(rounds, 5)
        if algorithm == "scaffold":
            control: dict[str, Tensor] = rounds.server.memory["control"]
            replies = [Reply(r.client, r.state, r.samples, extra=control) for r in replies]
        for server in (rounds.server, again):
            server.receive(1, replies)
        assert bits(rounds.server.state) == bits(again.state)
        assert rounds.server.memory.keys() == again.memory.keys()
        for part, tensors in rounds.server.memory.items():
            assert bits(tensors) == bits(again.memory[part])


BESIDE = [(FedAvg(), None), (None, FedProx({"mu": 0.0}))]


@pytest.mark.parametrize(("engine", "others"), [*product(["loop", "cohort"], BESIDE), ("cohort", (None, FedTAN()))])
def test_an_algorithm_beside_another_is_what_it_is_alone(
    engine: str, others: tuple[Algorithm | None, Algorithm | None]
) -> None:
    """What two algorithms send, keep and remember in one run is apart; FedTAN does nothing without batch norm."""
    run = small_run(algorithm="scaffold", engine=engine, norm="none", rounds=3)
    alone = play(run)
    federation = Federation(run, torch.device("cpu"))
    federation.algorithm = Together([Scaffold() if other is None else other for other in others])
    beside = Rounds(federation, InProcess(federation, InMemory(), AutoEngine(engine)))
    for _ in range(3):
        beside.play()
    assert_same(beside.server.state, alone.server.state)
    assert beside.log.counts == alone.log.counts
    plain = play(small_run(engine=engine, norm="none", rounds=3)).server.state
    assert not torch.allclose(plain["classifier.weight"], alone.server.state["classifier.weight"])
