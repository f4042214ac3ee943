"""Runs with hostile clients: what they send, how far it gets, and what is said of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import State, assert_same, bits, play, small_run, start
from torch import Tensor

import syncnorm
from syncnorm.errors import UserError
from syncnorm.federated import ATTACKS, aggregate, simulate
from syncnorm.federated.attacks import attacked, hostile_clients
from syncnorm.federated.engines.engine import AutoEngine
from syncnorm.federated.messages import Reply
from syncnorm.federated.server.rounds import Rounds
from syncnorm.federated.server.server import Server
from syncnorm.moments import Moments

THIRD: dict[str, Any] = {"count": 6, "hostile": 1 / 3, "method": "fedavg_pooled"}


def replies_of(rounds: Rounds) -> list[Reply]:
    """Return what the clients of the next round send."""
    cohort = rounds.federation.schedule.cohort(rounds.next)
    return rounds.network.train(cohort, rounds.broadcast)


def test_hostile_clients_are_drawn_by_the_seed() -> None:
    drawn = [hostile_clients(small_run(count=12, hostile=1 / 3, seed=seed)) for seed in range(20)]
    assert {len(one) for one in drawn} == {4}
    assert len(set(drawn)) > 1
    assert set().union(*drawn) == set(range(12))
    assert hostile_clients(small_run(count=12)) == frozenset()


CHANGES: dict[str, Any] = {
    "scaled": lambda name, before, after: before + 1e6 * (after - before),
    "flipped": lambda name, before, after: 2 * before - after,
    "reversed_tenfold": lambda name, before, after: 11 * before - 10 * after,
    "huge_variance": lambda name, before, after: after * 0 + 1e30 if name.endswith("_var") else after,
    "tiny_variance": lambda name, before, after: after * 0 + 1e-30 if name.endswith("_var") else after,
    "huge_mean": lambda name, before, after: after * 0 + 1e15 if name.endswith("_mean") else after,
    "many_samples": lambda name, before, after: 2 * before - after,
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_hostile_clients_send(attack: str) -> None:
    calm, rounds = start(small_run(count=6)), start(small_run(count=6, hostile=1 / 3, attack=attack))
    before = {name: value.clone() for name, value in calm.server.state.items()}
    hostile = rounds.federation.hostile
    for honest, sent in zip(replies_of(calm), replies_of(rounds), strict=True):
        assert sent.samples == (10**9 if attack == "many_samples" and sent.client in hostile else honest.samples)
        if sent.client not in hostile:
            assert bits(sent.state) == bits(honest.state)
            continue
        assert bits(sent.state) != bits(honest.state)
        for name, value in sent.state.items():
            assert value.dtype == honest.state[name].dtype
            if name.endswith("_var"):
                assert value.ge(0).all()
            if name.endswith("tracked"):
                assert int(value) == (2**63 - 1 if attack == "counters" else int(honest.state[name]))
            elif attack in CHANGES:
                expected = CHANGES[attack](name, before[name], honest.state[name])
                expected = expected.abs() if name.endswith("_var") else expected
                torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "attack", ["scaled", "flipped", "huge_variance", "tiny_variance", "huge_mean", "many_samples"]
)
def test_the_server_takes_the_median_of_what_is_sent(attack: str) -> None:
    rounds = start(small_run(aggregation="median", attack=attack, skew="shards", **THIRD))
    model = rounds.federation.models.build()
    model.load_state_dict(rounds.server.state)
    replies = replies_of(rounds)
    expected = aggregate(model, [reply.state for reply in replies], [1.0] * 6, "fedavg_pooled", aggregation="median")
    rounds.play()
    assert bits(rounds.server.state) == bits(expected)
    honest = [reply.state for reply in replies if reply.client not in rounds.federation.hostile]
    for name in rounds.federation.layout.shared_parameters:
        low, high = (getattr(torch.stack([state[name] for state in honest]), side)(0) for side in ("amin", "amax"))
        assert (low <= rounds.server.state[name]).all()
        assert (rounds.server.state[name] <= high).all()


@pytest.mark.parametrize("aggregation", ["median", "trimmed", "clipped", "krum"])
@pytest.mark.parametrize("world", [{}, {"algorithm": "fedadam"}, {"method": "silobn"}, {"method": "fbn"}])
def test_both_engines_give_the_same_model(aggregation: str, world: dict[str, Any]) -> None:
    run = small_run(aggregation=aggregation, attack="reversed_tenfold", **{**THIRD, **world})
    loop, cohort = (play(run, engine=AutoEngine(engine)) for engine in ("loop", "cohort"))
    assert_same(cohort.server.state, loop.server.state)


def test_counters_that_would_overflow_are_left_out_and_named() -> None:
    rounds = play(small_run(attack="counters", **THIRD), rounds=1)
    assert rounds.log.counts["clients_left_out"] == 2
    for client in rounds.federation.hostile:
        assert rounds.log.left_out[f"round 1, client {client}"] == (
            f"client {client} sent 'features.1.num_batches_tracked' below 0 or above 2^53, "
            "which is no count of batches."
        )


@pytest.mark.parametrize("method", ["sbn", "hbn"])
@pytest.mark.parametrize("attack", ["huge_variance", "huge_mean", "scaled"])
def test_a_pass_over_the_data_is_combined_alike(method: str, attack: str) -> None:
    """Statistics of a pass are those of honest clients up to their spread; the plain pool is anywhere."""
    honest, bounded, plain = (
        play(small_run(count=6, method=method, rounds=1, **world)) for world in ({}, {"aggregation": "median"}, {})
    )
    for rounds, hostile in ((bounded, 1 / 3), (plain, 1 / 3)):
        world = replace(rounds.federation.world, hostile=hostile, attack=attack)
        rounds.federation.run = replace(rounds.federation.run, world=world)
        rounds.federation.hostile = hostile_clients(rounds.federation.run)
    for rounds in (honest, bounded, plain):
        rounds.evaluator.gather(1)
    for name, value in honest.server.state.items():
        if name.endswith("running_var"):
            assert bounded.server.state[name].max() < 10 * value.max()
            assert plain.server.state[name].max() > 1e5 * value.max()


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda m: Moments(m.count, m.mean * torch.nan, m.m2), "moments that are not finite."),
        (lambda m: Moments(m.count, m.mean, -m.m2 - 1), "a count or a variance that is negative or too large."),
        (lambda m: Moments(m.count * 1e30, m.mean, m.m2), "a count or a variance that is negative or too large."),
        (lambda m: Moments(m.count, m.mean[:1], m.m2[:1]), "no moments for 'features.1.running_mean'."),
    ],
)
def test_an_answer_to_a_pass_that_is_none_is_left_out_and_named(spoil: Any, why: str) -> None:
    rounds = play(small_run(method="sbn"))
    without = play(small_run(method="sbn"))
    answers = rounds.network.measure([0, 1, 2], rounds.broadcast)
    spoiled = {layer: spoil(moments) for layer, moments in answers[1].items()}
    rounds.network.measure = lambda clients, to: [answers[0], spoiled, answers[2]]  # type: ignore[method-assign]
    without.network.measure = lambda clients, to: [answers[0], answers[2]]  # type: ignore[method-assign]
    for one in (rounds, without):
        one.evaluator.gather(2)
    assert bits(rounds.server.state) == bits(without.server.state)
    assert rounds.log.left_out == {"pass after round 2, answer 2": f"sent {why}"}
    assert rounds.log.counts["clients_left_out"] == 1


def test_what_hostile_clients_keep_is_honest() -> None:
    calm = play(small_run(count=6, method="silobn", rounds=1))
    rounds = play(small_run(count=6, method="silobn", rounds=1, hostile=0.5, attack="noise"))
    kept, expected = (one.network.client_states(range(6)) for one in (rounds, calm))
    assert all(bits(kept[client]) == bits(expected[client]) for client in range(6))


def test_a_loss_or_a_number_of_samples_that_is_none_leaves_a_client_out() -> None:
    rounds = start(small_run(skew="shards"))
    replies = replies_of(rounds)
    for spoiled, why in (
        (replace(replies[1], loss=float("nan")), "client 1 sent the loss nan, which is not finite."),
        (replace(replies[1], samples=-1), "client 1 says that it has -1 samples, which is no count."),
        (replace(replies[1], samples=10**30), f"client 1 says that it has {10**30} samples, which is no count."),
    ):
        server = Server(rounds.federation)
        received = server.receive(0, [replies[0], spoiled, replies[2]])
        assert received.left_out == {1: why}
        assert torch.tensor(received.loss).isfinite()


def test_a_step_of_the_server_that_is_not_finite_changes_nothing() -> None:
    """Each client's control is finite, and their sum is not."""
    rounds = start(small_run(algorithm="scaffold"))
    replies = replies_of(rounds)
    far = [replace(one, extra={n: torch.full_like(v, 1e308) for n, v in one.extra.items()}) for one in replies]
    server = rounds.server
    before = bits(server.state), bits(server.memory["control"])
    with pytest.raises(UserError, match="round 1: algorithm scaffold would remember values that are not finite"):
        server.receive(0, far)
    assert (bits(server.state), bits(server.memory["control"])) == before


# -- counts


@pytest.mark.parametrize("method", ["fedavg", "fedavg_pooled", "fedbn", "silobn", "fbn"])
def test_without_counts_nothing_tells_how_many_samples_a_client_has(method: str) -> None:
    world: dict[str, Any] = {"method": method, "weighting": "uniform", "skew": "dirichlet_by_class", "alpha": 0.5}
    counted, rounds = start(small_run(**world)), start(small_run(send_counts=False, **world))
    with_counts, without = replies_of(counted), replies_of(rounds)
    assert len({reply.samples for reply in with_counts}) > 1
    for reply, other in zip(without, with_counts, strict=True):
        assert (reply.samples, reply.small_batches) == (0, 0)
        assert not any(value.dtype is torch.int64 for value in reply.state.values())
        assert {name for name in other.state if not name.endswith("tracked")} == reply.state.keys()
    for one in (counted, rounds):
        one.play(), one.play()
    for name, value in rounds.server.state.items():
        if name.endswith("tracked"):
            assert int(value) == 0
        else:
            assert torch.equal(value, counted.server.state[name])


@pytest.mark.parametrize(
    ("world", "sentence"),
    [
        (
            {"send_counts": False},
            "send_counts is False, and weighting samples needs counts: set weighting to uniform.",
        ),
        (
            {"send_counts": False, "weighting": "uniform", "method": "sbn"},
            "method sbn merges moments by their counts",
        ),
        ({"hostile": 1.5}, "hostile is 1.5: it is a fraction of the clients, from 0 to 1."),
        ({"hostile": 0.01}, "hostile is 0.01 of 3 clients, which is none: raise it, or set it to 0."),
        ({"aggregation": "krum", "count": 5, "participation": 0.4}, "and a round has 2 of 5 clients: raise"),
        ({"hostile": 0.5, "attack": "fliped"}, "unknown world.attack 'fliped': did you mean 'flipped'"),
        ({"aggregation": "medain"}, "unknown aggregation 'medain': did you mean 'median'"),
        ({"aggregation": "median", "aggregation_options": {"trim": 0.2}}, "the aggregation median takes no options"),
        ({"aggregation": "trimmed", "aggregation_options": {"trim": 0.5}}, "must be from 0 to below 0.5"),
        ({"aggregation": "clipped", "aggregation_options": {"ratio": 0.5}}, "must be at least 1"),
        ({"aggregation": "median", "method": "fedap"}, "with method fedap they do not average one model"),
        ({"aggregation": "median", "method": "local_only"}, "with method local_only they do not average one model"),
        ({"aggregation": "median", "method": "fedtan", "engine": "cohort"}, "exchange statistics inside a step"),
        ({"aggregation": "median", "algorithm": "scaffold"}, "algorithm scaffold adds up what clients send beside"),
    ],
)
def test_mistakes_get_a_sentence(world: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        start(small_run(**world))
    assert sentence in str(caught.value)


@pytest.mark.usefixtures("registries")
def test_an_attack_of_ones_own_reaches_a_run() -> None:
    @syncnorm.register_attack("zeros")
    def zeros(reply: Reply, received: State, generator: torch.Generator) -> Reply:
        """Send zeros."""
        return replace(reply, state={name: 0 * value for name, value in reply.state.items()})

    result = simulate(small_run(hostile=1.0, attack="zeros", rounds=1))
    assert result.metrics["global_loss"] == pytest.approx(torch.tensor(10.0).log().item())
    with pytest.raises(UserError, match="attack 'other' is 3: make it a function of"):
        syncnorm.register_attack("other")(3)  # type: ignore[type-var]


def test_noise_is_drawn_by_seed_round_and_client() -> None:
    run, state = small_run(hostile=1.0, attack="noise"), {"weight": torch.zeros(50).double()}

    def sent(round_: int, client: int, run: Any = run) -> Tensor:
        return attacked(run, round_, Reply(client, state), state).state["weight"]

    assert torch.equal(sent(0, 0), sent(0, 0))
    drawn = [sent(0, 0), sent(1, 0), sent(0, 1), sent(0, 0, replace(run, seed=1))]
    assert all(not torch.equal(one, other) for at, one in enumerate(drawn) for other in drawn[:at])
    assert 0.7 < drawn[0].std() < 1.3


def test_fuzzed_replies_leave_a_finite_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The short form of `python benchmarks/hostile.py --part 2`."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    from fuzzed import campaign

    ends = campaign(200, seed=1)
    assert ends["replies"] == 200
    assert min(ends["left out"], ends["used"]) > 20
