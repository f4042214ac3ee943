"""Save the trained weights of a run, and load the model again.

A folder contains `model.safetensors` (parameters and buffers by name), `config.json` (the data to rebuild the model,
and its metrics), and, if clients keep parts of the model, `clients.safetensors` with names of the form "CLIENT.NAME
OF THE ENTRY".
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from syncnorm.config import MODELS, Execution, Result, Run, run_from
from syncnorm.errors import UserError
from syncnorm.files import write_file
from syncnorm.surgery import convert
from syncnorm.tasks import task_named
from syncnorm.training.building import build_model, place_model
from syncnorm.worlds import fingerprints, world_of

WEIGHTS, CLIENTS, CONFIG = "model.safetensors", "clients.safetensors", "config.json"
EXTRA = "_extra_state"


@dataclass(frozen=True)
class LoadedRun:
    """A trained run, loaded from disk."""

    model: nn.Module
    """The model in evaluation mode, on the CPU, with the statistics that evaluated it. For clients it is the global
    model; entries that clients keep are averaged in it, or pooled if the run says so."""
    accuracy: float
    """Accuracy on the test data (of another task than classification, its main metric), as in the run's row: for
    domains with the run's adaptation, for clients the mean over them."""
    run: Run
    metrics: dict[str, float]
    evaluated_by: str
    """The statistics that norm layers used for `accuracy`."""
    clients: dict[int, dict[str, Tensor]] = field(repr=False)
    """The entries that each client keeps, by name; they override the model's entries to give the client's model."""


def check_saving(execution: Execution | None) -> None:
    """Raise `UserError` if weights are to be saved but the package for it is missing."""
    if execution and execution.model and find_spec("safetensors") is None:
        raise UserError("saving models needs the package safetensors: pip install 'syncnorm[study]'.")


def save_model(
    folder: Path,
    run: Run,
    result: Result,
    model: nn.Module,
    shape: tuple[int, ...],
    classes: int,
    *,
    layer: tuple[str, dict[str, Any]] | None = None,
    clients: Mapping[int, Mapping[str, Tensor]] | None = None,
) -> None:
    """Save a trained model, with the data to rebuild it: the run, the samples' shape and the number of classes.

    `layer` is the norm layer's name and options if they differ from those of the run's world; `clients` are the
    entries that clients keep.

    Raises:
        UserError: a folder that cannot be written, or a layer's extra state that is not plain data.
    """
    from safetensors.torch import save

    state = model.state_dict()
    extra = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    tensors = {name: _own(value) for name, value in state.items() if isinstance(value, Tensor)}
    name, options = layer or world_of(run).norm_layer(run.norm, run.world)
    config = {
        "run_id": result.run_id,
        "run": result.config,
        "data_path": run.data.path,
        "shape": list(shape),
        "classes": classes,
        "norm": {"layer": name, "options": options},
        "evaluated_by": result.evaluated_by,
        "metrics": result.metrics,
        "environment": result.environment,
        "fingerprints": fingerprints(run),
        "extra_state": extra,
    }
    try:
        text = json.dumps(config, indent=1)
    except TypeError as error:
        raise UserError(f"model '{run.model}' has an extra state that JSON cannot hold: {error}.") from error
    write_file(folder / WEIGHTS, save(tensors))
    if clients:
        own = ((f"{client}.{name}", value) for client, kept in clients.items() for name, value in kept.items())
        entries = {name: _own(value) for name, value in own}
        write_file(folder / CLIENTS, save(entries))
    write_file(folder / CONFIG, text + "\n")  # written last: its presence shows that the folder is complete


def load_run(directory: str | Path, run_id: str) -> LoadedRun:
    """Return the trained model of a run from the results folder of a study that was run with --save-models.

    Raises:
        UserError: a run without a saved model.
    """
    models = Path(directory) / MODELS
    if not (models / run_id / CONFIG).exists():
        there = sorted(path.name for path in models.iterdir()) if models.is_dir() else []
        known = f"it has {len(there)}, the first of run {there[0]}" if there else "it has none"
        raise UserError(
            f"{directory} has no model of run '{run_id}' ({known}): train the run with --save-models to have it."
        )
    return load_model(models / run_id)


def load_model(folder: str | Path) -> LoadedRun:
    """Return the trained model in a run's `Execution.model` folder.

    Raises:
        UserError: a folder without a model, or files that do not match.
    """
    folder = Path(folder)
    if not (folder / CONFIG).exists():
        raise UserError(f"{folder} holds no trained model: it has no {CONFIG}.")
    from safetensors.torch import load_file

    config = json.loads((folder / CONFIG).read_text())
    run = run_from(config["run"], config["data_path"])
    model = build_model(run, tuple(config["shape"]), config["classes"])
    layer, options = config["norm"]["layer"], config["norm"]["options"]
    if (layer, options) != world_of(run).norm_layer(run.norm, run.world):
        model = convert(model, layer, **options)
    model = place_model(run, model)
    try:
        model.load_state_dict({**load_file(folder / WEIGHTS), **config["extra_state"]})
    except RuntimeError as error:
        changed = [what for what, was in config.get("fingerprints", {}).items() if fingerprints(run).get(what) != was]
        why = f": the source of {', '.join(changed)} has changed since" if changed else f": {_first_line(error)}"
        raise UserError(f"{folder / WEIGHTS} does not fit the model '{run.model}'{why}.") from error
    clients: dict[int, dict[str, Tensor]] = {}
    if (folder / CLIENTS).exists():
        for path, value in load_file(folder / CLIENTS).items():
            client, _, name = path.partition(".")
            clients.setdefault(int(client), {})[name] = value
    metrics = config["metrics"]
    return LoadedRun(
        model.eval(), metrics[task_named(run.task).metric], run, metrics, config["evaluated_by"], clients
    )


def _own(tensor: Tensor) -> Tensor:
    """Return a copy with its own memory, as the format requires."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _first_line(error: Exception) -> str:
    """Return PyTorch's first complaint about the weights."""
    lines = [line.strip() for line in str(error).splitlines()[1:]]
    return (lines[0] if lines else str(error)).rstrip(".")
