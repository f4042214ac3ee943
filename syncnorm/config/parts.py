"""Parts of a run that every world shares: data, norm, optimiser. The docstrings are the command line's help texts."""

from dataclasses import dataclass, field
from typing import Any, Literal

LATER = {"added": True}
"""Metadata of a field that was added when results existed: a description holds it only where it is not its default,
so that the ids of the runs before it stay what they are."""


@dataclass(frozen=True)
class Data:
    """Which samples: an embedded or registered data set, one of the hub's, a table, an image folder."""

    name: str = "digits-photo"
    """An embedded or registered data set, or a name of your own for what lies at `path`, or a hub name."""
    path: str = ""
    """A parquet or CSV file (of images or of features), a folder of them, an image folder, or the folder of the UCI
    HAR Dataset. Not part of a run's id."""
    size: int | None = None
    """Side of the square images in pixels; None keeps what the data set has."""
    train_limit: int | None = None
    """Use at most this many training samples (drawn once, by seed 0)."""
    test_limit: int | None = None
    """Use at most this many test samples (drawn once, by seed 0)."""
    augment: Literal["none", "shift", "shift_flip"] = "none"
    """Batched augmentation of training images: random shift by an eighth, and horizontal flip."""
    workers: int = 0
    """Processes that make training batches, for data that do not fit on the device: these stay in the host's memory.
    0: data lie on the device. Clients have none. Not part of a run's id: results are the same."""
    label: str = field(default="", metadata=LATER)
    """The column of a table that holds the labels; empty finds it by its type and usual names."""
    natural: str = field(default="", metadata=LATER)
    """The column of a table that says which client or domain a sample belongs to."""
    options: dict[str, Any] = field(default_factory=dict, hash=False, metadata=LATER)
    """Keyword options of a data set that `syncnorm.register_data` registered."""


@dataclass(frozen=True)
class Norm:
    """Which normalisation layer: a name from `syncnorm.norm_names()` and its options."""

    name: str = "bn"
    """A name from `syncnorm.norm_names()`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword options of that layer, e.g. {"groups": 8} for gn."""


@dataclass(frozen=True)
class Optim:
    """How the parameters are updated."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    """The optimiser."""
    lr: float = 0.05
    """Peak learning rate."""
    momentum: float = 0.9
    """SGD's momentum."""
    weight_decay: float = 5e-4
    """Weight decay, on weights of two and more dimensions (not on norm parameters and biases)."""
    epochs: int = 10
    """Passes over the training data."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Learning rate over the run: constant, or a half cosine down to zero after the warm-up."""
    warmup: float = 0.05
    """Fraction of all steps over which the learning rate rises linearly from zero."""
    clip_norm: float = field(default=0.0, metadata=LATER)
    """Largest Euclidean norm of all gradients together; longer ones are scaled down to it. 0 is off."""
    accumulate: int = field(default=1, metadata=LATER)
    """Batches whose mean gradient makes one step; what is left at the end of an epoch makes a smaller one."""
