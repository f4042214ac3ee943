"""Write the state of a fixed model, for `syncnorm doctor --fix FILE`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from syncnorm.errors import UserError
from syncnorm.files import whole_file


def write_state(path: Path, state: Mapping[str, Tensor], sources: list[Path]) -> None:
    """Write a state as safetensors or, with another ending, as `torch.save` does; whole or not at all.

    Raises:
        UserError: `path` is one of `sources`, which stay as they are; it cannot be written; safetensors is missing.
    """
    if any(path.resolve() == source.resolve() for source in sources):
        raise UserError(f"--fix {path} is the file that was read, which stays as it is: name another file.")
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    if path.suffix == ".safetensors" and find_spec("safetensors") is None:
        raise UserError("writing .safetensors needs the package safetensors: pip install safetensors.")
    try:
        with whole_file(path) as file:
            if path.suffix == ".safetensors":
                from safetensors.torch import save

                file.write(save(tensors))
            else:
                torch.save(tensors, file)
    except OSError as error:
        raise UserError(f"--fix {path} cannot be written: {error.strerror or error}.") from error
