"""What a run is: frozen dataclasses without behaviour, and the id that their content hashes to.

Everything above reads these. The attribute docstrings are the help texts of the command line.
"""

import json
from dataclasses import dataclass, field, fields, is_dataclass
from hashlib import sha256
from typing import Any, Literal

from syncnorm.errors import UserError

Engine = Literal["virtual", "torchrun"]


@dataclass(frozen=True)
class Data:
    """Which samples: an embedded data set, one of the hub's, a parquet file or folder, an image folder."""

    name: str = "digits-photo"
    """An embedded data set, or a name of your own for what lies at `path`, or a hub name."""
    path: str = ""
    """A parquet file, a folder of parquet files, or an image folder. Not part of a run's id."""
    size: int | None = None
    """Side of the square images in pixels; None keeps what the data set has."""
    train_limit: int | None = None
    """Use at most this many training samples (drawn once, by seed 0)."""
    test_limit: int | None = None
    """Use at most this many test samples (drawn once, by seed 0)."""
    augment: Literal["none", "shift", "shift_flip"] = "none"
    """Batched augmentation of training images: random shift by an eighth, and horizontal flip."""


@dataclass(frozen=True)
class Norm:
    """Which normalisation layer: a name from `syncnorm.norm_names()` and its options."""

    name: str = "bn"
    """A name from `syncnorm.norm_names()`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword options of that layer, e.g. {"groups": 8} for gn."""


@dataclass(frozen=True)
class Devices:
    """The devices world: one model on `ranks` devices with `per_device_batch` samples each.

    Any two of ranks, per_device_batch and global_batch give the third.
    """

    ranks: int | None = None
    """Number of devices."""
    per_device_batch: int | None = None
    """Samples a device sees in one step."""
    global_batch: int | None = None
    """Samples all devices see in one step."""
    skew: float = 0.0
    """Percent of the training data that is sorted by label before it is dealt to ranks (0 IID, 100 sorted)."""
    engine: Engine = "virtual"
    """virtual: all ranks in one process, exactly; torchrun: one process a rank."""
    buffers: Literal["rank0", "pooled"] = "rank0"
    """Whose running statistics of unsynchronised BN evaluate: rank 0's, as DDP does, or all ranks' pooled."""


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


@dataclass(frozen=True)
class Run:
    """One training run and everything its result depends on."""

    data: Data = field(default_factory=Data)
    model: str = "small_cnn"
    """A name in syncnorm.models, or "package.module:factory" for your own."""
    model_options: dict[str, Any] = field(default_factory=dict)
    """Keyword options of the model's factory."""
    norm: Norm = field(default_factory=Norm)
    world: Devices = field(default_factory=Devices)
    optim: Optim = field(default_factory=Optim)
    precision: Literal["float32", "float64"] = "float32"
    """Data type of parameters and activations."""
    seed: int = 0
    """Seeds initialisation, order, partition and augmentation, each by a stream of its own."""


@dataclass(frozen=True)
class Result:
    """What a run gave. `metrics` holds fractions in [0, 1] (accuracies) and nats (losses)."""

    run_id: str
    config: dict[str, Any]
    metrics: dict[str, float]
    evaluated_by: str
    """Whose statistics the norm layers used for `accuracy`: e.g. "own (rank 0)", "pooled", "none"."""
    seconds: float
    environment: dict[str, str]
    history: dict[str, list[float]] = field(default_factory=dict)
    """One value an epoch, e.g. {"train_loss": [...]}."""


def layout(world: Devices) -> tuple[int, int]:
    """Return `(ranks, per_device_batch)` from whichever two of ranks, per_device_batch and global_batch are set.

    Nothing set means one device with 32 samples. Numbers that are not positive or do not fit raise `UserError`.
    """
    ranks, local, total = world.ranks, world.per_device_batch, world.global_batch
    for name, value in (("ranks", ranks), ("per_device_batch", local), ("global_batch", total)):
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}: it must be at least 1.")
    if total is None:
        return ranks or 1, local or 32
    if local is None:
        local, rest = divmod(total, ranks or 1)
        if rest or local == 0:
            raise UserError(f"global_batch {total} does not divide over {ranks} ranks: make it a multiple.")
    if ranks is None:
        ranks = total // local
    if ranks * local != total:
        raise UserError(
            f"global_batch {total} is not ranks x per_device_batch ({ranks} x {local}): make it a multiple of "
            "per_device_batch, and leave ranks out."
        )
    return ranks, local


def describe(run: Run) -> dict[str, Any]:
    """Return a run as plain data, without paths: what is hashed, stored in rows and shown in reports.

    Two ways to write the same run describe the same: the world's ranks, per_device_batch and global_batch are all
    filled in, and a float field holds a float (100.0, not 100).
    """
    config: dict[str, Any] = _plain(run)
    del config["data"]["path"]
    ranks, local = layout(run.world)
    config["world"].update(
        kind=type(run.world).__name__.lower(), ranks=ranks, per_device_batch=local, global_batch=ranks * local
    )
    return config


def _plain(node: Any) -> Any:
    if not is_dataclass(node):
        return node
    values = ((item, getattr(node, item.name)) for item in fields(node))
    return {item.name: float(value) if item.type is float else _plain(value) for item, value in values}


def run_id(run: Run) -> str:
    """Return 12 hex digits that name a run by its content: the same anywhere, whatever its paths."""
    text = json.dumps(describe(run), sort_keys=True, separators=(",", ":"))
    return sha256(text.encode()).hexdigest()[:12]
