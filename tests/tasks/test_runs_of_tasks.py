"""Every task in every world: rows have its own metrics, and what cannot work is said before training."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import syncnorm
from syncnorm.config import Clients, Data, Devices, Domains, Execution, Norm, Optim, Run, describe, run_from, run_id
from syncnorm.data import load, make_federated_dataset
from syncnorm.errors import UserError
from syncnorm.tasks import Task, task_named
from syncnorm.training.evaluation import evaluate
from syncnorm.training.saved import load_model
from syncnorm.worlds import check, fit, world_of

RNG = np.random.default_rng(0)
X = RNG.standard_normal((120, 6)).astype(np.float32)
SITES = np.arange(120) % 3
TARGETS = {
    "regression": X[:, :2] @ np.array([[1.0, 0.5], [-0.5, 1.0]]),
    "multi_label": (X[:, :3] > 0).astype(int),
}


@pytest.fixture(autouse=True)
def data(registries: None) -> None:
    @syncnorm.register_data("points")
    def points(kind: str) -> dict[str, object]:
        return {"x": X, "y": TARGETS[kind], "domain": np.array(["a", "b", "c"])[SITES]}


def run_of(task: str, **fields: object) -> Run:
    """Return a short run of a task in the devices world."""
    if task == "segmentation":
        data = Data("shapes-photo", size=16, train_limit=80, test_limit=24)
        base = Run(data=data, model="unet", optim=Optim(epochs=1), task=task)
    else:
        data = Data("points", options={"kind": task})
        base = Run(data=data, model="mlp", model_options={"width": 8}, optim=Optim(epochs=3), task=task)
    return replace(base, **{"world": Devices(ranks=2, per_device_batch=4), **fields})


NAMES = {
    "segmentation": ("mean_iou", ["dataset_iou", "position_accuracy"]),
    "multi_label": ("f1", ["label_accuracy"]),
    "regression": ("r2", ["mse"]),
}


@pytest.mark.parametrize("task", NAMES)
def test_devices(task: str, tmp_path) -> None:
    run, (main, others) = run_of(task, evaluate_every=1), NAMES[task]
    result = fit(run, Execution(model=tmp_path))
    names = world_of(run).metrics(run)
    assert set(result.metrics) <= set(names)
    assert len(set(names)) == len(names)
    assert {main, f"{main}_rank0", f"{main}_pooled", "loss", *others} <= set(result.metrics)
    assert result.history[main][-1] == result.metrics[main]
    assert not any("accuracy" in name for name in result.metrics if name not in others)
    loaded, data = load_model(tmp_path), load(run.data.name, **loading(run))
    assert loaded.accuracy == result.metrics[main]
    found = evaluate(loaded.model, data.test_x, data.test_y, task=task)
    assert found == (result.metrics[main], result.metrics["loss"])


def loading(run: Run) -> dict[str, object]:
    data = run.data
    limits = {"size": data.size, "train_limit": data.train_limit, "test_limit": data.test_limit}
    return {**limits, "options": data.options, "task": run.task}


@pytest.mark.parametrize("task", NAMES)
@pytest.mark.parametrize("skew", ["iid", "dirichlet_by_class"])
def test_clients(task: str, skew: str) -> None:
    """Both engines train any task alike."""
    main, others = NAMES[task]
    world = Clients(count=2, rounds=2, local_steps=2, batch=8, skew=skew, alpha=None if skew == "iid" else 2.0)
    losses = []
    for engine in ("cohort", "loop"):
        run = run_of(task, world=replace(world, engine=engine), precision="float64")
        result = fit(run)
        assert set(result.metrics) <= set(world_of(run).metrics(run))
        assert {main, f"client_{main}_worst", f"global_{main}", *others} <= set(result.metrics)
        losses.append([result.metrics[name] for name in (main, "loss", "train_loss", f"global_{main}")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-8)


def test_skew_of_clients_goes_by_strata() -> None:
    run = run_of("regression", world=Clients(count=10, skew="sorted", skew_options={"percent": 100.0}))
    made = make_federated_dataset(run.data, run.world, 0, task=run.task)
    means = [made.y[made.train(client)].mean().item() for client in range(10)]
    assert means == sorted(means)
    assert all(made.histogram(client).count_nonzero() <= 2 for client in range(10))


@pytest.mark.parametrize("task", ["regression", "multi_label"])
def test_domains(task: str) -> None:
    main, _ = NAMES[task]
    world = Domains(("a", "b", "c"), unseen=("c",), batch=8, adapt="adabn")
    run = run_of(task, world=world)
    result = fit(run)
    assert set(result.metrics) <= set(world_of(run).metrics(run))
    assert {main, f"{main}_seen", f"{main}_c"} <= set(result.metrics)
    assert len(result.history[f"unseen_{main}"]) == 3
    with pytest.raises(UserError, match="adaptation 'tent' reads logits of classes"):
        check(replace(run, world=replace(world, adapt="tent")))


@pytest.mark.parametrize(
    ("task", "world"),
    [
        ("segmentation", Devices(ranks=2, per_device_batch=4)),
        ("segmentation", Clients(count=2, rounds=2, local_steps=1, batch=8)),
        ("regression", Clients(count=2, rounds=2, local_steps=1, batch=8)),
        ("multi_label", Domains(("a", "b", "c"), unseen=("c",), batch=8)),
    ],
)
def test_validation_is_by_the_tasks_metric(task: str, world: object) -> None:
    run = run_of(task, world=world, select="best", optim=Optim(epochs=2))
    run = replace(run, data=replace(run.data, validation=0.25))
    main, result = NAMES[task][0], fit(run)
    names = {f"validation_{main}", "validation_loss"}
    assert names <= set(result.metrics) <= set(world_of(run).metrics(run))
    assert len(result.history[f"validation_{main}"]) == 2
    assert f"validation_{main}" in world_of(run).histories(run)
    best = max(result.history[f"validation_{main}"])
    assert result.metrics[f"validation_{main}"] == pytest.approx(best, abs=1e-6)


def test_training_lowers_the_loss_of_the_task() -> None:
    short = fit(run_of("regression", optim=Optim(epochs=1, lr=0.05)))
    long = fit(run_of("regression", optim=Optim(epochs=30, lr=0.05)))
    assert long.metrics["r2"] > 0.8 > short.metrics["r2"]


def test_the_task_is_part_of_the_id_and_old_ids_stay() -> None:
    run = run_of("segmentation")
    assert run_id(run_from(describe(run))) == run_id(run)
    assert run_id(run) != run_id(replace(run, task="regression"))
    assert "task" not in describe(Run())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"task": "classification"},
            "or set task (to segmentation, multi_label or regression, say). Its targets are",
        ),
        ({"task": "segmentatio"}, "unknown task 'segmentatio': did you mean 'segmentation'"),
        ({"task": "regression"}, "regression needs numbers as targets"),
        ({"model": "small_cnn"}, "must return for task segmentation, (2, 5, 16, 16)"),
        ({"model_options": {"depth": 5}}, "images of 16 x 16 cannot be halved 5 times"),
        ({"data": Data("shapes-photo", size=16, augment="shift")}, "would have to move with them: write none"),
        ({"data": Data("digits")}, "segmentation needs the class of each position"),
    ],
)
def test_mistakes_get_a_sentence(change: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        check(replace(run_of("segmentation"), **change))
    assert sentence in str(caught.value)


def all_labels() -> list[int]:
    data = load("digits")
    return torch.cat([data.train_y, data.test_y]).tolist()


def test_digits_may_be_regressed() -> None:
    """Labels are numbers, and a task of numbers takes them."""
    data = load("digits", task="regression")
    assert sorted(torch.cat([data.train_y, data.test_y])[:, 0].tolist()) == sorted(all_labels())
    assert (data.classes, data.train_y.shape[1]) == (1, 1)


class Broken(Task):
    metric = "score"

    def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs - targets).square().mean()

    def scores(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return outputs[:, 7]


class Crash(Broken):
    def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        raise ValueError("oh")


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (Broken, "task 'own', losses: it returned (), and must return one number a sample, (N,)"),
        (Crash, "task 'own', losses: "),
    ],
)
@pytest.mark.parametrize("world", [Devices(2, 4), Clients(count=2), Domains(("a", "b"), batch=8)])
def test_a_broken_task_is_found_before_training(made: type[Task], sentence: str, world: object) -> None:
    syncnorm.register_task("own")(made)
    with pytest.raises(UserError) as caught:
        check(replace(run_of("regression", world=world), task="own"))
    assert sentence in str(caught.value)


def test_devices_of_their_own_scenes() -> None:
    """Sorted by the natural column, each of 8 devices has one scene; the labels have no say."""
    from syncnorm.devices.prepare import prepare

    run = run_of("segmentation", world=Devices(ranks=8, per_device_batch=1, natural_skew=100))
    run = replace(run, data=Data("shapes-photo", size=16), norm=Norm("sync_bn"))
    prepared = prepare(run, torch.device("cpu"))
    scenes = torch.from_numpy(prepared.data.natural.train)
    assert [scenes[shard].unique().tolist() for shard in prepared.shards] == [[k] for k in range(8)]
    mixed = prepare(replace(run, world=replace(run.world, natural_skew=0.0)), torch.device("cpu"))
    assert all(len(scenes[shard].unique()) == 8 for shard in mixed.shards)
    with pytest.raises(UserError, match=r"natural_skew is 100, and data set 'digits' has no column"):
        check(Run(data=Data("digits"), world=run.world))
    with pytest.raises(UserError, match="both sort the training data: set one of them to 0"):
        check(replace(run, world=replace(run.world, skew=50)))
    with pytest.raises(UserError, match=r"world\.natural_skew is 101: it must be from 0 to 100"):
        check(replace(run, world=replace(run.world, natural_skew=101)))
    assert task_named("segmentation").strata(prepared.data.train_y).equal(prepared.data.strata)
