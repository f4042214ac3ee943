"""A run's state on disk, so that a run that was killed goes on to the bit-identical end.

`Checkpoints` keeps the newest two states in a folder. `module_state` is what a module learnt and what its layers
keep: parameters, buffers (those too that a state_dict leaves out) and what a layer holds beside buffers. Such a
layer has two methods, `remember()`, which returns plain data and tensors, and `recall(state)`, which takes them;
torch's own `get_extra_state` and `set_extra_state` are asked as well.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from syncnorm.files import whole_file

State = dict[str, Any]


class Checkpoints:
    """The newest two states of a run, each written as a whole.

    Args:
        folder: where they lie.
        run: the run's id; states of any other run are not read.
        part: whose state it is where a run has several, e.g. "rank 0 of 2".
    """

    def __init__(self, folder: Path, run: str, part: str = "") -> None:
        prefix = f"{part.replace(' ', '-')}-" if part else ""
        self._run = run
        self._newest, self._previous = (folder / f"{prefix}{name}.pt" for name in ("newest", "previous"))

    def write(self, state: State) -> None:
        """Save a state; what cannot be written is left out with a warning, since the run can do without."""
        try:
            with whole_file(self._newest, mark="unfinished") as file:
                torch.save({**state, "run_id": self._run}, file)
                if self._newest.exists():
                    self._newest.replace(self._previous)
        except (OSError, RuntimeError) as error:  # torch turns a full disk into a RuntimeError
            warnings.warn(f"cannot write a checkpoint to {self._newest}: {error}", stacklevel=2)

    def read(self, device: str | None = None) -> list[State]:
        """Return the states that can be read, the newest first; torn files and other runs' are left out.

        `device` is where their tensors come to lie: where they lay if not given.
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
    """Return what a file holds; None where there is none, or where it is torn."""
    if not path.exists():
        return None
    try:
        state: State = torch.load(path, map_location=device, weights_only=True)
    except Exception:  # whatever a torn file makes of itself: the one before it is whole
        return None
    return state


def module_state(module: nn.Module) -> State:
    """Return parameters, buffers and what layers keep beside them, by name; the tensors are the module's own."""
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
    """Put a `module_state` back into the module that it is of, or into one that was built in the same way."""
    layers = dict(module.named_modules())
    for path, value in state["tensors"].items():
        name, _, key = path.rpartition(".")
        now = getattr(layers[name], key)
        if isinstance(now, Tensor) and now.shape == value.shape and now.dtype == value.dtype:
            now.copy_(value)
        else:  # a buffer that a layer makes as it goes
            layers[name]._buffers[key] = value.to(now.device) if isinstance(now, Tensor) else value
    for name, kept in state["kept"].items():
        layers[name].recall(kept)
    for name, extra in state["extra"].items():
        layers[name].set_extra_state(extra)


def random_state() -> State:
    """Return the states of torch's random number generators, on the CPU and on this process's CUDA device."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None}


def load_random_state(state: State) -> None:
    """Put a `random_state` back."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
