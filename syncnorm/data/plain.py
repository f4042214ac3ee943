"""Samples as rows of numbers, for pixel baselines."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from syncnorm.baselines import Problem


def plain_problem(x: Tensor, y: Tensor, test_x: Tensor, test_y: Tensor, weights: Tensor) -> Problem:
    """Return training and test samples (N, ...), int64 labels (N,) and test weights (M,) as a baseline's problem.

    The weights are scaled so that they sum to 1.
    """
    told = weights.detach().double().cpu().numpy()
    return Problem(_rows(x), _labels(y), _rows(test_x), _labels(test_y), told / told.sum())


def _rows(x: Tensor) -> NDArray[np.float32]:
    rows: NDArray[np.float32] = x.detach().float().cpu().flatten(1).numpy()
    return rows


def _labels(y: Tensor) -> NDArray[np.int64]:
    labels: NDArray[np.int64] = y.detach().cpu().numpy()
    return labels
