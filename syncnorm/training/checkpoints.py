"""A run's state on disk, so that interrupted runs resume bit-identically.

`Checkpoints` keeps the newest two states in a folder. `module_state` has a module's parameters, its buffers
(including those that a state_dict leaves out) and the further state of its layers. A layer with such state has two
methods: `remember()`, which returns plain data and tensors, and `recall(state)`, which restores them. PyTorch's
`get_extra_state` and `set_extra_state` are used too.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from syncnorm.files import whole_file

State = dict[str, Any]


class Checkpoints:
    """The newest two states of a run, each written atomically.

    Args:
        folder: the folder of the states.
        run: the run's id; states of any other run are not read.
        part: whose state it is, if a run has several, e.g. "rank 0 of 2".
    """

    def __init__(self, folder: Path, run: str, part: str = "") -> None:
        prefix = f"{part.replace(' ', '-')}-" if part else ""
        self._run = run
        self._newest, self._previous = (folder / f"{prefix}{name}.pt" for name in ("newest", "previous"))

    def write(self, state: State) -> None:
        """Save a state; a failure only warns, since the run can continue without it."""
        try:
            with whole_file(self._newest, mark="unfinished") as file:
                torch.save({**state, "run_id": self._run}, file)
                if self._newest.exists():
                    self._newest.replace(self._previous)
        except (OSError, RuntimeError) as error:  # PyTorch raises RuntimeError if the disk is full
            warnings.warn(f"cannot write a checkpoint to {self._newest}: {error}", stacklevel=2)

    def read(self, device: str | None = None) -> list[State]:
        """Return the readable states, newest first; damaged files and those of other runs are left out.

        `device` is the device of their tensors; by default, the one they were saved from.
        """
        states = [state for path in (self._newest, self._previous) if (state := _read(path, device)) is not None]
        mine = [state for state in states if state.get("run_id") == self._run]
        if len(mine) < len(states):
            warnings.warn(
                f"{self._newest.parent} holds a checkpoint of another run than {self._run}: it is not used.",
                stacklevel=2,
            )
        return mine


def _read(path: Path, device: str | None) -> State | None:
    """Return the content of a file; None if it is missing or damaged."""
    if not path.exists():
        return None
    try:
        state: State = torch.load(path, map_location=device, weights_only=True)
    except Exception:  # a damaged file may raise anything; the one before it is complete
        return None
    return state


def module_state(module: nn.Module) -> State:
    """Return parameters, buffers and the layers' further state, by name; the tensors are shared with the module."""
    state: State = {"tensors": {}, "kept": {}, "extra": {}}
    for name, layer in module.named_modules():
        for key, tensor in (*layer._parameters.items(), *layer._buffers.items()):
            if tensor is not None:
                state["tensors"][f"{name}.{key}"] = tensor.detach()
        if hasattr(layer, "remember"):
            state["kept"][name] = layer.remember()
        if type(layer).get_extra_state is not nn.Module.get_extra_state:
            state["extra"][name] = layer.get_extra_state()
    return state


@torch.no_grad()
def load_module_state(module: nn.Module, state: State) -> None:
    """Restore a `module_state` in its module, or in one that was built in the same way."""
    layers = dict(module.named_modules())
    for path, value in state["tensors"].items():
        name, _, key = path.rpartition(".")
        now = getattr(layers[name], key)
        if isinstance(now, Tensor) and now.shape == value.shape and now.dtype == value.dtype:
            now.copy_(value)
        else:  # a buffer that a layer creates during training
            layers[name]._buffers[key] = value.to(now.device) if isinstance(now, Tensor) else value
    for name, kept in state["kept"].items():
        layers[name].recall(kept)
    for name, extra in state["extra"].items():
        layers[name].set_extra_state(extra)


def random_state() -> State:
    """Return the states of PyTorch's random number generators, on the CPU and on this process's CUDA device."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None}


def load_random_state(state: State) -> None:
    """Restore a `random_state`."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
