"""Pixel baselines: classifiers of scikit-learn on plain samples, which any network should beat or reach.

A network below them is not trained well enough to be compared with others. A study names them in `Study.baselines`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from syncnorm.errors import UserError, with_article
from syncnorm.registry import Registry, check_named
from syncnorm.seeds import derive

Rows = NDArray[np.float32]
"""Samples as rows of numbers: (N, F)."""
Labels = NDArray[np.int64]
"""(N,)."""
Answer = Labels | tuple[Labels, str]
"""The labels of the test samples, with or without a text that says which settings were chosen."""
Made = TypeVar("Made", bound=Callable[..., Answer])

CHOOSING = 2000
"""Settings are chosen on at most this many training samples, of which a fifth is held out."""
COSTS, WIDTHS = (10.0, 1.0, 100.0), (1.0, 0.25, 4.0)
"""Values of the SVM's C; and of its gamma, in units of 1 / (F * variance of the samples). Of equal ones the first."""
PENALTIES = (0.01, 0.001, 0.1, 1.0)
"""Values of logistic regression's C."""


@dataclass(frozen=True, eq=False)
class Problem:
    """A run's samples as rows of numbers, and the weights by which its accuracy counts its test samples.

    `train_x`, `test_x`: float32 (N, F) and (M, F), as networks get them, flattened; `train_y`, `test_y`: int64 (N,)
    and (M,); `weights`: float64 (M,), which sum to 1. A test sample may be there several times. The accuracy is

        sum_i weights_i [answer_i = test_y_i]
    """

    train_x: Rows
    train_y: Labels
    test_x: Rows
    test_y: Labels
    weights: NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """What a baseline reached."""

    accuracy: float
    samples: int
    """Number of training samples that it used."""
    settings: str
    """The settings that it chose; may be empty."""


@dataclass(frozen=True)
class Baseline:
    """A row of `BASELINES`."""

    function: Callable[[Rows, Labels, Rows], Answer]
    """Takes training samples, their labels and test samples; returns the test samples' labels."""
    words: str
    """Its name in figures, e.g. "RBF-SVM"."""
    limit: int
    """It is given at most this many training samples, stratified by class."""


def rbf_svm(train_x: Rows, train_y: Labels, test_x: Rows) -> Answer:
    """Support-vector machine with the kernel exp(-gamma |x - z|^2).

    C and gamma are the best of a grid (`COSTS`, `WIDTHS`) on a fifth of at most `CHOOSING` training samples.
    """
    from sklearn.metrics.pairwise import euclidean_distances
    from sklearn.svm import SVC

    unit = 1 / (train_x.shape[1] * float(train_x.var()) or 1.0)
    fit, held = _held_out(train_y)
    within = euclidean_distances(train_x[fit], squared=True)
    across = euclidean_distances(train_x[held], train_x[fit], squared=True)

    def score(setting: tuple[float, float]) -> float:
        cost, width = setting
        machine = SVC(C=cost, kernel="precomputed").fit(np.exp(-width * unit * within), train_y[fit])
        return float(np.mean(machine.predict(np.exp(-width * unit * across)) == train_y[held]))

    cost, width = _best([*product(COSTS, WIDTHS)], score, train_y[fit])
    kernel = np.exp(-width * unit * euclidean_distances(train_x, squared=True))
    machine = SVC(C=cost, kernel="precomputed").fit(kernel, train_y)
    answers = [
        machine.predict(np.exp(-width * unit * euclidean_distances(part, train_x, squared=True)))
        for part in np.array_split(test_x, -(-len(test_x) // CHOOSING))
    ]
    return np.concatenate(answers), f"C {cost:g}, gamma {width * unit:.2g}"


def nearest_neighbour(train_x: Rows, train_y: Labels, test_x: Rows) -> Answer:
    """Label of the nearest training sample, by Euclidean distance."""
    from sklearn.neighbors import KNeighborsClassifier

    found: Labels = KNeighborsClassifier(1).fit(train_x, train_y).predict(test_x)
    return found


def logistic_regression(train_x: Rows, train_y: Labels, test_x: Rows) -> Answer:
    """Multinomial logistic regression with an L2 penalty.

    C is the best of `PENALTIES` on a fifth of at most `CHOOSING` training samples.
    """
    from sklearn.linear_model import LogisticRegression

    fit, held = _held_out(train_y)

    def score(cost: float) -> float:
        line = LogisticRegression(C=cost, max_iter=300).fit(train_x[fit], train_y[fit])
        return float(np.mean(line.predict(train_x[held]) == train_y[held]))

    cost = _best(PENALTIES, score, train_y[fit])
    found: Labels = LogisticRegression(C=cost, max_iter=300).fit(train_x, train_y).predict(test_x)
    return found, f"C {cost:g}"


BASELINES: Registry[Baseline] = Registry(
    "baseline",
    {
        "svm": Baseline(rbf_svm, "RBF-SVM", limit=5000),
        "nearest": Baseline(nearest_neighbour, "1-NN", limit=20000),
        "logistic": Baseline(logistic_regression, "logistic regression", limit=10000),
    },
)
"""The row of each name; `syncnorm.register_baseline` adds rows."""


def register_baseline(name: str, *, words: str = "", limit: int = 5000) -> Callable[[Made], Made]:
    """Register your own baseline: a decorator for a function.

        @syncnorm.register_baseline("forest", words="random forest")
        def forest(train_x, train_y, test_x):
            return RandomForestClassifier(random_state=0).fit(train_x, train_y).predict(test_x)

    It gets training samples float32 (N, F), their labels int64 (N,), and test samples (M, F), and returns the test
    samples' labels (M,), or a pair of these and a text that says which settings it chose. It never sees test labels.

    Args:
        name: a new name, for `Study.baselines`.
        words: its name in figures; by default `name`.
        limit: it is given at most this many training samples, stratified by class.

    Raises:
        UserError: a name that is taken; something that is no function; a limit below 1.
    """
    check_named(name, "syncnorm.register_baseline")
    if limit < 1:
        raise UserError(f"baseline '{name}': limit is {limit}: it must be at least 1.")

    def register(function: Made) -> Made:
        if not callable(function):
            raise UserError(f"baseline '{name}' is {with_article(type(function).__name__)}: register a function.")
        BASELINES.add(name, Baseline(function, words or name, limit))
        return function

    return register


def score(name: str, problem: Problem) -> Score:
    """Return what the baseline `name` reaches on a problem; the same problem always gives the same score.

    Raises:
        UserError: an unknown name; scikit-learn is missing; answers of another number than the test samples.
    """
    row = BASELINES[name]
    chosen = stratified(problem.train_y, min(row.limit, len(problem.train_y)))
    train_x, train_y = problem.train_x[chosen], problem.train_y[chosen]
    if len(np.unique(train_y)) == 1:
        answer: Any = np.full(len(problem.test_y), train_y[0])
    else:
        answer = _answer(name, row, train_x, train_y, problem.test_x)
    labels, settings = answer if isinstance(answer, tuple) else (answer, "")
    labels = np.asarray(labels)
    if labels.shape != problem.test_y.shape:
        raise UserError(
            f"baseline '{name}' returned labels of shape {labels.shape} for {len(problem.test_y)} test samples: "
            "return one label a sample."
        )
    return Score(float(problem.weights[labels == problem.test_y].sum()), len(chosen), str(settings))


def stratified(labels: Labels, count: int) -> NDArray[np.int64]:
    """Return the indices of `count` samples, with each class's share as in all, up to rounding; drawn by seed 0."""
    order = np.random.default_rng(derive("baseline", 0)).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    chosen: NDArray[np.int64] = np.sort(by_class[np.arange(count) * len(labels) // count])
    return chosen


def _answer(name: str, row: Baseline, train_x: Rows, train_y: Labels, test_x: Rows) -> Any:
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an optimiser that stops early is a baseline still
            return row.function(train_x, train_y, test_x)
    except ImportError as error:
        if BASELINES.source(name) is not None:
            raise
        raise UserError(
            f"baseline '{name}' needs the package '{error.name}', which is not installed: pip install "
            "'syncnorm[study]'."
        ) from error


def _held_out(labels: Labels) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices of samples to fit on, and of those to choose settings by."""
    used = stratified(labels, min(CHOOSING, len(labels)))
    held = used[stratified(labels[used], len(used) // 5)] if len(used) >= 5 else used[:0]
    return np.setdiff1d(used, held), held


def _best(grid: Any, score: Callable[[Any], float], labels: Labels) -> Any:
    """Return the setting with the best score, on ties the first; the first if too few samples are there to choose."""
    if len(np.unique(labels)) < 2 or len(labels) < 8:
        return grid[0]
    return max(grid, key=score)
