"""What a run reports, against models that were put together and evaluated by hand."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_runs import (
    DATA,
    NORM_LAYERS,
    Spoiled,
    bits,
    is_affine,
    is_statistics,
    play,
    small_run,
    start,
    weighted_mean,
)
from torch import Tensor, nn

from syncnorm.federated.client.client import section
from syncnorm.federated.local import Update
from syncnorm.federated.messages import Broadcast
from syncnorm.federated.policies import POLICIES
from syncnorm.federated.server import evaluator as evaluator_module
from syncnorm.federated.server.rounds import Rounds

TWO_DOMAINS: dict[str, Any] = {
    "domains": ("digits", "digits-inverted"),
    "skew": "dirichlet_by_class",
    "alpha": 1.0,
    "count": 4,
}


def model_of(rounds: Rounds, state: Mapping[str, Tensor]) -> nn.Module:
    """Return a small_cnn with torch's own batch norms that has a state's entries."""
    model = start(small_run()).federation.models.build()
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    return model.eval()


def to_evaluate(rounds: Rounds) -> Callable[[int], Broadcast]:
    """Return what each client receives to evaluate."""
    return lambda client: rounds.evaluator.broadcast(rounds.next, client)


@torch.no_grad()
def by_class(rounds: Rounds, client: int, model: nn.Module) -> tuple[float, float]:
    """Return accuracy and loss at a client: each class of its domain's test set weighs what it weighs in training."""
    population = rounds.federation.population
    x, y, _ = population.test(client)
    own = np.bincount(population.y[population.train(client)].numpy(), minlength=10).astype(float)
    tested = np.bincount(y.numpy(), minlength=10)
    own[tested == 0] = 0
    weights = (own / own.sum() / np.maximum(tested, 1))[y.numpy()]
    logits = model(x)
    loss = F.cross_entropy(logits, y, reduction="none").numpy()
    return float(weights @ (logits.argmax(1) == y).double().numpy()), float(weights @ loss)


@torch.no_grad()
def entering(model: nn.Module, x: Tensor) -> dict[str, np.ndarray[Any, Any]]:
    """Return what enters each batch norm, (values, C), if all of `x` were one training batch."""
    seen: dict[str, np.ndarray[Any, Any]] = {}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: seen.update({name: inputs[0].movedim(1, -1).flatten(0, -2).numpy().copy()})
        )
        for name in NORM_LAYERS
    ]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()(x)
    model.load_state_dict(before)
    model.eval()
    for hook in hooks:
        hook.remove()
    return seen


def reestimated(rounds: Rounds, client: int, state: Mapping[str, Tensor]) -> float:
    """Return a client's accuracy with the statistics of its own training images."""
    population = rounds.federation.population
    model = model_of(rounds, state)
    for name, values in entering(model, population.x[population.train(client)]).items():
        layer = model.get_submodule(name)
        layer.running_mean.copy_(torch.from_numpy(values.mean(0)))
        layer.running_var.copy_(torch.from_numpy(values.var(0, ddof=1)))
    return by_class(rounds, client, model)[0]


def own_state(rounds: Rounds, client: int) -> dict[str, Tensor]:
    return {**rounds.server.state, **section(rounds.network.client_states([client]).get(client, {}), "state")}


def average_kept(rounds: Rounds, clients: list[int]) -> dict[str, Tensor]:
    """Return the mean over clients of what they keep, weighted by their samples; of counters the largest."""
    kept = [section(rounds.network.client_states([client])[client], "state") for client in clients]
    return weighted_mean(kept, [len(rounds.federation.schedule.samples(client)) for client in clients])


@pytest.mark.parametrize("method", ["fedavg", "fedbn", "silobn", "local_only"])
def test_the_summary_is_what_it_says(method: str) -> None:
    rounds = play(small_run(method=method, rounds=3, **TWO_DOMAINS))
    found = rounds.result(0.0)
    states = [own_state(rounds, client) for client in range(4)]
    scores = [by_class(rounds, client, model_of(rounds, state)) for client, state in enumerate(states)]
    accuracies, losses = np.array(scores).T
    sizes = np.array([len(rounds.federation.schedule.samples(client)) for client in range(4)])
    again = np.array([reestimated(rounds, client, state) for client, state in enumerate(states)])
    expected = {
        "accuracy": accuracies.mean(),
        "client_accuracy_worst": accuracies.min(),
        "client_accuracy_std": accuracies.std(ddof=1),
        "client_accuracy_weighted": (sizes * accuracies).sum() / sizes.sum(),
        "loss": losses.mean(),
        "accuracy_digits": accuracies[[0, 2]].mean(),
        "accuracy_digits-inverted": accuracies[[1, 3]].mean(),
        "reestimated_accuracy": again.mean(),
        "reestimated_accuracy_worst": again.min(),
        "batch_norms": 3.0,
        "never_sampled": 0.0,
        "staleness": 0.0,
    }
    assert {name: found.metrics[name] for name in expected} == pytest.approx(expected, rel=1e-9)
    assert found.details["accuracy_by_client"] == pytest.approx(dict(enumerate(accuracies)), rel=1e-9)
    assert len(set(accuracies)) > 1
    assert found.metrics["train_loss"] == found.history["train_loss"][-1]
    assert "round" not in found.metrics


def test_drift_is_the_distance_to_the_pooled_statistics() -> None:
    rounds = play(small_run(method="fedbn", **TWO_DOMAINS))
    details = rounds.result(0.0).details
    found = details["drift"]
    assert details["layers"]["features.9"] == {"type": "batch norm", "depth": 3, "channels": 8}
    population = rounds.federation.population
    seen = [
        entering(model_of(rounds, own_state(rounds, client)), population.x[population.train(client)])
        for client in range(4)
    ]
    assert found["layers"] == list(NORM_LAYERS)
    assert found["clients"] == [0, 1, 2, 3]
    for name, row in zip(NORM_LAYERS, found["values"], strict=True):
        union = np.concatenate([one[name] for one in seen])
        mean, deviation = union.mean(0), union.std(0)
        for value, one in zip(row, seen, strict=True):
            square = (one[name].mean(0) - mean) ** 2 + (one[name].std(0) - deviation) ** 2
            assert value == pytest.approx(np.sqrt((square / deviation**2).mean()), rel=1e-9)
    assert max(found["values"][0]) > 0.1  # inverted images are not like the others


@pytest.mark.parametrize("method", ["fedavg", "fedbn", "silobn", "stats_shared", "local_only"])
def test_a_site_never_seen_gets_averaged_batch_norm_and_its_own(method: str) -> None:
    world = {**TWO_DOMAINS, "held_out": 2}
    rounds = play(small_run(method=method, **world))
    metrics = rounds.result(0.0).metrics
    kept = average_kept(rounds, [0, 1, 2, 3]) if method != "fedavg" else {}
    state = {**rounds.server.state, **kept}
    expected = [by_class(rounds, client, model_of(rounds, state))[0] for client in (4, 5)]
    again = [reestimated(rounds, client, state) for client in (4, 5)]
    assert metrics["heldout_accuracy"] == pytest.approx(np.mean(expected), rel=1e-9)
    assert metrics["heldout_reestimated_accuracy"] == pytest.approx(np.mean(again), rel=1e-9)
    assert len(rounds.result(0.0).details["accuracy_by_client"]) == 4


@pytest.mark.parametrize("unsampled", ["initial", "average"])
@pytest.mark.parametrize("weighting", ["samples", "uniform"])
def test_a_client_that_was_never_sampled_has_first_or_averaged_batch_norm(unsampled: str, weighting: str) -> None:
    world = {**TWO_DOMAINS, "participation": 0.5, "unsampled": unsampled, "weighting": weighting}
    rounds = play(small_run(method="fedbn", seed=4, **world), rounds=1)
    sampled = rounds.federation.schedule.cohort(0)
    assert len(sampled) == 2
    result = rounds.result(0.0)
    assert result.metrics["never_sampled"] == 2
    kept = [section(own, "state") for own in rounds.network.client_states(sampled).values()]
    sizes = [len(rounds.federation.schedule.samples(client)) for client in sampled]
    assert sizes[0] != sizes[1]
    average = weighted_mean(kept, sizes if weighting == "samples" else [1, 1])
    for client in range(4):
        state = own_state(rounds, client)
        if client not in sampled and unsampled == "average":
            state |= average
        accuracy, _ = by_class(rounds, client, model_of(rounds, state))
        assert result.details["accuracy_by_client"][client] == pytest.approx(accuracy, rel=1e-9)


def test_staleness_is_the_rounds_since_a_client_was_last_seen() -> None:
    rounds = play(small_run(method="fedbn", count=5, participation=0.4, rounds=4, seed=2))
    last = {client: round_ for round_ in range(4) for client in rounds.federation.schedule.cohort(round_)}
    metrics = rounds.result(0.0).metrics
    assert metrics["never_sampled"] == 5 - len(last)
    assert metrics["staleness"] == pytest.approx(np.mean([3 - round_ for round_ in last.values()]))
    assert metrics["staleness"] > 0


@pytest.mark.parametrize("method", ["fedbn", "silobn", "stats_shared", "fedap", "local_only"])
def test_a_personal_method_has_a_global_model_only_by_a_rule_that_is_named(method: str) -> None:
    assert "global_accuracy" not in play(small_run(method=method)).result(0.0).metrics
    for rule in ("average", "pooled"):
        rounds = play(small_run(method=method, global_norm=rule, **TWO_DOMAINS))
        metrics = rounds.result(0.0).metrics
        state = {**rounds.server.state, **average_kept(rounds, [0, 1, 2, 3])}
        if rule == "pooled" and method != "stats_shared":
            kept = [section(rounds.network.client_states([client])[client], "state") for client in range(4)]
            sizes = np.array([len(rounds.federation.schedule.samples(client)) for client in range(4)])
            for name in NORM_LAYERS:
                mean = np.stack([one[f"{name}.running_mean"].numpy() for one in kept])
                var = np.stack([one[f"{name}.running_var"].numpy() for one in kept])
                p = sizes / sizes.sum()
                state[f"{name}.running_var"] = torch.from_numpy(p @ (var + (mean - p @ mean) ** 2))
        x, y = rounds.federation.population.global_test
        logits = model_of(rounds, state)(x)
        assert metrics["global_accuracy"] == pytest.approx((logits.argmax(1) == y).double().mean().item())
        assert metrics["global_loss"] == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-9)


@pytest.mark.parametrize(
    "method", sorted(POLICIES.keys() - {"fedbn", "silobn", "stats_shared", "fedap", "local_only"})
)
def test_other_methods_have_a_global_model(method: str) -> None:
    rounds = play(small_run(method=method, engine="cohort"))
    metrics = rounds.result(0.0).metrics
    x, y = rounds.federation.population.global_test
    logits = model_of(rounds, rounds.server.state)(x)
    assert metrics["global_accuracy"] == pytest.approx((logits.argmax(1) == y).double().mean().item())
    assert metrics["global_loss"] == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-9)


def test_a_result_says_whose_statistics_evaluate() -> None:
    found = {
        method: play(small_run(method=method, engine="cohort"), rounds=1).result(0.0).evaluated_by
        for method in POLICIES
    }
    assert found == {
        "fedavg": "averaged (clients)",
        "fedavg_pooled": "pooled (clients)",
        "fedbn": "own (each client)",
        "silobn": "own (each client)",
        "stats_shared": "averaged (clients)",
        "fixbn": "averaged, then frozen (clients)",
        "fedtan": "averaged (clients)",
        "sbn": "gathered by a pass (all clients)",
        "fbn": "pooled, moving average (clients)",
        "hbn": "gathered by a pass (all clients)",
        "fedap": "own (each client)",
        "local_only": "own (each client)",
        "centralised": "own (one client with all data)",
    }


VALIDATED: dict[str, Any] = {"validation": 0.25, "rounds": 6, "count": 3, "local_epochs": 3}


@pytest.mark.parametrize(
    ("method", "world"),
    [
        ("fedavg", {}),
        ("fedbn", {"seed": 4}),
        ("fedbn", {"participation": 0.4, "unsampled": "average", "global_norm": "pooled", "rounds": 5, "seed": 3}),
        ("local_only", {"participation": 0.4, "rounds": 5}),
        ("fedap", {"participation": 0.7}),
        ("hbn", {}),
        ("sbn", {}),
        ("centralised", {}),
    ],
)
def test_validation_chooses_the_round_and_does_not_move_training(
    method: str, world: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run(method=method, **{**VALIDATED, **world})
    rounds = start(run)
    accuracies, measured = [], []
    for _ in range(rounds.federation.world.rounds):
        rounds.play()
        trained = rounds.server.state
        rounds.evaluator.gather(rounds.next)
        population = rounds.federation.population
        right = []
        for client in range(3):
            index = population.validation(client)
            assert len(index) == 10
            state = rounds.network.model_state(client, to_evaluate(rounds), rounds.evaluator.fallback())
            logits = model_of(rounds, state)(population.x[index])
            right.append((logits.argmax(1) == population.y[index]).double().mean().item())
        accuracies.append(np.mean(right))
        metrics, _ = rounds.evaluator.measure(rounds.next)
        measured.append(metrics)
        rounds.server.state = trained
    trained = rounds.server.state
    result = rounds.result(0.0)
    assert result.history["validation_accuracy"] == pytest.approx(accuracies)
    best = int(np.argmax(np.round(accuracies, 9)))
    assert result.metrics["round"] == best + 1
    if method in ("fedbn", "local_only"):  # what clients keep is not what they kept then
        assert best + 1 < rounds.federation.world.rounds
    assert best == 0 or method != "local_only"  # who was sampled later had kept nothing then
    assert result.metrics["validation_accuracy"] == pytest.approx(accuracies[best])
    chosen = measured[best]
    assert {name: result.metrics[name] for name in chosen} == chosen
    monkeypatch.setattr(Rounds, "validate", lambda rounds: None)
    assert bits(play(run).server.state) == bits(trained)


@pytest.mark.parametrize("method", ["sbn", "hbn"])
@pytest.mark.parametrize("validation", [0.0, 0.25])
def test_a_pass_is_counted_once_each_time(method: str, validation: float) -> None:
    rounds = start(small_run(method=method, validation=validation))
    trained = {"up": 0, "down": 0}
    inner = rounds.network.train

    def train(clients: Any, to: Any) -> Any:
        replies = inner(clients, to)
        trained["up"] += sum(reply.bytes for reply in replies)
        trained["down"] += sum(to(client).bytes for client in clients)
        return replies

    rounds.network.train = train  # type: ignore[method-assign]
    for _ in range(2):
        rounds.play()
    metrics = rounds.result(0.0).metrics
    passes = 2 if validation else 1
    assert metrics["bytes_up"] - trained["up"] == passes * 3 * 2 * (2 + 4 + 8) * 8  # mean and variance
    assert metrics["bytes_down"] - trained["down"] == passes * 3 * rounds.server.broadcast(2, 0).bytes
    assert metrics["bytes_total"] == metrics["bytes_up"] + metrics["bytes_down"]


def test_of_many_clients_a_sample_is_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluator_module, "EVALUATED", 4)
    for method in ("fedbn", "sbn"):
        rounds = play(small_run(method=method, count=9, validation=0.2))
        chosen = list(rounds.result(0.0).details["accuracy_by_client"])
        assert len(set(chosen)) == 4
        assert chosen == sorted(chosen)
        assert set(chosen) <= set(range(9))
    assert rounds.evaluator.clients == chosen
    asked: list[int] = []
    validate = rounds.network.validate
    monkeypatch.setattr(
        rounds.network,
        "validate",
        lambda clients, to, fallback: asked.extend(clients) or validate(clients, to, fallback),
    )
    rounds.validate()
    assert asked == chosen


def test_images_that_do_not_divide_into_parts_are_evaluated() -> None:
    """501 images in parts of 500 would leave one, which has no variance in a network of linear layers."""
    data = replace(DATA, train_limit=501)
    rounds = play(small_run(model="mlp", data=data, count=1, rounds=1, batch=100))
    metrics = rounds.result(0.0).metrics
    assert 0 <= metrics["reestimated_accuracy"] <= 1


def test_a_perfect_model_is_exactly_right() -> None:
    rounds = play(small_run(validation=0.3, count=3, data=replace(DATA, train_limit=90)), rounds=1)
    population = rounds.federation.population
    sure = replace(population.pool, y=torch.zeros_like(population.y), test_y=torch.zeros_like(population.pool.test_y))
    rounds.federation.population = replace(population, pool=sure)
    rounds.server.state["classifier.bias"] += torch.tensor([1e6] + [0.0] * 9)
    assert rounds.network.validate([0, 1, 2], rounds.broadcast, {}) == [(1.0, 0.0)] * 3


def test_a_client_that_never_gave_a_usable_update_counts_as_never_sampled() -> None:
    def fail(update: Update) -> Update:
        return Update(update.client, {}, error="lost power")

    rounds = start(small_run(method="fedbn"), Spoiled(fail, [1], rounds=[0, 1]))
    for _ in range(2):
        rounds.play()
    metrics = rounds.result(0.0).metrics
    assert metrics["never_sampled"] == 1
    assert metrics["clients_left_out"] == 2
    names = [name for name in rounds.server.state if is_affine(name) or is_statistics(name)]
    assert len(names) == 15
    assert rounds.network.client_states([1]) == {}
