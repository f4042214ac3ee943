"""The alpha-beta model of an all-gather around a ring: seconds = (R - 1) t (alpha + beta b).

R ranks each send R - 1 messages of b bytes; alpha is the seconds of a message of no length, beta those of a byte
(Thakur, Rabenseifner and Gropp 2005, doi:10.1177/1094342005051521, section 4.1). There t is 1, for every rank has a
processor. Where R ranks share fewer cores, a step of the ring ends with the last rank's turn: t = R / cores.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class AlphaBeta:
    """Seconds of a message, and of a byte."""

    alpha: float
    beta: float
    cores: int

    def seconds(self, ranks: int, size: int) -> float:
        """Return what an all-gather of `size` bytes a rank takes."""
        return steps(ranks, self.cores) * (self.alpha + self.beta * size)


def steps(ranks: int, cores: int) -> float:
    """Return how many messages' times an all-gather takes."""
    return (ranks - 1) * max(1.0, ranks / cores)


def fit(points: Sequence[tuple[int, int, float]], cores: int) -> AlphaBeta:
    """Return the model with the least squares of relative errors, of (ranks, bytes a rank, seconds)."""
    _, size, seconds = (np.array(column, float) for column in zip(*points, strict=True))
    messages = np.array([steps(ranks, cores) for ranks, _, _ in points])
    terms = np.stack([messages, messages * size], axis=1) / seconds[:, None]
    alpha, beta = np.linalg.lstsq(terms, np.ones(len(seconds)), rcond=None)[0]
    return AlphaBeta(float(alpha), float(beta), cores)
