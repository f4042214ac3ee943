"""Pixel baselines: their scores, which data they belong to, and how a report shows them."""

import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch
from made_up import Fill

import syncnorm
from syncnorm.baselines import Problem, score, stratified
from syncnorm.config import Clients, Data, Devices, Domains, Optim, Run, describe
from syncnorm.data import make_federated_dataset
from syncnorm.errors import UserError
from syncnorm.study import Columns, Curve, Study
from syncnorm.study.baselines import Scored, family_of, problem_of, read_scores, write_scores
from syncnorm.study.report.baselines import baseline_table
from syncnorm.study.report.console import main_table
from syncnorm.study.report.report import write_report
from syncnorm.study.rows import read
from syncnorm.study.run.runner import check_study, run_study
from syncnorm.worlds import world_of


def made_up_problem(samples: int = 200) -> Problem:
    """Two rings, which no straight line separates."""
    rng = np.random.default_rng(0)
    angle, y = rng.uniform(0, 2 * np.pi, samples), np.arange(samples) % 2
    x = (np.stack([np.cos(angle), np.sin(angle)], 1) * (1 + y[:, None])).astype(np.float32)
    half = samples // 2
    return Problem(x[:half], y[:half], x[half:], y[half:], np.full(samples - half, 1 / (samples - half)))


def test_the_kernel_sees_rings_and_the_straight_line_does_not() -> None:
    assert score("svm", made_up_problem()).accuracy == pytest.approx(1.0)
    assert score("nearest", made_up_problem()).accuracy == pytest.approx(1.0)
    assert score("logistic", made_up_problem()).accuracy < 0.7


def test_the_settings_are_chosen_without_test_labels() -> None:
    problem = made_up_problem()
    shuffled = replace(problem, test_y=np.random.default_rng(1).permutation(problem.test_y))
    for name in ("svm", "logistic"):
        assert score(name, problem).settings == score(name, shuffled).settings != ""


def test_the_uci_digits_as_scikit_learn_itself_finds_them() -> None:
    """Scikit-learn's own classifiers, on its own digits, split as `load` splits them."""
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.svm import SVC

    run = Run(data=Data("digits", size=8), world=Devices())
    problem = world_of(run).pixels(run)
    assert problem.train_x.shape == (1437, 192)
    machine = SVC(C=10).fit(problem.train_x, problem.train_y)  # its gamma "scale" is 1 / (F variance)
    found = score("svm", problem)
    assert found.settings.startswith("C 10,")
    assert found.accuracy == pytest.approx(machine.score(problem.test_x, problem.test_y), abs=1e-9)
    neighbour = KNeighborsClassifier(1).fit(problem.train_x, problem.train_y)
    assert score("nearest", problem).accuracy == pytest.approx(neighbour.score(problem.test_x, problem.test_y))


def test_a_limit_keeps_the_shares_of_the_classes() -> None:
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    chosen = stratified(labels, 100)
    assert len(set(chosen)) == 100
    assert np.abs(np.bincount(labels[chosen]) - [60, 30, 10]).max() <= 1


@pytest.mark.usefixtures("registries")
def test_weights_and_the_limit_reach_a_baseline_of_ones_own() -> None:
    seen: list[int] = []

    @syncnorm.register_baseline("ones", limit=10)
    def ones(train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray) -> np.ndarray:
        seen.append(len(train_x))
        return np.ones(len(test_x), dtype=np.int64)

    problem = made_up_problem(12)
    problem = replace(problem, weights=np.array([0.5, 0.3, 0.1, 0.1, 0.0, 0.0]))
    assert score("ones", problem).accuracy == pytest.approx(problem.weights[problem.test_y == 1].sum())
    assert score("ones", made_up_problem(400)).samples == 10
    assert seen == [6, 10]
    syncnorm.register_baseline("short")(lambda train_x, train_y, test_x: train_y[:1])
    with pytest.raises(UserError, match=r"'short' returned labels of shape \(1,\) for 6 test samples"):
        score("short", problem)


def test_domains_weigh_alike_and_unseen_ones_do_not_train() -> None:
    world = Domains(("digits", "digits-photo", "digits-noisy"), unseen=("digits", "digits-photo"))
    run = Run(data=Data(size=8), world=world)
    problem, pool = world_of(run).pixels(run), world_of(run).data(run)
    first, second, third = np.diff(pool.test_starts)
    assert (len(problem.train_y), len(problem.test_y)) == (np.diff(pool.starts)[2], first + second)
    assert np.array_equal(problem.train_x, pool.x[pool.starts[2] :].flatten(1))
    assert problem.weights[:first].sum() == pytest.approx(0.5)
    assert np.ptp(problem.weights[first:]) == 0
    every = Run(data=Data(size=8), world=replace(world, unseen=()))
    problem = world_of(every).pixels(every)
    assert len(problem.train_y) == world_of(every).data(every).starts[-1]
    assert problem.weights[-third:].sum() == pytest.approx(1 / 3)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_clients_count_as_in_their_accuracy(noise: float) -> None:
    """For any answers, the weighted accuracy is the mean over clients of each client's weighted accuracy."""
    world = Clients(count=5, skew="dirichlet_by_class", alpha=0.3, held_out=1, noise=noise)
    run = Run(data=Data("digits", size=8, train_limit=300, test_limit=120), world=world, seed=4)
    problem, people = world_of(run).pixels(run), make_federated_dataset(run.data, world, run.seed)
    assert len(problem.train_y) == sum(len(people.train(client)) for client in range(5))

    def answers(x: torch.Tensor | np.ndarray) -> np.ndarray:
        """A label that depends on the sample's values alone."""
        return (np.abs(np.asarray(x).reshape(len(x), -1)).sum(1) * 10).astype(int) % 10

    tests = [people.test(client) for client in range(5)]
    mean = fmean(float(weights.numpy()[answers(x) == y.numpy()].sum()) for x, y, weights in tests)
    assert problem.weights[answers(problem.test_x) == problem.test_y].sum() == pytest.approx(mean, abs=1e-12)


def test_what_changes_the_problem_and_what_does_not() -> None:
    run = Run(data=Data("digits"), world=Clients(count=5))
    same = [
        replace(run, model="mlp"),
        replace(run, data=replace(run.data, augment="shift")),
        replace(run, world=replace(run.world, method="fedbn", rounds=3)),
    ]
    other = [replace(run, seed=1), replace(run, world=replace(run.world, count=6)), replace(run, data=Data("usps"))]
    problem = problem_of(describe(run))
    assert {problem_of(describe(one)) for one in same} == {problem}
    assert problem not in {problem_of(describe(one)) for one in other}
    assert family_of(describe(other[0])) == family_of(describe(run))


BASE = Run(
    data=Data("digits", size=8, train_limit=64, test_limit=40),
    model="mlp",
    model_options={"width": 8, "depth": 1},
    world=Devices(ranks=1, per_device_batch=32),
    optim=Optim(epochs=1, lr=0.01),
)


def test_a_study_computes_them_once_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = (Curve(x="lr", line="norm"), Columns("norm"))
    study = Study(
        "small", "?", BASE, {"norm": ["bn"], "lr": [0.01, 0.02]}, 1, figures=figures, baselines=("nearest",)
    )
    run_study(study, tmp_path / "out", jobs=1, wandb="off")
    (one,) = read(tmp_path / "out").baselines
    assert (one.baseline, one.used, one.tests) == ("nearest", 64, 40)
    (row, *_) = read(tmp_path / "out").finished
    assert one.fits(row)
    assert not one.fits({**row, "fingerprints": {"samples of the data": "others"}})
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Pixel baselines" in page
    assert "No line reaches the best baseline" in page
    said = main_table(read(tmp_path / "out"), "utf-8")
    assert "No line reaches the best baseline: these networks are not trained well enough to be compared." in said

    monkeypatch.setattr("syncnorm.study.run.baselines.score", None)  # nothing is computed again
    run_study(study, tmp_path / "out", jobs=1, wandb="off")
    assert read_scores(tmp_path / "out") == (one,)


def test_a_baseline_that_nobody_knows_is_refused_before_training() -> None:
    study = Study("small", "?", BASE, {"norm": ["bn"]}, baselines=("smv",))
    with pytest.raises(UserError, match="unknown baseline 'smv': did you mean 'svm'"):
        check_study(study, None, 60)


def scored(accuracy: float, words: str, run: Run) -> Scored:
    problem = problem_of(describe(run))
    return Scored(words, words, problem, "", "", accuracy, 5000, 50000, 10, "C 1", "", 1.0)


def reported(study: Study, fill: Fill, scores: dict[str, float]) -> Path:
    """Return a results folder with these baselines for every seed of the study."""
    folder = fill(replace(study, baselines=tuple(scores)))
    runs = [replace(study.base, seed=seed) for seed in range(study.seeds)]
    write_scores(folder, [scored(value, name, run) for name, value in scores.items() for run in runs])
    return folder


def test_a_report_draws_them_and_warns(study: Study, fill: Fill) -> None:
    wide = Curve("per_device_batch", "norm", where={"per_device_batch": [8, 16, 32], "skew": 0.0})
    study = replace(study, figures=(wide,))
    folder = reported(study, fill, {"svm": 0.99, "nearest": 0.98, "logistic": 0.05})
    results = read(folder)
    view = study.figures[0].collect(results)
    note = view.marks.note(view.points)
    assert "Dashed: pixel baselines" in note
    assert "Not drawn, far below: logistic, 5.0 %." in note
    assert "No line reaches the best baseline: these networks" in note
    figure = view.figure()
    for ax in figure.axes:
        assert [text.get_text() for text in ax.texts] == ["svm 99.0, nearest 98.0"]
    table = baseline_table(results)
    assert table is not None
    assert table.caption.startswith("No line reaches the best baseline")
    assert "svm: trained on 5,000 of 50,000 samples, chose C 1." in table.caption
    write_report(folder)
    records = json.loads((folder / "study.json").read_text())
    assert records["baselines"] == ["svm", "nearest", "logistic"]


def test_a_line_above_them_is_not_warned_of(study: Study, fill: Fill) -> None:
    results = read(reported(study, fill, {"svm": 0.9}))
    view = study.figures[0].collect(results)
    assert "No line reaches" not in view.marks.note(view.points)
    other = replace(study.figures[0], metric="test_loss").collect(results)
    assert not other.marks.at, "they are accuracies"
    table = baseline_table(results)
    assert table is not None
    assert "No line reaches" not in table.caption
