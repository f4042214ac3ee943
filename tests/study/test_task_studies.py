"""Studies of other tasks than classification: the words for their metrics, and plots that ask for accuracy."""

from pathlib import Path

import pytest

from syncnorm.config import Clients, Data, Devices, Optim, Run
from syncnorm.errors import UserError
from syncnorm.study import Columns, Curve, Profile, Study, run_study
from syncnorm.study.plan.spec import expand
from syncnorm.study.report.analysis.labels import IN_NATS, MAIN, SCORES, metric_label
from syncnorm.study.report.plots.check import check_plots
from syncnorm.study.rows import read
from syncnorm.tasks import TASKS

BASE = Run(
    data=Data("shapes-photo", size=16, train_limit=32, test_limit=16),
    model="unet",
    model_options={"depth": 2},
    world=Devices(global_batch=8),
    optim=Optim(epochs=1),
    task="segmentation",
)


@pytest.mark.parametrize(
    ("name", "kind", "title"),
    [
        ("mean_iou", "devices", "Mean IoU (%)"),
        ("mean_iou_pooled", "devices", "Mean IoU pooled (%)"),
        ("dataset_iou", "devices", "Mean IoU of all images together (%)"),
        ("position_accuracy", "devices", "Accuracy of positions (%)"),
        ("mean_iou", "clients", "Mean IoU, mean over clients (%)"),
        ("client_mean_iou_worst", "clients", "Mean IoU of the worst client (%)"),
        ("client_f1_std", "clients", "Standard deviation of F1 between clients (percentage points)"),
        ("global_r2", "clients", "R² of the global model"),
        ("f1", "domains", "F1 on unseen domains (%)"),
        ("r2_north", "domains", "R² on north"),
        ("mse", "devices", "Mean squared error"),
        ("accuracy", "devices", "Accuracy (%)"),
        ("effective_samples", "devices", "Effective samples per channel"),
    ],
)
def test_metrics_of_tasks_have_words_and_units(name: str, kind: str, title: str) -> None:
    assert metric_label(name, kind).title == title


def test_what_is_better() -> None:
    better = {"mean_iou": True, "f1": True, "r2": True, "mse": False, "client_r2_std": None, "loss": False}
    assert {name: metric_label(name).higher_is_better for name in better} == better
    assert metric_label("loss", nats=False).title == "Loss"
    assert metric_label("loss").title == "Loss (nats)"


def test_every_built_in_task_has_its_words() -> None:
    built_in = {name: TASKS[name] for name in TASKS if TASKS.source(name) is None}
    assert {task.metric for task in built_in.values()} == set(MAIN)
    assert {name for task in built_in.values() for name in (task.metric, *task.also)} == set(SCORES)
    assert set(built_in) - set(IN_NATS) == {"regression"}


@pytest.mark.parametrize("world", [Devices(global_batch=8), Clients(count=2, rounds=1)])
def test_a_plot_of_accuracy_is_refused_before_training(world: Devices | Clients) -> None:
    study = Study("s", "?", BASE, {"world": [world], "norm": ["bn", "gn"]}, seeds=1, figures=(Columns("norm"),))
    with pytest.raises(UserError, match="unknown metric 'accuracy'"):
        check_plots(study, expand(study))


def test_a_study_of_segmentation_from_runs_to_page(tmp_path: Path) -> None:
    figures = (
        Curve("per_device_batch", "norm", panel="natural_skew", metric="mean_iou"),
        Profile("per_device_batch", metric="effective_samples", panel="natural_skew", where={"norm": "bn"}),
    )
    vary = {"norm": ["bn", "gn"], "per_device_batch": [1, 8], "natural_skew": [100]}
    study = Study("shapes", "?", BASE, vary, seeds=1, figures=figures)
    run_study(study, tmp_path, jobs=1, wandb="off")
    assert len(read(tmp_path).finished) == 4
    page = (tmp_path / "report.html").read_text()
    assert "Mean IoU (%) by images per device" in page or "Mean IoU (%) by samples per device" in page
    assert "group-sorted data 100 %" in page
    assert "Effective samples per channel" in page
