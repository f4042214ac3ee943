"""The table of worlds, the protocol of a world, and the functions that dispatch a run to its world.

Code outside a world never asks which world it is. A world is imported with its first run, so that a command that
trains nothing starts quickly. A new world needs a configuration in `config/worlds.py`, a folder, and a row here;
the words for its metrics stand in `study/report/analysis/labels.py`.
"""

import json
import sys
from dataclasses import replace
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TypeVar

from syncnorm.baselines import Problem
from syncnorm.checks import check_run
from syncnorm.config import Execution, Norm, Result, Run, WorldConfig, run_id
from syncnorm.errors import UserError
from syncnorm.fingerprint import code_fingerprint, files_fingerprint
from syncnorm.registry import registry_of

Config = TypeVar("Config", bound=WorldConfig)


class Loaded(Protocol):
    """The data of a run, in memory."""

    @property
    def fingerprint(self) -> str:
        """Hash of the content: samples, labels and split."""

    def summary(self) -> str:
        """Return one line that says what was loaded, and what was dropped or converted."""


class World(Protocol):
    """The functions of a world."""

    def fit(self, run: Run, execution: Execution) -> Result:
        """Train and evaluate a run; mistakes in the run raise `UserError` before training starts."""

    def check(self, run: Run) -> None:
        """Raise the `UserError` that `run` would raise, without training it; may keep its data until `forget`."""

    def forget(self) -> None:
        """Drop everything that this process caches for its next run."""

    def data(self, run: Run) -> Loaded:
        """Return a run's data; loaded once, as for `check`."""

    def pixels(self, run: Run) -> Problem:
        """Return a run's samples as rows of numbers, with the weights by which `accuracy` counts test samples."""

    def metrics(self, run: Run) -> list[str]:
        """Return the names of the metrics that a run may have."""

    def histories(self, run: Run) -> list[str]:
        """Return the names of the histories that a run will have: one value per epoch or round."""

    def profiles(self, run: Run) -> list[str]:
        """Return the names of the profiles that a run will have: one value per layer."""

    def norm_layer(self, norm: Norm, world: Any) -> tuple[str, dict[str, Any]]:
        """Return the name and options of the layer that computes `norm` in the world configured by `world`."""


SAMPLES = "samples of the data"
"""Key of the fingerprint of a run's samples, labels and split."""
WORLDS = {
    "devices": "syncnorm.devices.world",
    "clients": "syncnorm.federated.world",
    "domains": "syncnorm.domains.world",
}
"""For each kind of world, the module that defines its `WORLD`."""


def world_of(run: Run) -> World:
    """Return the world of a run."""
    world: World = import_module(WORLDS[run.world.kind]).WORLD
    return world


def fit(run: Run, execution: Execution | None = None) -> Result:
    """Train and evaluate a run of any world; the same configuration gives the same result on the same machine.

    Raises:
        UserError: for anything in `run` that does not work, before training starts.
    """
    check_run(run)
    _check_metrics(run)
    result = world_of(run).fit(run, execution or Execution())
    return replace(result, fingerprints=fingerprints(run, samples=True))


def check(run: Run) -> None:
    """Raise the `UserError` that `run` would raise, without training it; its data stay loaded until `forget`."""
    check_run(run)
    _check_metrics(run)
    world_of(run).check(run)


def _check_metrics(run: Run) -> None:
    """Raise `UserError` where a registered metric would take the place of one that a run of this world has."""
    names = world_of(run).metrics(run)
    for name in registry_of("metric"):
        if names.count(name) > 1:
            raise UserError(f"metric '{name}' is registered, and runs have one of that name: choose another name.")


def forget() -> None:
    """Drop the data sets and trainings that this process keeps for its next run."""
    for module in WORLDS.values():
        if loaded := sys.modules.get(module):  # a module never imported has nothing cached
            loaded.WORLD.forget()


def summary(run: Run) -> str:
    """Return a one-line summary of a run's data."""
    return world_of(run).data(run).summary()


def fingerprints(run: Run, samples: bool = False) -> dict[str, str]:
    """Return hashes of everything that determines a run besides its configuration and syncnorm, by what they cover.

    These are: the source code of users' own models, norms, algorithms, partitions, data sets, adaptations and
    metrics; a policy's row; the files at `data.path`; and the samples themselves, if `samples` asks for them or
    users' code creates them. The same run with another hash is another run.
    """
    names = [*_names(run), *(("metric", name) for name in registry_of("metric"))]
    found = {}
    for kind, name in names:
        if ":" in name and kind == "model":
            found[f"model {name}"] = code_fingerprint(
                import_module("syncnorm.models.registry").model_spec(name).factory
            )
        elif name in (registry := registry_of(kind)) and (registry.source(name) or kind == "policy"):
            found[f"{kind} {name}"] = code_fingerprint(registry[name])
    if run.data.path and Path(run.data.path).exists():
        found[f"files of data {run.data.name}"] = files_fingerprint(Path(run.data.path))
    if samples or any(what.startswith("data ") for what in found):
        found[SAMPLES] = world_of(run).data(run).fingerprint
    return found


def checkpoint_id(run: Run) -> str:
    """Return what names a run's checkpoint: its id, and the source and files that make it.

    A run whose model was edited since it was killed starts afresh.
    """
    made_of = json.dumps(fingerprints(run), sort_keys=True)
    return f"{run_id(run)}-{sha256(made_of.encode()).hexdigest()[:12]}"


def _names(run: Run) -> list[tuple[str, str]]:
    """Return what a run names, as pairs of a kind (a key of `registry.HOMES`) and a name."""
    return [
        ("task", run.task),
        ("model", run.model),
        ("norm", run.norm.name),
        ("data", run.data.name),
        *run.world.names(),
    ]


def check_names(run: Run) -> None:
    """Raise `UserError` for a name in a run that nobody has registered, without reading data.

    A data set may lie anywhere, and a model may be "package.module:factory": these are not looked for.
    """
    check_run(run)
    for kind, name in _names(run):
        if kind != "data" and ":" not in name:
            _ = registry_of(kind)[name]


def expect(run: Run, config: type[Config]) -> Config:
    """Return the run's world if it is a `config`; otherwise raise a `UserError` that names the right function."""
    check_run(run)
    if isinstance(run.world, config):
        return run.world
    raise UserError(
        f"this run is one of {run.world.kind}, not of {config.kind}: give it to {run.world.call}, or to "
        "syncnorm.fit, which takes any."
    )
