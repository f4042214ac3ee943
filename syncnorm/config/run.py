"""What a run is, what it gives, and the id that its content hashes to.

Everything above reads these. The attribute docstrings are the help texts of the command line.
"""

import json
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from hashlib import sha256
from math import isfinite
from typing import Any, Literal

from syncnorm.config.parts import LATER, Data, Norm, Optim
from syncnorm.config.worlds import Clients, Devices, Domains


@dataclass(frozen=True)
class Run:
    """One training run and everything its result depends on."""

    data: Data = field(default_factory=Data)
    model: str = "small_cnn"
    """A name in syncnorm.models, or "package.module:factory" for your own."""
    model_options: dict[str, Any] = field(default_factory=dict)
    """Keyword options of the model's factory."""
    norm: Norm = field(default_factory=Norm)
    world: Devices | Clients | Domains = field(default_factory=Devices)
    optim: Optim = field(default_factory=Optim)
    precision: Literal["float32", "float64", "bf16-mixed", "16-mixed"] = "float32"
    """Data type of parameters and activations. Mixed: parameters in float32, activations of training in bfloat16, or
    in float16 with a scaled loss (on CUDA); evaluation is in float32."""
    seed: int = 0
    """Seeds initialisation, order, partition and augmentation, each by a stream of its own."""
    compile: bool = field(default=False, metadata=LATER)
    """Train the model through torch.compile."""
    evaluate_every: int | None = field(default=None, metadata=LATER)
    """Measure the accuracy after every so many epochs or rounds, and after the last, for the run's history. None:
    only at the end, and for domains after every epoch."""


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
    """One value an epoch or round, e.g. {"train_loss": [...]}. A series with fewer values has one
    for each number in "accuracy_at": the epochs or rounds that were evaluated, counted from 1."""
    details: dict[str, Any] = field(default_factory=dict)
    """Plain data that no single number holds, e.g. who held what in a federated run ("partition"). "diverged" is True
    where a metric or a value of the history is not finite."""
    fingerprints: dict[str, str] = field(default_factory=dict)
    """Hashes of the source and the data that made it, by what they are of (`worlds.fingerprints`)."""


def marked(result: Result) -> Result:
    """Return a result that says "diverged" in its details, if it has numbers that are not finite."""
    numbers = [*result.metrics.values(), *(value for values in result.history.values() for value in values)]
    if all(isfinite(number) for number in numbers):
        return result
    return replace(result, details={**result.details, "diverged": True})


def evaluated_at(run: Run, step: int, total: int) -> bool:
    """Return whether `evaluate_every` asks for the accuracy after so many epochs or rounds of `total`."""
    every = run.evaluate_every
    return every is not None and (step % every == 0 or step == total)


def describe(run: Run) -> dict[str, Any]:
    """Return a run as plain data, without paths: what is hashed, stored in rows and shown in reports.

    Two ways to write the same run describe the same: a float field holds a float (100.0, not 100), the ranks,
    per_device_batch and global_batch of devices are all filled in, and clients have no `optim.epochs`.
    """
    config: dict[str, Any] = _plain(run)
    for placement in ("path", "workers"):
        del config["data"][placement]
    config["world"]["kind"] = run.world.kind
    run.world.complete(config)
    return config


def run_from(config: dict[str, Any], path: str = "") -> Run:
    """Return the run of a description (`describe`), with its data at `path`."""
    worlds: dict[str, type[Any]] = {kind.kind: kind for kind in (Devices, Clients, Domains)}
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
    for item in fields(node):
        value = getattr(node, item.name)
        if not item.metadata.get("added") or value != default_of(item):
            plain[item.name] = float(value) if item.type is float else _plain(value)
    return plain


def default_of(item: Field[Any]) -> Any:
    """Return the default of a dataclass's field."""
    return item.default if item.default_factory is MISSING else item.default_factory()


def run_id(run: Run) -> str:
    """Return 12 hex digits that name a run by its content: the same anywhere, whatever its paths."""
    text = json.dumps(describe(run), sort_keys=True, separators=(",", ":"))
    return sha256(text.encode()).hexdigest()[:12]


def training_of(run: Run) -> Run:
    """Return the run whose training this run's is: the same, with nothing said of its test."""
    return replace(run, world=run.world.training())
