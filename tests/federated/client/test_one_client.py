"""One client's FedAvg is plain training: every knob of local training, against a loop written out by hand."""

from dataclasses import replace
from math import cos, pi

import pytest
import torch
from small_runs import DATA, PLAIN, assert_same, batches_of, by_hand, fresh_model, is_affine, play, small_run, start
from torch import Tensor, nn

from syncnorm.config import Optim
from syncnorm.surgery import adaptive_gradient_clip

MOMENTUM = replace(PLAIN, momentum=0.9, weight_decay=0.01)


@pytest.mark.parametrize("engine", ["loop", "cohort"])
@pytest.mark.parametrize(
    ("optim", "world"),
    [
        (PLAIN, {}),
        (PLAIN, {"local_epochs": 3}),
        (PLAIN, {"local_steps": 2}),
        (PLAIN, {"local_steps": 11}),
        (MOMENTUM, {"local_epochs": 2}),
        (replace(MOMENTUM, schedule="cosine", warmup=0.5), {"rounds": 4}),
        (MOMENTUM, {"keep_momentum": True, "rounds": 3}),
    ],
)
def test_fedavg_of_one_client_is_plain_training(engine: str, optim: Optim, world: dict[str, object]) -> None:
    run = small_run(count=1, optim=optim, engine=engine, **world)
    played = play(run)
    x, y = played.federation.population.x, played.federation.population.y
    model, velocity = fresh_model(played), None
    rounds = run.world.rounds  # type: ignore[union-attr]
    for round_ in range(rounds):
        batches = batches_of(played, 0, round_)
        if "local_steps" in world:
            assert len(batches) == world["local_steps"]
        rate = optim.lr * _schedule(round_, rounds, optim)
        losses, after = by_hand(
            model, x, y, batches, rate, momentum=optim.momentum, decay=optim.weight_decay, velocity=velocity
        )
        velocity = after if "keep_momentum" in world else None
        sizes = [len(batch) for batch in batches]
        mean = sum(n * loss for n, loss in zip(sizes, losses, strict=True)) / sum(sizes)
        assert played.log.history["train_loss"][round_] == pytest.approx(mean, rel=1e-9)
    assert_same(played.server.state, model.state_dict())


def _schedule(round_: int, rounds: int, optim: Optim) -> float:
    if optim.schedule == "constant":
        return 1.0
    warmup = optim.warmup * rounds
    if round_ < warmup:
        return (round_ + 1) / (warmup + 1)
    return 0.5 * (1 + cos(pi * (round_ - warmup) / (rounds - warmup)))


def test_an_epoch_is_every_sample_once_in_an_order_of_its_own() -> None:
    played = start(small_run(count=2, local_epochs=2))
    mine = sorted(played.federation.schedule.samples(1).tolist())
    assert len(mine) == 60
    orders = []
    for round_ in range(2):
        batches = batches_of(played, 1, round_)
        assert [len(batch) for batch in batches] == [16, 16, 16, 12] * 2
        for epoch in (batches[:4], batches[4:]):
            orders.append(torch.cat(epoch).tolist())
            assert sorted(orders[-1]) == mine
    assert len({tuple(order) for order in orders}) == 4


def test_adaptive_clipping_acts_on_every_local_gradient() -> None:
    run = small_run(count=1, clip=0.02, rounds=1)
    played = play(run)
    model = fresh_model(played)
    x, y = played.federation.population.x, played.federation.population.y
    parameters = dict(model.named_parameters())
    clipped = 0
    for index in batches_of(played, 0, 0):
        model.train()
        loss = nn.functional.cross_entropy(model(x[index]), y[index])
        gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
        small = adaptive_gradient_clip(parameters, gradients, 0.02)
        clipped += sum(not torch.equal(small[name], gradients[name]) for name in small)
        with torch.no_grad():
            for name, p in parameters.items():
                p -= 0.1 * small[name]
    assert clipped > 0
    assert_same(played.server.state, model.state_dict())


@pytest.mark.parametrize("engine", ["loop", "cohort"])
@pytest.mark.parametrize("squared", [True, False])
def test_the_proximal_term_is_that_of_the_paper(engine: str, squared: bool) -> None:
    """mu/2 ||w - w_g||^2 over what the server averages: gamma and beta of FedBN are not pulled."""
    run = small_run(
        count=1,
        rounds=1,
        method="fedbn",
        algorithm="fedprox",
        algorithm_options={"mu": 0.7, "squared": squared},
        engine=engine,
    )
    played = play(run)
    model = fresh_model(played)
    anchor = {name: p.detach().clone() for name, p in model.named_parameters() if not is_affine(name)}
    assert len(anchor) == 8
    assert len(list(model.named_parameters())) == 14

    def penalty(model: nn.Module) -> Tensor:
        gaps = [(p - anchor[name]).flatten() for name, p in model.named_parameters() if name in anchor]
        square = torch.cat(gaps).dot(torch.cat(gaps))
        if squared:
            return 0.35 * square
        return 0.35 * square.sqrt() if square > 0 else 0.0 * square

    x, y = played.federation.population.x, played.federation.population.y
    losses, _ = by_hand(model, x, y, batches_of(played, 0, 0), 0.1, penalty=penalty)
    expected = model.state_dict()
    assert_same(played.server.state, expected, anchor)
    kept = played.network.client_states([0])[0]
    assert_same(
        {name: kept[f"state.{name}"] for name in expected if f"state.{name}" in kept},
        expected,
        [name for name in expected if f"state.{name}" in kept],
    )
    assert played.log.history["train_loss"][0] == pytest.approx(
        sum(len(batch) * loss for batch, loss in zip(batches_of(played, 0, 0), losses, strict=True)) / 120, rel=1e-9
    )


@pytest.mark.parametrize("engine", ["loop", "cohort"])
def test_no_pull_is_fedavg(engine: str) -> None:
    fedavg = play(small_run(engine=engine))
    for options in ({"mu": 0.0}, {"mu": 0.0, "squared": False}):
        run = small_run(algorithm="fedprox", algorithm_options=options, engine=engine)
        assert_same(play(run).server.state, fedavg.server.state)


@pytest.mark.parametrize("engine", ["loop", "cohort"])
def test_the_first_step_is_not_pulled(engine: str) -> None:
    """At distance zero both penalties have a gradient of zero, and not the NaN of a root."""
    fedavg = play(small_run(local_steps=1, rounds=1, engine=engine))
    for squared in (True, False):
        options = {"mu": 5.0, "squared": squared}
        run = small_run(algorithm="fedprox", algorithm_options=options, local_steps=1, rounds=1, engine=engine)
        assert_same(play(run).server.state, fedavg.server.state)


@pytest.mark.parametrize("engine", ["loop", "cohort"])
def test_running_statistics_normalise_a_small_batch(engine: str) -> None:
    """50 samples in batches of 16: the fourth has 2, which is below min_batch 4."""
    run = small_run(
        count=1,
        rounds=1,
        batch=16,
        min_batch=4,
        small_batch="use_running",
        engine=engine,
        local_epochs=2,
        data=replace(DATA, train_limit=50),
    )
    played = play(run)
    model = fresh_model(played)
    x, y = played.federation.population.x, played.federation.population.y
    batches = batches_of(played, 0, 0)
    assert [len(batch) for batch in batches] == [16, 16, 16, 2] * 2
    modes = iter([True, True, True, False] * 2)
    by_hand(model, x, y, batches, 0.1, mode=lambda model: model.train(next(modes)))
    assert_same(played.server.state, model.state_dict())
    assert played.server.state["features.1.num_batches_tracked"] == 6
    assert played.log.counts["small_batches"] == 2
