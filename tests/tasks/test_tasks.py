"""Losses and metrics of every task against references written out, and what targets a task takes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, f1_score, jaccard_score, log_loss, r2_score

import syncnorm
from syncnorm.errors import UserError
from syncnorm.tasks import TASKS, task_named
from syncnorm.training.evaluation import score_and_loss

GENERATOR = torch.Generator().manual_seed(0)
N, K = 12, 4


def random_case(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs and targets in float64, of a model that is right in part."""
    if name == "classification":
        targets = torch.randint(K, (N,), generator=GENERATOR)
        return torch.randn(N, K, generator=GENERATOR).double() + 2 * F.one_hot(targets, K), targets
    if name == "segmentation":
        targets = torch.randint(K - 1, (N, 5, 6), generator=GENERATOR)  # class 3 is predicted, and in no target
        targets[0] = 0
        right = 2 * F.one_hot(targets, K).movedim(-1, 1)
        return torch.randn(N, K, 5, 6, generator=GENERATOR).double() + right, targets
    if name == "multi_label":
        targets = torch.randint(2, (N, K), generator=GENERATOR)
        targets[0] = 0
        outputs = torch.randn(N, K, generator=GENERATOR).double() + targets
        outputs[0] = -1
        return outputs, targets
    targets = torch.randn(N, K, generator=GENERATOR).double()
    return targets + 0.3 * torch.randn(N, K, generator=GENERATOR).double(), targets


def mean_iou(said: np.ndarray, true: np.ndarray) -> float:
    present = np.union1d(said, true)
    return float(jaccard_score(true.ravel(), said.ravel(), labels=present, average="macro"))


def expected(name: str, outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    """Scikit-learn's numbers."""
    out, y = outputs.numpy(), targets.numpy()
    if name == "classification":
        return {"accuracy": accuracy_score(y, out.argmax(1)), "loss": log_loss(y, outputs.softmax(1).numpy())}
    if name == "segmentation":
        said, p = out.argmax(1), outputs.softmax(1).movedim(1, -1).reshape(-1, K).numpy()
        return {
            "mean_iou": float(np.mean([mean_iou(one, true) for one, true in zip(said, y, strict=True)])),
            "dataset_iou": mean_iou(said, y),
            "position_accuracy": accuracy_score(y.ravel(), said.ravel()),
            "loss": log_loss(y.ravel(), p, labels=range(K)),
        }
    if name == "multi_label":
        p = outputs.sigmoid().numpy()
        return {
            "f1": f1_score(y, out > 0, average="samples", zero_division=1.0),
            "label_accuracy": accuracy_score(y.ravel(), (out > 0).ravel()),
            "loss": log_loss(y.ravel(), p.ravel()),
        }
    return {"r2": r2_score(y, out), "mse": float(((out - y) ** 2).mean()), "loss": float(((out - y) ** 2).mean())}


BUILT_IN = ["classification", "segmentation", "multi_label", "regression"]


@pytest.mark.parametrize("name", BUILT_IN)
def test_numbers_are_scikit_learns(name: str) -> None:
    task, (outputs, targets) = task_named(name), random_case(name)
    score, loss = score_and_loss(name, outputs, targets)
    found = {task.metric: score, **task.more(outputs, targets), "loss": loss}
    assert found == pytest.approx(expected(name, outputs, targets), rel=1e-12)
    assert {task.metric, *task.also, "loss"} == set(found)
    assert outputs.shape == task.output_shape(targets, K)


@pytest.mark.parametrize("name", BUILT_IN)
def test_loss_and_metric_are_means_over_samples_and_may_be_weighted(name: str) -> None:
    """The mean of two halves is the whole's, except R^2, whose variance is the whole's."""
    task, (outputs, targets) = task_named(name), random_case(name)
    losses, scores = task.losses(outputs, targets), task.scores(outputs, targets)
    assert losses.shape == scores.shape == (N,)
    assert task.loss(outputs, targets).item() == pytest.approx(losses.mean().item(), rel=1e-12)
    first = slice(0, N // 2)
    torch.testing.assert_close(task.losses(outputs[first], targets[first]), losses[first], rtol=1e-12, atol=0)
    weights = torch.rand(N, generator=GENERATOR).double()
    weights /= weights.sum()
    weighted = score_and_loss(name, outputs, targets, weights)
    assert weighted == pytest.approx(((weights * scores).sum().item(), (weights * losses).sum().item()), rel=1e-12)


def test_a_perfect_regression_of_a_constant_counts_one() -> None:
    y = torch.full((5, 1), 3.0)
    assert task_named("regression").scores(y, y).tolist() == [1.0] * 5
    assert task_named("regression").scores(y + 1, y).tolist() == [0.0] * 5


STRATA = {
    "segmentation": ([[[0, 0], [2, 1]], [[0, 0], [2, 2]], [[0, 0], [0, 0]], [[1, 1], [1, 0]]], [1, 2, 0, 1]),
    "multi_label": ([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 1], [0, 0, 1]], [1, 0, 3, 2, 2]),
    "classification": ([2, 0, 1], [2, 0, 1]),
}


@pytest.mark.parametrize("name", STRATA)
def test_strata(name: str) -> None:
    targets, strata = STRATA[name]
    assert task_named(name).strata(torch.tensor(targets)).tolist() == strata


def test_strata_of_regression_are_tenths_of_all_samples() -> None:
    y = torch.randn(50, 1, generator=GENERATOR)
    train, test = task_named("regression").stratify(y[:30], y[30:])
    both = torch.cat([train, test])
    assert torch.bincount(both).tolist() == [5] * 10
    assert torch.equal(both[y[:, 0].argsort()], torch.arange(50) // 5)
    assert len(task_named("regression").strata_names(("a",))) == 10


@pytest.mark.parametrize(
    ("name", "values", "sentence"),
    [
        ("segmentation", np.zeros(4, int), "targets have shape () a sample: segmentation needs the class of each"),
        ("segmentation", np.full((4, 2, 2), -1), "segmentation needs whole numbers from 0"),
        ("segmentation", np.full((4, 2, 2), 0.5), "segmentation needs whole numbers from 0"),
        ("multi_label", np.zeros(4, int), "multi_label needs one number a label"),
        ("multi_label", np.full((4, 2), 2), "multi_label needs one number a label"),
        ("regression", np.zeros((4, 2, 2)), "regression needs numbers as targets"),
        ("regression", np.array(["a", "b"]), "regression needs numbers as targets"),
        ("regression", np.array([0.0, np.nan]), "the target of sample 1 is not finite"),
        ("classification", np.zeros((4, 2, 2), int), "give one class a sample, its number or its name, or set task"),
        (
            "classification",
            np.array([0.5, 1.5]),
            "turn measured values into classes first, or set task to regression",
        ),
    ],
)
def test_targets_that_a_task_cannot_learn_get_a_sentence(name: str, values: np.ndarray, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        task_named(name).read({"train": values, "test": values}, "data set 'mine'")
    assert sentence in str(caught.value)
    assert "data set 'mine'" in str(caught.value)


def test_targets_are_kept_as_their_task_needs_them() -> None:
    y, names = task_named("regression").read({"whole": np.array([1, 2, 4])}, "mine")
    assert (y["whole"].dtype, y["whole"].tolist(), names) == (np.float32, [[1.0], [2.0], [4.0]], ("0",))
    y, names = task_named("segmentation").read({"whole": np.array([[[0, 3]]], dtype=np.uint8)}, "mine")
    assert (y["whole"].dtype, y["whole"].shape, names) == (np.int64, (1, 1, 2), ("0", "1", "2", "3"))
    with pytest.raises(UserError, match="mine has 2 class names for 4 outputs: name each"):
        task_named("segmentation").read({"whole": np.array([[[0, 3]]])}, "mine", ("a", "b"))
    with pytest.raises(UserError, match=r"training targets have shape \(2,\) and test targets \(3,\)"):
        task_named("regression").read({"train": np.zeros((4, 2)), "test": np.zeros((4, 3))}, "mine")


class Half(syncnorm.Task):
    metric = "near"

    def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs - targets).abs().mean(1)

    def scores(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return ((outputs - targets).abs() < 0.5).float().mean(1)


@pytest.mark.usefixtures("registries")
def test_a_task_is_registered_by_its_class() -> None:
    assert syncnorm.register_task("half")(Half) is Half
    assert isinstance(task_named("half"), Half)
    assert TASKS.source("half") is not None
    with pytest.raises(UserError, match="task 'segmentation' is registered already"):
        syncnorm.register_task("segmentation")(Half)
    with pytest.raises(UserError, match="unknown task 'segmentatoin': did you mean 'segmentation'"):
        task_named("segmentatoin")


def without(name: str) -> type:
    kept = {key: value for key, value in vars(Half).items() if key in {"metric", "losses", "scores"} - {name}}
    return type("Mine", (syncnorm.Task,), kept)


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (Half(), "register a class derived from syncnorm.Task"),
        (dict, "register a class derived from syncnorm.Task"),
        (without("metric"), "has the metric None: write metric ="),
        (without("losses"), "has no function losses: define losses(self, outputs, targets)"),
        (without("scores"), "has no function scores"),
    ],
)
def test_what_is_no_task_is_refused(made: object, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        syncnorm.register_task("mine")(made)
    assert sentence in str(caught.value)
