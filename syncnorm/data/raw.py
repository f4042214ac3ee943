"""The result of every source: samples and labels before the split and normalisation.

A source without an official test split returns all samples as training samples, and none for the test: then
`syncnorm.data.split` draws the test from them.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Labels = NDArray[np.int64]
Targets = NDArray[Any]
"""Labels, or the targets of another task."""


class Groups(NamedTuple):
    """A column with each sample's origin, e.g. its client: indices into `names`, for each split."""

    names: tuple[str, ...]
    train: Labels
    test: Labels


class Origin(NamedTuple):
    """What each sample of a whole shows: samples of one number show the same thing, and stay on one side of a split.

    Sources with the same `content` number the same things. `writer` is each sample's writer.
    """

    content: str
    number: Labels
    writer: Labels


class Pixels(NamedTuple):
    """Images as cached: uint8 or uint16 (N, C, H, W), labels int64 (N,), class names, a note.

    `changes` lists conversions and omissions during loading; `natural` is each sample's natural client, `domain` its
    domain, `origin` what it shows (None: every sample is its own). `task` is the task whose targets the labels are:
    those of another task than classification may have any shape (N, ...).
    """

    train_x: NDArray[Any]
    train_y: Targets
    test_x: NDArray[Any]
    test_y: Targets
    class_names: tuple[str, ...]
    note: str
    changes: tuple[str, ...] = ()
    natural: Groups | None = None
    domain: Groups | None = None
    origin: Origin | None = None
    task: str = "classification"


class Signals(NamedTuple):
    """Numeric samples: signals (N, C, L), feature vectors (N, F) or images (N, C, H, W), float32 or float64.

    The fixed scale subtracts `centre` from each channel and divides by `unit`, float32 (C,) each. They are the same
    for all data sets that are domains of one task, or None if there are no such numbers. With `as_is`, the samples
    are already normalised and are not changed. The rest is as in `Pixels`.
    """

    train_x: NDArray[Any]
    train_y: Targets
    test_x: NDArray[Any]
    test_y: Targets
    class_names: tuple[str, ...]
    note: str
    centre: NDArray[np.float32] | None = None
    unit: NDArray[np.float32] | None = None
    changes: tuple[str, ...] = ()
    natural: Groups | None = None
    domain: Groups | None = None
    as_is: bool = False
    origin: Origin | None = None
    task: str = "classification"
