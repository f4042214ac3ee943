"""A run, its result, and its id, which is a hash of its content.

The attribute docstrings are the command line's help texts.
"""

import json
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from functools import cache
from hashlib import sha256
from math import isfinite
from typing import Any, Literal
from weakref import ref

from syncnorm.config.parts import LATER, Data, Norm, Optim
from syncnorm.config.worlds import WORLD_CONFIGS, Clients, Devices, Domains


@dataclass(frozen=True)
class Run:
    """One training run and everything its result depends on."""

    data: Data = field(default_factory=Data)
    model: str = "small_cnn"
    """Name of a model in syncnorm.models, or "package.module:factory" for your own."""
    model_options: dict[str, Any] = field(default_factory=dict)
    """Keyword options of the model's factory."""
    norm: Norm = field(default_factory=Norm)
    world: Devices | Clients | Domains = field(default_factory=Devices)
    optim: Optim = field(default_factory=Optim)
    precision: Literal["float32", "float64", "bf16-mixed", "16-mixed", "bf16-true"] = "float32"
    """Data type of parameters and activations. Mixed: parameters in float32, training activations in bfloat16, or in
    float16 with a scaled loss (on CUDA); evaluation in float32. bf16-true: parameters and activations in bfloat16, in
    evaluation too; layers that keep statistics stay in float32."""
    seed: int = 0
    """Seed of everything that chance decides: split, limits, validation, partition, initialisation, sample order and
    augmentation. Each has its own random stream."""
    compile: bool = field(default=False, metadata=LATER)
    """Train the model with torch.compile. Of clients, the engine loop has it."""
    channels_last: bool = field(default=False, metadata=LATER)
    """Keep weights and images in PyTorch's memory format channels_last. Of clients, the engine loop has it."""
    evaluate_every: int | None = field(default=None, metadata=LATER)
    """Number of epochs or rounds between two evaluations for the run's history; the last one is always evaluated.
    None: only at the end; in the domains world after every epoch."""
    select: Literal["last", "best"] = field(default="last", metadata=LATER)
    """Which epoch's or round's model is the result: the last one's, or that with the best validation accuracy (of
    several, the first). `evaluate_every` then says how often it looks; None: after every epoch or round."""
    task: str = field(default="classification", metadata=LATER)
    """What is learnt, with its loss and its metric: a name in syncnorm.tasks.TASKS."""


@dataclass(frozen=True)
class Result:
    """The result of a run. `metrics` holds fractions in [0, 1] (accuracies) and nats (losses)."""

    run_id: str
    config: dict[str, Any]
    metrics: dict[str, float]
    evaluated_by: str
    """The statistics that norm layers used for `accuracy`: e.g. "own (rank 0)", "pooled", "none"."""
    seconds: float
    environment: dict[str, str]
    history: dict[str, list[float]] = field(default_factory=dict)
    """One value per epoch or round, e.g. {"train_loss": [...]}. A shorter series has one value for each number in
    "accuracy_at": the evaluated epochs or rounds, counted from 1."""
    details: dict[str, Any] = field(default_factory=dict)
    """Results that are not single numbers, as plain data, e.g. the partition of a federated run ("partition").
    "diverged" is True if a metric or a value of the history is not finite."""
    fingerprints: dict[str, str] = field(default_factory=dict)
    """Hashes of the source code and data behind the result, by what they cover (`worlds.fingerprints`)."""
    ranks: list[dict[str, Any]] = field(default_factory=list)
    """What each rank of a torchrun did while it trained, in the order of ranks (`training.ranks.work.Work.record`);
    empty without torchrun. Of a run that was interrupted, since its last start."""


def marked(result: Result) -> Result:
    """Return the result, with "diverged" in its details if it has numbers that are not finite."""
    numbers = [*result.metrics.values(), *(value for values in result.history.values() for value in values)]
    if all(isfinite(number) for number in numbers):
        return result
    return replace(result, details={**result.details, "diverged": True})


def evaluated_at(run: Run, step: int, total: int) -> bool:
    """Return whether `evaluate_every` asks for an evaluation after epoch or round `step` of `total`."""
    every = run.evaluate_every
    return every is not None and (step % every == 0 or step == total)


def validated_at(run: Run, step: int, total: int) -> bool:
    """Return whether the model after epoch or round `step` of `total` is measured on validation samples."""
    if not run.data.validation:
        return False
    return run.select == "best" if run.evaluate_every is None else evaluated_at(run, step, total)


def describe(run: Run) -> dict[str, Any]:
    """Return a run as plain data without paths, for the run id, rows and reports.

    Equal runs have equal descriptions, however they are written: float fields hold floats (100.0, not 100), ranks,
    per_device_batch and global_batch of devices are all filled in, and clients have no `optim.epochs`.
    """
    config: dict[str, Any] = _plain(run)
    for placement in ("path", "workers", "on_disk"):
        del config["data"][placement]
    config["world"]["kind"] = run.world.kind
    run.world.complete(config)
    return config


def run_from(config: dict[str, Any], path: str = "") -> Run:
    """Return the run that `describe` has described, with its data at `path`."""
    worlds: dict[str, type[Any]] = {kind.kind: kind for kind in WORLD_CONFIGS}
    world = dict(config["world"])
    kind = worlds[world.pop("kind")]
    parts = {
        "data": Data(**{**config["data"], "path": path}),
        "norm": Norm(**config["norm"]),
        "optim": Optim(**config["optim"]),
        "world": kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in world.items()}),
    }
    return Run(**{**config, **parts})


def _plain(node: Any) -> Any:
    if not is_dataclass(node):
        return list(node) if isinstance(node, tuple) else node
    plain = {}
    for name, as_float, default in _parts(node.__class__):
        value = getattr(node, name)
        if default is MISSING or value != default:
            plain[name] = float(value) if as_float else value if type(value) in _SCALARS else _plain(value)
    return plain


_SCALARS = (str, int, float, bool, type(None), dict)
"""Types of values that a description holds as they are."""


@cache
def _parts(kind: Any) -> list[tuple[str, bool, Any]]:
    """Return a dataclass's fields: name, whether it is a float, and the value that a description leaves out."""
    return [
        (item.name, item.type is float, default_of(item) if item.metadata.get("added") else MISSING)
        for item in fields(kind)
    ]


def default_of(item: Field[Any]) -> Any:
    """Return the default of a dataclass's field."""
    return item.default if item.default_factory is MISSING else item.default_factory()


def run_id(run: Run) -> str:
    """Return a run's id: 12 hex digits that depend on its content only, not on the machine or paths."""
    known = _IDS.get(id(run))
    if known and known[0]() is run:
        return known[1]
    text = json.dumps(describe(run), sort_keys=True, separators=(",", ":"))
    name = sha256(text.encode()).hexdigest()[:12]
    place = id(run)
    _IDS[place] = (ref(run, lambda _: _IDS.pop(place, None)), name)
    return name


_IDS: dict[int, tuple[ref[Run], str]] = {}
"""Ids of the runs that there are, by their place in memory: a study asks for each many times, and a run is frozen."""


def training_of(run: Run) -> Run:
    """Return the run with test settings at their defaults: runs with the same value share one training.

    A run that is evaluated while it trains keeps those that its history or its choice of an epoch or round reads.
    """
    watched = run.evaluate_every is not None or run.select == "best"
    return replace(run, world=run.world.training(watched))
