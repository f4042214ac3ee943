"""The alpha-beta model of an all-gather around a ring: seconds = (R - 1) (alpha + beta b).

R ranks each send R - 1 messages of b bytes; alpha is the seconds of a message of no length, beta those of a byte
(Thakur, Rabenseifner and Gropp 2005, doi:10.1177/1094342005051521, section 4.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class AlphaBeta:
    """Seconds of a message, and of a byte."""

    alpha: float
    beta: float

    def seconds(self, ranks: int, size: int) -> float:
        """Return what an all-gather of `size` bytes a rank takes."""
        return (ranks - 1) * (self.alpha + self.beta * size)


def fit(points: Sequence[tuple[int, int, float]]) -> AlphaBeta:
    """Return the model with the least squares of relative errors, of (ranks, bytes a rank, seconds)."""
    ranks, size, seconds = (np.array(column, float) for column in zip(*points, strict=True))
    terms = np.stack([ranks - 1, (ranks - 1) * size], axis=1) / seconds[:, None]
    alpha, beta = np.linalg.lstsq(terms, np.ones(len(seconds)), rcond=None)[0]
    return AlphaBeta(float(alpha), float(beta))
