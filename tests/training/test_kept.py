"""A training is done once: runs that differ in their evaluation alone share it, in every world."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from syncnorm.config import Clients, Data, Devices, Domains, Optim, Run, training_of
from syncnorm.worlds import fit, forget

SMALL = Run(
    data=Data("digits", size=8, train_limit=120, test_limit=60), model_options={"width": 2}, optim=Optim(epochs=1)
)
CLIENTS = Clients(count=4, participation=0.5, rounds=2, engine="loop", method="fedbn")
DOMAINS = Domains(("digits", "digits-noisy"), batch=16)
CASES: list[tuple[Any, dict[str, Any], str]] = [
    (Devices(ranks=4, per_device_batch=4), {"buffers": "pooled"}, "syncnorm.devices.training.train"),
    (CLIENTS, {"unsampled": "average", "global_norm": "pooled"}, "syncnorm.federated.world._play"),
    (DOMAINS, {"adapt": "adabn", "test_batch": 20}, "syncnorm.domains.world.train"),
]


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    forget()
    yield
    forget()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> list[str]:
    """Count the trainings of a world."""
    home, _, name = request.param.rpartition(".")
    module = __import__(home, fromlist=[name])
    train, calls = getattr(module, name), []

    def spy(*arguments: Any, **options: Any) -> Any:
        calls.append(name)
        return train(*arguments, **options)

    monkeypatch.setattr(module, name, spy)
    return calls


@pytest.mark.parametrize(
    ("world", "other", "counted"), CASES, indirect=["counted"], ids=["devices", "clients", "domains"]
)
def test_runs_that_differ_in_evaluation_share_a_training(
    world: Any, other: dict[str, Any], counted: list[str]
) -> None:
    first, second = replace(SMALL, world=world), replace(SMALL, world=replace(world, **other))
    before, shared = fit(first), fit(second)
    assert len(counted) == 1
    again = fit(replace(first, seed=0))
    assert len(counted) == 2, "the same run is trained again"
    assert again.metrics == before.metrics, "evaluating the other has changed nothing"
    forget()
    alone = fit(second)
    assert len(counted) == 3
    assert shared.metrics == alone.metrics
    assert shared.history == alone.history
    assert {**shared.details, "profiles": None} == {**alone.details, "profiles": None}
    assert shared.evaluated_by == alone.evaluated_by
    assert shared.run_id != before.run_id
    assert shared.metrics != before.metrics or shared.evaluated_by != before.evaluated_by


@pytest.mark.parametrize(("world", "other", "_where"), CASES[:2], ids=["devices", "clients"])
def test_a_run_that_is_watched_while_it_trains_shares_with_none(
    world: Any, other: dict[str, Any], _where: str
) -> None:
    """Its history, and its choice of an epoch or round, read these settings."""
    one, two = (replace(SMALL, world=each) for each in (world, replace(world, **other)))
    assert training_of(one) == training_of(two)
    one, two = replace(one, evaluate_every=1), replace(two, evaluate_every=1)
    assert training_of(one) != training_of(two)


def test_another_training_is_not_shared() -> None:
    for change in ({"seed": 1}, {"model": "resnet20"}, {"optim": Optim(lr=0.3)}):
        assert training_of(replace(SMALL, **change)) != training_of(SMALL)
