"""Validation in every world, and the model that it chooses: nothing of it reads the test set."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import syncnorm
from syncnorm.config import Clients, Data, Devices, Domains, Execution, Norm, Optim, Run
from syncnorm.data.split import stratified_fifth
from syncnorm.devices.measure import measure
from syncnorm.devices.prepare import prepare
from syncnorm.devices.training import train
from syncnorm.domains import world as domains_world
from syncnorm.errors import UserError
from syncnorm.training.evaluation import evaluate
from syncnorm.training.saved import load_model
from syncnorm.training.selection import Best
from syncnorm.worlds import check, fit, forget, world_of

pytestmark = pytest.mark.usefixtures("registries")
BASE = Run(
    data=Data("planted", validation=0.25),
    model="mlp",
    optim=Optim(lr=0.2, epochs=5, schedule="constant", warmup=0.0, weight_decay=0.0),
    world=Devices(ranks=2, per_device_batch=8),
    select="best",
)
RUNS = {
    "devices": BASE,
    "devices, copies": replace(BASE, norm=Norm("cbn", {"window": 2})),
    "domains": replace(BASE, world=Domains(("left", "right"), batch=16), norm=Norm("domain_bn")),
    "clients": replace(BASE, world=Clients(count=3, rounds=5, batch=8, method="fedbn", engine="loop")),
}
SAMPLES = 240


def plant(register: Callable[..., Any], shuffled: bool) -> None:
    """Register data of three classes in noise; `shuffled` permutes the test labels, of the whole by its split."""
    rng = np.random.default_rng(0)
    y = np.arange(SAMPLES) % 3
    x = rng.normal(0, 1.5, (SAMPLES, 6)) + np.eye(6)[y] * 2
    domain = np.array(["left", "right"])[np.arange(SAMPLES) // 3 % 2]
    train, test = stratified_fifth(y)
    labels = rng.permutation(y[test]) if shuffled else y[test]
    parts = tuple(
        {"x": x[index], "y": classes, "natural": domain[index]}
        for index, classes in ((train, y[train]), (test, labels))
    )
    register("planted")(lambda: parts)
    forget()


def outcome(run: Run, folder: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    forget()
    result = fit(run, Execution(model=folder))
    return result, load_model(folder).model.state_dict()


@pytest.mark.parametrize("name", RUNS)
def test_the_choice_is_the_same_with_the_test_labels_shuffled(name: str, tmp_path: Any) -> None:
    run = RUNS[name]
    plant(syncnorm.register_data, shuffled=False)
    plain, weights = outcome(run, tmp_path / "plain")
    syncnorm.data.SOURCES._items.pop("planted")  # type: ignore[attr-defined]
    plant(syncnorm.register_data, shuffled=True)
    shuffled, others = outcome(run, tmp_path / "shuffled")
    chosen = [run.world.step, "validation_accuracy", "validation_loss"]
    assert [plain.metrics[one] for one in chosen] == [shuffled.metrics[one] for one in chosen]
    assert plain.history["validation_accuracy"] == shuffled.history["validation_accuracy"]
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[one], others[one]) for one in weights)
    assert plain.metrics["accuracy"] != shuffled.metrics["accuracy"]  # else nothing was shuffled


@pytest.mark.parametrize("name", RUNS)
def test_the_best_is_the_model_of_its_epoch(name: str, tmp_path: Any) -> None:
    """Against a run that ends there: with a constant learning rate it trains the same up to then."""
    plant(syncnorm.register_data, shuffled=False)
    run = RUNS[name]
    best, weights = outcome(run, tmp_path / "best")
    accuracies = best.history["validation_accuracy"]
    step = int(np.argmax(accuracies)) + 1
    assert len(accuracies) == 5
    assert best.metrics[run.world.step] == step
    assert best.metrics["validation_accuracy"] == pytest.approx(max(accuracies), abs=1e-12)
    if isinstance(run.world, Clients):
        shorter = replace(run, world=replace(run.world, rounds=step))
    else:
        shorter = replace(run, optim=replace(run.optim, epochs=step))
    last, expected = outcome(replace(shorter, select="last"), tmp_path / "last")
    assert all(torch.equal(weights[one], expected[one]) for one in expected)
    for metric in ("accuracy", "validation_accuracy", "validation_loss"):
        assert best.metrics[metric] == last.metrics[metric], metric
    assert run.world.step not in last.metrics
    assert "validation_accuracy" not in last.history or isinstance(run.world, Domains)


@pytest.mark.parametrize("name", RUNS)
def test_it_looks_as_often_as_evaluate_every_says(name: str) -> None:
    plant(syncnorm.register_data, shuffled=False)
    every = fit(RUNS[name])
    some = fit(replace(RUNS[name], evaluate_every=2))
    assert some.history["accuracy_at"] == [2, 4, 5]
    seen = [every.history["validation_accuracy"][step - 1] for step in (2, 4, 5)]
    assert some.history["validation_accuracy"] == seen
    assert some.metrics[RUNS[name].world.step] == (2, 4, 5)[int(np.argmax(seen))]


@pytest.mark.parametrize("name", RUNS)
def test_validation_is_named_where_there_is_one_and_only_there(name: str) -> None:
    plant(syncnorm.register_data, shuffled=False)
    run = RUNS[name]
    names = ["validation_accuracy", "validation_loss"]
    for one, expected in (
        (run, [*names, run.world.step]),
        (replace(run, select="last"), names),
        (replace(run, select="last", data=replace(run.data, validation=0.0)), []),
    ):
        found = fit(one).metrics
        possible = {*names, run.world.step}
        assert possible & set(world_of(one).metrics(one)) == possible & set(found) == set(expected)


def test_devices_are_validated_as_they_are_tested() -> None:
    """The validation metrics are those of the resulting model on exactly the validation samples."""
    plant(syncnorm.register_data, shuffled=False)
    run = replace(BASE, select="last", world=Devices(ranks=2, per_device_batch=8, buffers="pooled"))
    prepared = prepare(run, torch.device("cpu"))
    classifier, _ = train(run, prepared, None)
    data = prepared.data
    metrics, *_ = measure(run, classifier.model, data)
    expected = evaluate(classifier.model, data.validation_x, data.validation_y)  # `measure` has set the statistics
    result = fit(run)
    assert result.metrics["accuracy"] == metrics["accuracy"]
    assert (result.metrics["validation_accuracy"], result.metrics["validation_loss"]) == expected
    assert len(data.validation_y) == 48


def test_domains_are_validated_as_they_are_used() -> None:
    """With the run's adaptation, while the epoch is chosen without: runs that differ in it share one training."""
    plant(syncnorm.register_data, shuffled=False)
    run = replace(RUNS["domains"], norm=Norm("bn"))
    plain = fit(run)
    adapted = fit(replace(run, world=replace(run.world, adapt="adabn")))
    assert adapted.metrics["epoch"] == plain.metrics["epoch"]
    assert adapted.history == plain.history
    assert adapted.metrics["validation_loss"] != plain.metrics["validation_loss"]
    prepared = domains_world.prepare(run, torch.device("cpu"))
    assert [len(prepared.pool.validation_y[prepared.pool.validations(k)]) for k in (0, 1)] == [24, 24]


def test_a_choice_without_validation_is_refused_before_anything_is_loaded() -> None:
    for run in RUNS.values():
        without = replace(run, data=Data("none-such"))
        for function in (fit, check):
            with pytest.raises(UserError, match=r"select is best but data\.validation is 0.*set data\.validation"):
                function(without)
        with pytest.raises(UserError, match=r"data\.validation is 1.5: it must be from 0 to below 1"):
            check(replace(run, data=Data("none-such", validation=1.5)))


def test_the_first_of_equally_good_models_is_kept_with_all_its_state() -> None:
    model, best = nn.BatchNorm1d(2), Best()
    for epoch, accuracy in enumerate((0.5, 0.75, 0.75, 0.25), 1):
        model.running_mean.fill_(epoch)  # type: ignore[union-attr]
        model.weight.data.fill_(-epoch)
        best.offer(epoch, accuracy, model)
    known = Best()
    known.recall(best.remember())
    known.restore(model)
    assert known.epoch == 2
    assert model.running_mean.tolist() == [2, 2]  # type: ignore[union-attr]
    assert model.weight.tolist() == [-2, -2]
