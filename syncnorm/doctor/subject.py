"""What the command looks at: a model that a function builds, or the numbers in a checkpoint."""

from __future__ import annotations

import inspect
import pickle
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from syncnorm.errors import UserError, where_raised, with_article

FILES = (".pt", ".pth", ".bin", ".ckpt", ".tar", ".safetensors")
HOLDERS = ("state_dict", "model_state_dict", "model", "module", "net", "state_dict_ema", "ema")
"""Under which names checkpoints keep the state of a model."""


@dataclass(frozen=True)
class Subject:
    """A model to look at.

    name: for the headline.
    model: the model; of a checkpoint, a tree of batch norms that hold its numbers.
    live: whether it can run.
    file, line: where it is defined; an empty file if unknown.
    """

    name: str
    model: nn.Module
    live: bool
    file: str = ""
    line: int = 1


def subject_of(text: str) -> Subject:
    """Return what a user names: "package.module:factory", "file.py:factory", or the file of a checkpoint.

    Raises:
        UserError: it is none of these, or cannot be loaded.
    """
    path = Path(text)
    if path.suffix in FILES or path.is_file():
        if not path.is_file():
            raise UserError(f"there is no checkpoint {path}.")
        return Subject(path.name, stand_in(state_of(path), str(path)), live=False, file=str(path))
    if ":" not in text:
        raise UserError(
            f"'{text}' is neither a file nor a function: write package.module:function, file.py:function, or the "
            "path of a checkpoint."
        )
    return _from_factory(text)


def _from_factory(text: str) -> Subject:
    where, _, name = text.rpartition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        module = _module_of_file(Path(where)) if where.endswith(".py") else _imported(where)
    except UserError:
        raise
    except Exception as error:  # a user's module may do anything
        raise UserError(f"{where} cannot be imported: {_said(error)} ({where_raised(error)}).") from error
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise UserError(f"{where} has no '{name}': write the name of a function that returns a model.")
        found = getattr(found, part)
    model = found if isinstance(found, nn.Module) else _called(found, text)
    if not isinstance(model, nn.Module):
        raise UserError(f"{text} returns {with_article(type(model).__name__)}: it has to return a torch.nn.Module.")
    file, line = _place(found if not isinstance(found, nn.Module) else type(found))
    return Subject(text, model, live=True, file=file, line=line)


def _imported(name: str) -> Any:
    top = name.partition(".")[0]
    if not top or find_spec(top) is None:
        raise UserError(f"there is no module '{name}' here: write package.module:function, or file.py:function.")
    return import_module(name)


def _module_of_file(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"there is no file {path}.")
    folder = str(path.parent.resolve())
    if folder not in sys.path:
        sys.path.append(folder)
    spec = spec_from_file_location(path.stem, path.resolve())
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file.")
    module = module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module


def _called(factory: Any, text: str) -> Any:
    if not callable(factory):
        raise UserError(
            f"{text} is {with_article(type(factory).__name__)}: write the name of a function that returns a model."
        )
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        parameters = ()  # type: ignore[assignment]
    free = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    )
    needed = [one.name for one in parameters if one.default is one.empty and one.kind in free]
    if needed:
        raise UserError(
            f"{text} needs arguments ({', '.join(needed)}): write a function without any, that calls it with them."
        )
    try:
        return factory()
    except Exception as error:  # a user's function may do anything
        raise UserError(f"{text} fails: {_said(error)} ({where_raised(error)}).") from error


def _place(found: Any) -> tuple[str, int]:
    try:
        file, line = inspect.getsourcefile(found) or "", inspect.getsourcelines(found)[1]
    except (TypeError, OSError):
        return "", 1
    path = Path(file).resolve()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path), line


def _said(error: BaseException) -> str:
    text = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def state_of(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name. Nothing in the file is run.

    Raises:
        UserError: a pickle of more than numbers, a broken file, or one without tensors.
    """
    try:
        if path.suffix == ".safetensors":
            held = _safetensors(path)
        else:
            held = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is a pickle of more than numbers, which would run code as it is loaded, so it is left alone: "
            "save model.state_dict(), with torch.save or safetensors."
        ) from error
    except Exception as error:  # a file may hold anything
        raise UserError(f"{path} cannot be read as a checkpoint: {_said(error)}.") from error
    found = _state_in(held)
    if not found:
        raise UserError(f"{path} holds no state of a model: save model.state_dict().")
    return found


def _safetensors(path: Path) -> dict[str, Tensor]:
    if find_spec("safetensors") is None:
        raise UserError("reading .safetensors needs the package safetensors: pip install safetensors.")
    from safetensors.torch import load_file

    return load_file(path)


def _state_in(held: Any) -> dict[str, Tensor]:
    if not isinstance(held, Mapping):
        return {}
    for key in HOLDERS:
        if isinstance(held.get(key), Mapping) and any(isinstance(value, Tensor) for value in held[key].values()):
            held = held[key]
            break
    return {str(name): value for name, value in held.items() if isinstance(value, Tensor)}


def stand_in(state: Mapping[str, Tensor], what: str) -> nn.Module:
    """Return a tree of modules with a batch norm wherever a state has running statistics, with what it holds there.

    Raises:
        UserError: a state without running statistics.
    """
    root = nn.Module()
    names = [name.rpartition(".")[0] for name in state if name.rpartition(".")[2] == "running_mean"]
    if not names:
        raise UserError(
            f"{what} holds no running statistics (no entry ends in running_mean), so there is nothing to look at in "
            "a checkpoint alone: name the function that builds the model."
        )
    for name in names:
        layer = _BatchNorm(len(state[f"{name}.running_mean" if name else "running_mean"].flatten()))
        for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            value = state.get(f"{name}.{part}" if name else part)
            if part in ("weight", "bias"):
                learnt = isinstance(value, Tensor) and value.is_floating_point()
                layer._parameters[part] = (
                    nn.Parameter(value, requires_grad=False) if learnt and value is not None else None
                )
            else:
                layer._buffers[part] = value
        parent = root
        *path, last = name.split(".") if name else ["model"]
        for step in path:
            if step not in parent._modules:
                parent.add_module(step, nn.Module())
            parent = parent.get_submodule(step)
        parent.add_module(last, layer)
    return root.eval()
