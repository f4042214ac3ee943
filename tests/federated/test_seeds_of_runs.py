"""The same run gives the same bits; what one field changes, no other choice feels."""

import sys
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from small_runs import PLAIN, assert_same, batches_of, bits, by_hand, fresh_model, small_run, start, weighted_mean
from torch import Tensor, nn

from syncnorm.config import Clients, Data, Optim, Run
from syncnorm.federated import simulate
from syncnorm.federated.federation import Federation
from syncnorm.federated.policies import POLICIES
from syncnorm.seeds import derive


def draws(federation: Federation) -> dict[str, Any]:
    """Return every random choice of a run's first rounds: first weights, cohorts, samples, batches."""
    weights = {
        name: value for name, value in federation.models.template.state_dict().items() if not name.endswith("mix")
    }
    clients = range(federation.world.count)
    return {
        "weights": bits(weights),
        "cohorts": [federation.schedule.cohort(round_) for round_ in range(4)],
        "samples": [federation.population.train(client).tolist() for client in clients],
        "batches": [
            [batch.tolist() for batch in federation.schedule.plan(client, round_).batches]
            for client in clients
            for round_ in (0, 1)
        ],
    }


@pytest.mark.parametrize("engine", ["loop", "cohort"])
@pytest.mark.parametrize("method", ["fedavg", "fedbn", "hbn", "fbn", "fedap"])
def test_the_same_run_gives_the_same_bits(engine: str, method: str) -> None:
    run = small_run(method=method, engine=engine, participation=0.7, rounds=3, skew="dirichlet_by_class")
    run = replace(run, precision="float32", data=replace(run.data, augment="shift_flip"))
    once, again = simulate(run), simulate(run)
    assert once.metrics == again.metrics
    assert once.history == again.history
    assert once.details == again.details
    other = simulate(replace(run, seed=1))
    assert other.history["train_loss"] != once.history["train_loss"]


BASE: dict[str, Any] = {"count": 6, "participation": 0.5, "skew": "dirichlet_by_class", "alpha": 0.5, "rounds": 4}


@pytest.mark.parametrize(
    "change",
    [
        *({"method": method} for method in POLICIES if method not in ("centralised", "fedtan")),
        {"algorithm": "scaffold"},
        {"algorithm": "fedadam"},
        {"weighting": "uniform"},
        {"global_norm": "average"},
        {"unsampled": "average"},
        {"enough": 0.1},
        {"clip": 0.1},
        {"rounds": 9},
        {"engine": "cohort"},
        {"optim": Optim(name="adam", lr=0.01)},
        {"optim": replace(PLAIN, momentum=0.9), "keep_momentum": True},
    ],
)
def test_a_field_that_says_nothing_of_them_moves_no_draws(change: dict[str, Any]) -> None:
    base = draws(start(small_run(**BASE)).federation)
    assert draws(start(small_run(**{**BASE, **change})).federation) == base


def test_another_seed_moves_every_draw() -> None:
    base, other = (draws(start(small_run(seed=seed, **BASE)).federation) for seed in (0, 1))
    for name, value in base.items():
        assert other[name] != value, name


def test_one_choice_leaves_the_others() -> None:
    """Another cohort, more epochs or validation samples: what is drawn beside stays."""
    base = draws(start(small_run(**BASE)).federation)
    fewer = draws(start(small_run(**{**BASE, "participation": 0.2})).federation)
    assert {**fewer, "cohorts": None} == {**base, "cohorts": None}
    longer = draws(start(small_run(**BASE, local_epochs=2)).federation)
    assert {**longer, "batches": None} == {**base, "batches": None}
    for one, two in zip(base["batches"], longer["batches"], strict=True):
        assert two[: len(one)] == one
    validated = draws(start(small_run(**BASE, validation=0.4)).federation)
    assert [base[name] == validated[name] for name in ("weights", "cohorts")] == [True, True]
    for all_samples, some in zip(base["samples"], validated["samples"], strict=True):
        assert [sample for sample in all_samples if sample in set(some)] == some


@pytest.mark.parametrize(
    ("count", "participation", "size"),
    [(10, 1.0, 10), (10, 0.25, 2), (10, 0.26, 3), (10, 0.001, 1), (7, 0.5, 4), (1, 0.5, 1)],
)
def test_a_cohort_is_a_sample_without_replacement(count: int, participation: float, size: int) -> None:
    federation = start(small_run(count=count, participation=participation)).federation
    cohorts = [federation.schedule.cohort(round_) for round_ in range(50)]
    for cohort in cohorts:
        assert len(cohort) == len(set(cohort)) == size
        assert cohort == sorted(cohort)
        assert set(cohort) <= set(range(count))
    if size < count:
        assert len({tuple(cohort) for cohort in cohorts}) > 5
        assert {client for cohort in cohorts for client in cohort} == set(range(count))


def test_clients_held_out_never_train() -> None:
    federation = start(small_run(count=5, held_out=3, participation=0.5)).federation
    assert {client for round_ in range(60) for client in federation.schedule.cohort(round_)} == {0, 1, 2, 3, 4}


def test_a_million_clients_are_sampled_without_a_list_of_them() -> None:
    run = Run(
        data=Data("digits", size=8, train_limit=120, test_limit=60),
        model_options={"width": 2},
        world=Clients(count=1_000_000, participation=5e-6, skew="resampled", rounds=1, engine="loop", method="fedbn"),
        optim=PLAIN,
    )
    federation = Federation(run, torch.device("cpu"))
    cohort = federation.schedule.cohort(0)
    assert len(set(cohort)) == 5
    assert max(cohort) > 10_000
    assert federation.schedule.cohort(1) != cohort
    assert len(federation.schedule.plan(cohort[-1], 0).batches) == 2


def test_first_weights_are_those_of_the_seed_whatever_was_drawn_before() -> None:
    torch.manual_seed(123)
    one = bits(fresh_model(start(small_run())).state_dict())
    torch.rand(5)
    before = torch.get_rng_state()
    assert bits(fresh_model(start(small_run())).state_dict()) == one
    assert torch.equal(torch.get_rng_state(), before)


class Forgetful(nn.Module):
    """A network with dropout."""

    def __init__(self, pixels: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 8), nn.Dropout(0.5), nn.Linear(8, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes)."""
        logits: Tensor = self.layers(x)
        return logits


def test_dropout_draws_anew_for_each_client_and_round_and_leaves_the_users_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = ModuleType("a_forgetful_package")
    module.net = Forgetful  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_forgetful_package", module)
    rounds = start(small_run(model="a_forgetful_package:net", count=2))
    x, y = rounds.federation.population.x, rounds.federation.population.y
    before = torch.get_rng_state()
    seeds = []
    for round_ in range(2):
        state = rounds.server.state
        models = [fresh_model(rounds, state) for _ in range(2)]
        for client, model in enumerate(models):
            seeds.append(derive("training", 0, round_, client))
            with torch.random.fork_rng():
                torch.manual_seed(seeds[-1])
                by_hand(model, x, y, batches_of(rounds, client, round_), 0.1)
        rounds.play()
        assert_same(rounds.server.state, weighted_mean([model.state_dict() for model in models], [1, 1]))
    assert len(set(seeds)) == 4
    assert torch.equal(torch.get_rng_state(), before)


def test_every_stream_has_a_seed_of_its_own() -> None:
    seeds = [
        derive(purpose, 0, round_, client)
        for purpose in ("order", "training")
        for round_ in range(20)
        for client in range(20)
    ] + [derive("cohort", 0, round_) for round_ in range(20)]
    assert len(set(seeds)) == len(seeds)
