"""Where a policy's statistics come from, and what normalises training: against NumPy on what entered the layers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small_runs import (
    NORM_LAYERS,
    PLAIN,
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
from torch import Tensor, nn

from syncnorm.federated.algorithms.fedap import distances, personal_shares
from syncnorm.federated.client.client import section
from syncnorm.federated.server.rounds import Rounds

Inputs = dict[str, NDArray[np.float64]]
ENGINES = pytest.mark.parametrize("engine", ["loop", "cohort"])
SKEWED: dict[str, Any] = {"skew": "dirichlet_by_class", "alpha": 0.4, "seed": 1}


def what_enters(model: nn.Module, run: Callable[[], object]) -> Inputs:
    """Return every value that enters each batch norm while `run` runs: (values, C)."""
    seen: dict[str, list[Tensor]] = {name: [] for name in NORM_LAYERS}

    def look(name: str) -> Callable[..., None]:
        return lambda _, inputs: seen[name].append(inputs[0].detach().movedim(1, -1).flatten(0, -2).clone())

    hooks = [model.get_submodule(name).register_forward_pre_hook(look(name)) for name in NORM_LAYERS]
    run()
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts).numpy() for name, parts in seen.items()}


def plain_model(state: Mapping[str, Tensor]) -> nn.Module:
    """Return a small_cnn with torch's own batch norms that has a state's entries; those it does not know are left."""
    model = fresh_model(start(small_run()))
    model.load_state_dict({name: value for name, value in state.items() if name in model.state_dict()})
    return model


def pass_over(rounds: Rounds, client: int, state: Mapping[str, Tensor]) -> Inputs:
    """Return what enters the layers in a pass in training mode over a client's batches, from 2 samples on."""
    model, population = plain_model(state).train(), rounds.federation.population
    parts = [part for part in population.x[population.train(client)].split(16) if len(part) >= 2]

    @torch.no_grad()
    def run() -> None:
        for part in parts:
            model(part)

    return what_enters(model, run)


def pooled(clients: Sequence[Inputs], weights: Sequence[int]) -> dict[str, NDArray[np.float64]]:
    """Return the law of total variance over clients, each with its mean and unbiased variance, as entries."""
    shares, found = np.array(weights) / sum(weights), {}
    for name in NORM_LAYERS:
        means = np.stack([client[name].mean(0) for client in clients])
        variances = np.stack([client[name].var(0, ddof=1) for client in clients])
        mean = shares @ means
        found[f"{name}.running_mean"] = mean
        found[f"{name}.running_var"] = shares @ (variances + (means - mean) ** 2)
    return found


def assert_statistics(state: Mapping[str, Tensor], expected: Mapping[str, NDArray[np.float64]]) -> None:
    assert len(expected) == 6
    for name, value in expected.items():
        np.testing.assert_allclose(state[name].numpy(), value, rtol=1e-10, atol=1e-12, err_msg=name)


@ENGINES
def test_fixbn_trains_on_frozen_statistics_from_its_second_stage_on(engine: str) -> None:
    run = small_run(method="fixbn", rounds=4, method_options={"frozen_from": 0.5}, engine=engine)
    rounds = start(run)
    x, y = rounds.federation.population.x, rounds.federation.population.y
    plain = start(small_run(rounds=4, engine=engine))
    for _ in range(2):
        rounds.play()
        plain.play()
    assert bits(rounds.server.state) == bits(plain.server.state)
    frozen = {name: value for name, value in rounds.server.state.items() if is_statistics(name)}
    assert len(frozen) == 9
    assert not torch.equal(frozen["features.1.running_mean"], torch.zeros(2, dtype=torch.float64))
    for round_ in (2, 3):
        models = [plain_model(rounds.server.state) for _ in range(3)]
        for client, model in enumerate(models):
            by_hand(model, x, y, batches_of(rounds, client, round_), 0.1, mode=lambda model: model.eval())
        rounds.play()
        assert_same(rounds.server.state, weighted_mean([model.state_dict() for model in models], [40, 40, 40]))
        assert bits({name: rounds.server.state[name] for name in frozen}) == bits(frozen)
    moved = [name for name in rounds.server.state if is_affine(name)]
    assert all(not torch.equal(rounds.server.state[name], plain.server.state[name]) for name in moved)


@pytest.mark.parametrize(("frozen_from", "first"), [(0.0, 0), (0.07, 7), (0.3, 30), (1.0, 100)])
def test_the_second_stage_of_fixbn_starts_where_the_option_says(frozen_from: float, first: int) -> None:
    federation = start(small_run(method="fixbn", rounds=100, method_options={"frozen_from": frozen_from})).federation
    assert [round_ for round_ in range(100) if federation.schedule.is_frozen(round_)] == list(range(first, 100))


@ENGINES
@pytest.mark.parametrize("momentum", [0.1, 1.0])
def test_fbn_normalises_with_what_it_received_and_gathers_what_it_saw(engine: str, momentum: float) -> None:
    slow = replace(PLAIN, lr=0.02)  # with momentum 1 and a larger rate, training diverges
    options = {"momentum": momentum}
    run = small_run(method="fbn", rounds=3, method_options=options, optim=slow, engine=engine, **SKEWED)
    rounds = start(run)
    x, y = rounds.federation.population.x, rounds.federation.population.y
    for round_ in range(3):
        before = rounds.server.state
        models = [plain_model(before) for _ in range(3)]
        inputs, sizes = [], []
        for client, model in enumerate(models):
            batches = batches_of(rounds, client, round_)
            sizes.append(len(rounds.federation.schedule.samples(client)))
            inputs.append(
                what_enters(
                    model,
                    lambda model=model, batches=batches: by_hand(
                        model, x, y, batches, slow.lr, mode=lambda model: model.eval()
                    ),
                )
            )
        rounds.play()
        assert len(set(sizes)) > 1
        expected = weighted_mean([model.state_dict() for model in models], sizes)
        assert_same(rounds.server.state, expected, [name for name in expected if not is_statistics(name)])
        fresh = pooled(inputs, sizes)
        moved = {name: (1 - momentum) * before[name].numpy() + momentum * fresh[name] for name in fresh}
        assert_statistics(rounds.server.state, moved)


@ENGINES
def test_hbn_gathers_statistics_before_training_and_keeps_its_mix_at_home(engine: str) -> None:
    rounds = start(small_run(method="hbn", engine=engine, **SKEWED))
    x, y = rounds.federation.population.x, rounds.federation.population.y
    mixes: list[dict[str, Tensor]] = [{}, {}, {}]
    for round_ in range(2):
        before = rounds.server.state
        states, sizes = [], []
        for client in range(3):
            model = fresh_model(rounds, {**before, **mixes[client]})
            by_hand(model, x, y, batches_of(rounds, client, round_), 0.1)
            states.append(model.state_dict())
            mixes[client] = {name: value for name, value in states[-1].items() if name.endswith("mix")}
            sizes.append(len(rounds.federation.schedule.samples(client)))
        passes = [pass_over(rounds, client, before) for client in range(3)]
        rounds.play()
        expected = weighted_mean(states, sizes)
        shared = [name for name in expected if not is_statistics(name) and not name.endswith("mix")]
        assert len(shared) == 14
        assert_same(rounds.server.state, expected, shared)
        assert_statistics(rounds.server.state, pooled(passes, sizes))
        for client in range(3):
            own = section(rounds.network.client_states([client])[client], "state")
            assert_same(own, mixes[client])
            assert own.keys() == {f"{name}.mix" for name in NORM_LAYERS}
    assert all(not torch.equal(mixes[0][name], mixes[1][name]) for name in mixes[0])
    assert all(torch.equal(rounds.server.state[name], torch.zeros(len(mixes[0][name]))) for name in mixes[0])


@ENGINES
@pytest.mark.parametrize("method", ["sbn", "hbn"])
def test_a_pass_gathers_the_exact_moments_of_all_clients_batches(engine: str, method: str) -> None:
    rounds = play(small_run(method=method, engine=engine, participation=0.4, **SKEWED))
    trained = rounds.server.state
    passes = [pass_over(rounds, client, trained) for client in range(3)]
    result = rounds.result(0.0)
    every = {name: np.concatenate([one[name] for one in passes]) for name in NORM_LAYERS}
    expected = {f"{name}.running_mean": values.mean(0) for name, values in every.items()}
    expected |= {f"{name}.running_var": values.var(0, ddof=1) for name, values in every.items()}
    assert_statistics(rounds.server.state, expected)
    assert_same(rounds.server.state, trained, [name for name in trained if not is_statistics(name)])
    model = plain_model(rounds.server.state).eval()
    x, y = rounds.federation.population.global_test
    assert result.metrics["global_accuracy"] == pytest.approx((model(x).argmax(1) == y).double().mean().item())


def test_sbn_trains_like_fedavg_whatever_the_statistics() -> None:
    fedavg, sbn = play(small_run()).server.state, play(small_run(method="sbn")).server.state
    names = [name for name in fedavg if not is_statistics(name)]
    assert bits({name: sbn[name] for name in names}) == bits({name: fedavg[name] for name in names})


@pytest.mark.parametrize("method", ["fixbn", "fbn", "hbn"])
def test_options_of_the_norm_reach_the_layer_of_the_method(method: str) -> None:
    """A convolution with its mean far off: what divides is sqrt(var + eps), with the eps of the run."""
    options = {"frozen_from": 0.0} if method == "fixbn" else {}
    run = small_run(method=method, norm_options={"eps": 0.5}, method_options=options)
    federation = start(run).federation
    for model in (federation.local(0).classifier.model, federation.models.template, federation.models.with_state({})):
        layers = [model.get_submodule(name) for name in NORM_LAYERS]
        assert [layer.eps for layer in layers] == [0.5] * 3


def wasserstein(states: Sequence[Mapping[str, Tensor]]) -> NDArray[np.float64]:
    """Return the distances of FedAP between clients, written out pair by pair."""
    count = len(states)
    found = np.zeros((count, count))
    for i in range(count):
        for j in range(count):
            for name in NORM_LAYERS:
                mean, other = (states[k][f"{name}.running_mean"].numpy() for k in (i, j))
                deviation, theirs = (np.sqrt(states[k][f"{name}.running_var"].numpy()) for k in (i, j))
                found[i, j] += np.sqrt(((mean - other) ** 2).sum() + ((deviation - theirs) ** 2).sum())
    return found


def shares_by_hand(states: Sequence[Mapping[str, Tensor]], own: float) -> NDArray[np.float64]:
    far, count = wasserstein(states), len(states)
    found = np.zeros((count, count))
    for i in range(count):
        total = sum(1 / far[i, j] for j in range(count) if j != i)
        for j in range(count):
            found[i, j] = own if i == j else (1 - own) / far[i, j] / total
    return found


@ENGINES
@pytest.mark.parametrize("own", [0.5, 0.2])
def test_fedap_averages_for_each_client_by_the_distance_of_the_others(engine: str, own: float) -> None:
    rounds = start(small_run(method="fedap", method_options={"own_share": own}, count=4, engine=engine, **SKEWED))
    x, y = rounds.federation.population.x, rounds.federation.population.y
    first = fresh_model(rounds).state_dict()
    received = [first] * 4
    for round_ in range(2):
        trained = []
        for client in range(4):
            model = plain_model(received[client])
            by_hand(model, x, y, batches_of(rounds, client, round_), 0.1)
            trained.append(model.state_dict())
        shares = shares_by_hand(trained, own)
        np.testing.assert_allclose(distances(trained, NORM_LAYERS).numpy(), wasserstein(trained), rtol=1e-10)
        np.testing.assert_allclose(shares.sum(1), 1)
        rounds.play()
        received = []
        for client in range(4):
            mixed = {
                name: sum(share * state[name] for share, state in zip(shares[client], trained, strict=True))
                for name in first
                if not is_statistics(name) and not is_affine(name)
            }
            received.append({**trained[client], **mixed})
            found = rounds.network.model_state(client, rounds.broadcast, {})
            assert_same(found, received[client])
    assert not torch.equal(received[0]["classifier.weight"], received[1]["classifier.weight"])
    assert len({bits(rounds.server.broadcast(2, client).state)["classifier.weight"] for client in range(4)}) == 4
    mean = rounds.server.state["classifier.weight"]
    torch.testing.assert_close(mean, torch.stack([state["classifier.weight"] for state in received]).mean(0))


def test_twins_of_fedap_take_each_other_and_one_alone_takes_itself() -> None:
    layer = {"running_mean": torch.zeros(2), "running_var": torch.ones(2)}
    far = {"running_mean": torch.ones(2), "running_var": torch.ones(2)}
    shares = personal_shares([layer, dict(layer), far], [""], 0.4)
    np.testing.assert_allclose(shares.sum(1), 1)
    assert shares[0, 0] == pytest.approx(0.4)
    assert shares[0, 1] == pytest.approx(0.6)
    assert shares[2].tolist() == pytest.approx([0.3, 0.3, 0.4])
    assert personal_shares([layer], [""], 0.4).tolist() == [[1.0]]
    assert personal_shares([layer] * 3, [""], 0.4)[0].tolist() == pytest.approx([0.4, 0.3, 0.3])
