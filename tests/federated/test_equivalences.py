"""Methods that must coincide: with DDP, with one big batch, with each other, with training alone or together."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small_runs import (
    NORM_LAYERS,
    PLAIN,
    assert_same,
    batches_of,
    by_hand,
    fresh_model,
    is_affine,
    is_statistics,
    play,
    small_run,
    weighted_mean,
)
from torch import Tensor, nn

from syncnorm.config import Clients, Data, Run
from syncnorm.federated.client.client import section
from syncnorm.federated.federation import Federation
from syncnorm.norms import GhostBatchNorm
from syncnorm.surgery import batch_norms, convert

ENGINES = pytest.mark.parametrize("engine", ["loop", "cohort"])


@ENGINES
@pytest.mark.parametrize("method", ["fedavg", "fedavg_pooled"])
def test_one_step_of_fedavg_is_one_step_of_ddp(engine: str, method: str) -> None:
    """K clients and one plain SGD step: that of K devices, each with its own statistics, which GhostBatchNorm is."""
    played = play(small_run(count=4, rounds=1, local_steps=1, batch=12, method=method, skew="sorted", engine=engine))
    x, y = played.federation.population.x, played.federation.population.y
    batches = [batches_of(played, client, 0)[0] for client in range(4)]
    assert [len(batch) for batch in batches] == [12] * 4
    model = convert(fresh_model(played), "ghost_bn", virtual_ranks=4, buffers="pooled")
    together = torch.stack(batches).t().reshape(-1)  # virtual rank r has samples r, r + 4, ...
    by_hand(model, x, y, [together], 0.1)
    found = played.server.state
    assert_same(found, dict(model.named_parameters()))
    spread = []
    for name in NORM_LAYERS:
        layer = batch_norms(model)[name]
        assert isinstance(layer, GhostBatchNorm)
        means, variances = layer.rank_mean, layer.rank_var
        pooled = means.mean(0), (variances + (means - means.mean(0)).square()).mean(0)
        plain = means.mean(0), variances.mean(0)
        mean, var = pooled if method == "fedavg_pooled" else plain
        torch.testing.assert_close(found[f"{name}.running_mean"], mean, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found[f"{name}.running_var"], var, rtol=1e-9, atol=1e-12)
        spread.append((pooled[1] - plain[1]).max().item())
        assert found[f"{name}.num_batches_tracked"] == 1
    assert max(spread) > 1e-6


@ENGINES
def test_one_step_without_norm_is_one_step_on_all_batches_together(engine: str) -> None:
    played = play(small_run(count=4, rounds=1, local_steps=1, batch=12, norm="none", engine=engine))
    x, y = played.federation.population.x, played.federation.population.y
    model = fresh_model(played)
    by_hand(model, x, y, [torch.cat([batches_of(played, client, 0)[0] for client in range(4)])], 0.1)
    assert_same(played.server.state, model.state_dict())


def test_one_synchronised_step_is_one_step_on_all_batches_together() -> None:
    """FedTAN with one step is SyncBN: batch norm of the union of the batches, gradients through it included."""
    played = play(small_run(count=4, rounds=1, local_steps=1, batch=12, method="fedtan", engine="cohort"))
    x, y = played.federation.population.x, played.federation.population.y
    model = fresh_model(played)
    by_hand(model, x, y, [torch.cat([batches_of(played, client, 0)[0] for client in range(4)])], 0.1)
    assert_same(played.server.state, model.state_dict())


def test_only_the_first_step_of_fedtan_is_synchronised() -> None:
    played = play(small_run(count=3, rounds=1, local_steps=2, batch=12, method="fedtan", engine="cohort"))
    x, y = played.federation.population.x, played.federation.population.y
    batches = [batches_of(played, client, 0) for client in range(3)]
    models = [fresh_model(played) for _ in range(3)]
    parts = [dict(model.named_parameters()) for model in models]
    logits = _shared_statistics(models, [x[mine[0]] for mine in batches])
    total = sum(F.cross_entropy(one, y[mine[0]]) for one, mine in zip(logits, batches, strict=True))
    gradients = torch.autograd.grad(total, [p for part in parts for p in part.values()])
    with torch.no_grad():
        for p, gradient in zip([p for part in parts for p in part.values()], gradients, strict=True):
            p -= 0.1 * gradient
    for model, mine in zip(models, batches, strict=True):
        by_hand(model, x, y, [mine[1]], 0.1)
    assert_same(played.server.state, weighted_mean([model.state_dict() for model in models], [1, 1, 1]))


def _shared_statistics(models: Sequence[nn.Module], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return each client's logits, by its own weights, with batch statistics of all clients' values together."""
    hidden = list(inputs)
    for block, name in enumerate(NORM_LAYERS):
        convolutions = [model.get_submodule(f"features.{4 * block}") for model in models]
        norms = [model.get_submodule(name) for model in models]
        hidden = [convolution(h) for convolution, h in zip(convolutions, hidden, strict=True)]
        together = torch.cat(hidden)
        mean, var = together.mean((0, 2, 3)), together.var((0, 2, 3), correction=0)
        unbiased = together.var((0, 2, 3), correction=1)
        for place, norm in enumerate(norms):
            norm.running_mean.mul_(0.9).add_(0.1 * mean.detach())
            norm.running_var.mul_(0.9).add_(0.1 * unbiased.detach())
            norm.num_batches_tracked.add_(1)
            scale = norm.weight / (var + 1e-5).sqrt()
            z = (hidden[place] - mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]
            hidden[place] = F.max_pool2d(z.relu(), 2) if block < 2 else z.relu()
    return [model.classifier(h.mean((2, 3))) for model, h in zip(models, hidden, strict=True)]


@ENGINES
def test_fedbn_of_one_client_is_fedavg(engine: str) -> None:
    fedavg, fedbn = (play(small_run(count=1, method=method, engine=engine)) for method in ("fedavg", "fedbn"))
    own = section(fedbn.network.client_states([0])[0], "state")
    assert_same({**fedbn.server.state, **own}, fedavg.server.state)
    results = [played.result(0.0).metrics for played in (fedavg, fedbn)]
    for name in ("accuracy", "loss", "train_loss", "reestimated_accuracy"):
        assert results[0][name] == results[1][name]


@ENGINES
def test_the_shared_parts_of_one_round_are_those_of_fedavg(engine: str) -> None:
    """From equal weights, one round: what SiloBN and its mirror share is FedAvg's, and the rest is as it was."""
    fedavg = play(small_run(engine=engine, skew="dirichlet_by_class", alpha=0.5), rounds=1).server.state
    first = fresh_model(play(small_run(), rounds=0)).state_dict()
    for method, stays in (("silobn", is_statistics), ("stats_shared", is_affine)):
        run = small_run(engine=engine, skew="dirichlet_by_class", alpha=0.5, method=method)
        found = play(run, rounds=1).server.state
        shared = [name for name in fedavg if not stays(name)]
        local = [name for name in fedavg if stays(name)]
        assert len(shared) + len(local) == 23
        assert len(local) == {"silobn": 9, "stats_shared": 6}[method]
        assert_same(found, fedavg, shared)
        assert_same(found, first, local)


@ENGINES
def test_local_only_is_each_client_alone(engine: str) -> None:
    played = play(small_run(engine=engine, method="local_only", optim=replace(PLAIN, momentum=0.9)))
    x, y = played.federation.population.x, played.federation.population.y
    for client in range(3):
        model = fresh_model(played)
        for round_ in range(2):
            by_hand(model, x, y, batches_of(played, client, round_), 0.1, momentum=0.9)
        assert_same(section(played.network.client_states([client])[client], "state"), model.state_dict())
    assert_same(played.server.state, fresh_model(played).state_dict())


@ENGINES
def test_centralised_trains_on_the_union(engine: str) -> None:
    played = play(small_run(engine=engine, method="centralised", participation=0.3, skew="shards"))
    population = played.federation.population
    batches = batches_of(played, 0, 0)
    everything = sorted(torch.cat([population.train(client) for client in range(3)]).tolist())
    assert sorted(torch.cat(batches).tolist()) == everything == list(range(120))
    model = fresh_model(played)
    for round_ in range(2):
        by_hand(model, population.x, population.y, batches_of(played, 0, round_), 0.1)
    assert_same(played.server.state, model.state_dict())
    assert played.result(0.0).details["accuracy_by_client"].keys() == {0, 1, 2}


@ENGINES
def test_fedavg_weighs_clients_by_samples_or_alike(engine: str) -> None:
    for weighting in ("samples", "uniform"):
        played = play(small_run(engine=engine, skew="quantity", weighting=weighting), rounds=1)
        x, y = played.federation.population.x, played.federation.population.y
        states, sizes, losses = [], [], []
        for client in range(3):
            model = fresh_model(played)
            batches = batches_of(played, client, 0)
            seen = [len(batch) for batch in batches]
            found, _ = by_hand(model, x, y, batches, 0.1)
            losses.append(sum(n * loss for n, loss in zip(seen, found, strict=True)) / sum(seen))
            states.append(model.state_dict())
            sizes.append(len(played.federation.schedule.samples(client)))
        assert len(set(sizes)) == 3
        weights = sizes if weighting == "samples" else [1, 1, 1]
        assert_same(played.server.state, weighted_mean(states, weights))
        mean = sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)
        assert played.log.history["train_loss"][0] == pytest.approx(mean, rel=1e-9)


def test_fedtans_first_step_is_as_large_as_the_smallest_client() -> None:
    world = Clients(count=6, rounds=1, method="fedtan", skew="dirichlet_by_class", alpha=0.1, batch=16)
    federation = Federation(Run(data=Data("digits", size=8, train_limit=120), world=world))
    sizes = [len(federation.schedule.samples(client)) for client in range(6)]
    smallest = min(size for size in sizes if size >= 2)
    assert smallest < 16 < max(sizes)
    plans = [federation.schedule.plan(client, 0) for client in range(6)]
    assert {len(plan.batches[0]) for plan in plans if plan.batches} == {smallest}
    assert max(len(batch) for plan in plans for batch in plan.batches[1:]) == 16
