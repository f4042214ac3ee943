"""Parts of a run that every world shares: data, norm, optimiser. The docstrings are the command line's help texts."""

from dataclasses import dataclass, field
from typing import Any, Literal

LATER = {"added": True}
"""Metadata of a field that was added after results existed. A run's description includes the field only if it differs
from its default, so that ids of earlier runs do not change."""


@dataclass(frozen=True)
class Data:
    """The data: an embedded or registered data set, one from the hub, a table, or an image folder."""

    name: str = "digits-photo"
    """Name of an embedded or registered data set, a hub name, or any name of your choice for the data at `path`."""
    path: str = ""
    """A parquet or CSV file (of images or features), a folder of such files, an image folder, or the folder of the
    UCI HAR Dataset. Not part of a run's id."""
    size: int | None = None
    """Side of the square images in pixels; None keeps the data set's size."""
    train_limit: int | None = None
    """Use at most this many training samples of each domain, including those for validation; drawn by the run's seed,
    stratified by class."""
    test_limit: int | None = None
    """Use at most this many test samples of each domain; drawn by the run's seed, stratified by class."""
    split: Literal["random", "writers", "fixed"] = "random"
    """What the run's seed draws. random: a stratified fifth is the test (where there is no official test split), and
    limits and validation. writers: the same, of whole writers (embedded digits: pages of their file) or values of the
    natural column. fixed: what random draws with seed 0, for every seed."""
    augment: Literal["none", "shift", "shift_flip"] = "none"
    """Augmentation of training images: random shift by up to an eighth, and horizontal flip."""
    workers: int = 0
    """Number of processes that make training batches, for data that do not fit on the device: the data then stay in
    the host's memory. 0: the data lie on the device. It changes no result and no run's id."""
    on_disk: bool = False
    """Keep samples in files of the cache's folder, for data that do not fit in the host's memory; a batch reads its
    samples from there. Each process writes its own, which are gone when it ends. It changes no result and no run's
    id."""
    label: str = field(default="", metadata=LATER)
    """Name of a table's label column; if empty, it is found by its type and by common names."""
    natural: str = field(default="", metadata=LATER)
    """Name of a table's column with each sample's client or domain."""
    options: dict[str, Any] = field(default_factory=dict, hash=False, metadata=LATER)
    """Keyword options of a data set that `syncnorm.register_data` registered."""
    validation: float = field(default=0.0, metadata=LATER)
    """Fraction of the training samples (of all, of each domain, of each client) held out for validation, stratified
    by class."""
    content: Literal["own", "shared"] = field(default="own", metadata=LATER)
    """Which digits the embedded domains of one run show. own: the digits are dealt to the domains, so that no two
    show the same; shared: every domain shows all digits, with the same split."""


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
    """Weight decay, applied to weights with two or more dimensions (not to norm parameters and biases)."""
    epochs: int = 10
    """Number of passes over the training data."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Learning-rate schedule: constant, or cosine decay to zero after the warm-up."""
    warmup: float = 0.05
    """Fraction of all steps over which the learning rate rises linearly from zero."""
    clip_norm: float = field(default=0.0, metadata=LATER)
    """Maximum global gradient norm; larger gradients are scaled down to it. 0 is off."""
    accumulate: int = field(default=1, metadata=LATER)
    """Gradient accumulation: number of batches whose mean gradient makes one step. The last step of an epoch may use
    fewer."""
