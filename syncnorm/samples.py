"""Each test sample's contribution to a run's main metric, as a row carries it: short texts of plain data.

A row's details["samples"] has "score", whose mean over the test samples is the row's `accuracy` (or the metric that
"metric" names), and, where they say something, "weight" and "origin" (see `Samples`). Its details["chance"] says what
guessing would score.
"""

import zlib
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

ACCURACY = "accuracy"
FURTHER = "further_samples"
"""Key of the same details on further metrics, by metric."""
BITS, FLOATS, NUMBERS = "bits", "float32", "uint32"
"""How an array is stored: eight yes-or-no values a byte, or little-endian numbers."""
LEVEL = 0.01
"""One-sided error of the bound below which an accuracy is that of a guess."""


@dataclass(frozen=True)
class Samples:
    """The test samples of a run, each field an array (N,)."""

    score: NDArray[np.float64]
    """Contributions to the metric: their mean is its value."""
    weight: NDArray[np.float64]
    """Weights in the metric, with mean 1; all 1 where all samples count alike."""
    origin: NDArray[np.int64]
    """Numbers of the originals that the samples show: samples of one original are not independent."""
    metric: str = ACCURACY
    """The metric that the scores add up to."""


@dataclass(frozen=True)
class Chance:
    """What guessing would score on a run's test samples."""

    share: float
    """The accuracy of always answering the class that is most frequent in the test (by weight)."""
    samples: int
    """The number of test samples; where their weights differ, 1 / sum(weight^2) for weights that sum to 1 (Kish)."""

    @property
    def bound(self) -> float:
        """The accuracy that guessing exceeds with a probability of at most 1 %: a quantile of a binomial."""
        return _bound(self.samples, self.share)


@lru_cache(maxsize=1024)
def _bound(samples: int, share: float) -> float:
    from scipy import stats

    return float(stats.binom.ppf(1 - LEVEL, samples, share)) / samples


def sample_details(
    score: ArrayLike,
    labels: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    origin: ArrayLike | None = None,
    metric: str = ACCURACY,
) -> dict[str, Any]:
    """Return the details of a row that `samples_of` and `chance_of` read.

    Args:
        score: (N,) each test sample's contribution: 1 if right, else 0; with weights, times weight / mean weight.
        labels: int (N,), the samples' classes; None if the task has none, so that nobody can guess one.
        weight: (N,) each sample's weight in the accuracy, up to a factor; None if all count alike.
        origin: int (N,), see `Samples`; None if each sample is its own.
        metric: the metric whose value is the mean of the scores.
    """
    values = np.asarray(score, dtype=np.float64)
    given = np.ones(len(values)) if weight is None else np.asarray(weight, dtype=np.float64)
    share = given / given.sum()
    packed = {"score": _packed(values)}
    if metric != ACCURACY:
        packed["metric"] = metric
    if np.ptp(share) > 1e-9 * share.max():
        packed["weight"] = _packed(share * len(share))
    if origin is not None:
        packed["origin"] = _text(NUMBERS, np.asarray(origin).astype("<u4"))
    if labels is None:
        return {"samples": packed}
    best = float(np.bincount(np.asarray(labels, dtype=np.int64), weights=given).max() / given.sum())
    return {"samples": packed, "chance": {"share": best, "samples": int(1 / np.square(share).sum() + 1e-6)}}


def samples_of(details: Mapping[str, Any]) -> Samples | None:
    """Return the test samples in a row's details; None in a row without them."""
    packed = details.get("samples")
    if not packed:
        return None
    score = _array(packed["score"])
    weight = _array(packed["weight"]) if "weight" in packed else np.ones(len(score))
    origin = _array(packed["origin"]) if "origin" in packed else np.arange(len(score))
    return Samples(score, weight, origin.astype(np.int64), metric_of(details))


def metric_of(details: Mapping[str, Any]) -> str:
    """Return the metric whose value is the mean of the samples' scores, from a row's details."""
    found: str = details.get("samples", {}).get("metric", ACCURACY)
    return found


def details_on(details: Mapping[str, Any], metric: str) -> Mapping[str, Any] | None:
    """Return the part of a row's details on the samples behind a metric; None if no samples are behind it."""
    if metric_of(details) == metric:
        return details
    found: Mapping[str, Any] | None = details.get(FURTHER, {}).get(metric)
    return found


def chance_of(details: Mapping[str, Any]) -> Chance | None:
    """Return what guessing would score, from a row's details; None in a row that does not say."""
    found = details.get("chance")
    return Chance(found["share"], found["samples"]) if found else None


def _packed(values: NDArray[np.float64]) -> str:
    plain = np.round(values, 9)
    if np.isin(plain, (0.0, 1.0)).all():
        return _text(BITS, np.packbits(plain.astype(bool)), len(plain))
    return _text(FLOATS, values.astype("<f4"))


def _text(kind: str, values: NDArray[Any], count: int | None = None) -> str:
    data = b64encode(zlib.compress(values.tobytes(), 9)).decode()
    return f"{kind} {len(values) if count is None else count} {data}"


def _array(text: str) -> NDArray[np.float64]:
    kind, count, data = text.split(" ")
    plain = zlib.decompress(b64decode(data))
    if kind == BITS:
        return np.unpackbits(np.frombuffer(plain, np.uint8), count=int(count)).astype(np.float64)
    return np.frombuffer(plain, "<f4" if kind == FLOATS else "<u4").astype(np.float64)
