"""Checks that a model's layers can be changed or measured."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parallel import DistributedDataParallel

from syncnorm._torch import compiler_is_loaded, flat_sharded, fully_sharded
from syncnorm.errors import UserError

FOREIGN = "keeps a running mean, but is no torch.nn batch norm (it may call F.batch_norm)"
_QUANTISED = re.compile(r"torch\.ao\.nn\..*(quantized|qat)")


def check_model(model: Any) -> None:
    """Raise `UserError` unless `model` is a module without scripted or quantised batch norms."""
    if not isinstance(model, nn.Module):
        what = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise UserError(f"the model is {what}: give a torch.nn.Module.")
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) and "BatchNorm" in module.original_name:
            raise UserError(f"layer '{name}' is compiled by TorchScript: give the model from before that.")
        if _QUANTISED.match(type(module).__module__) and any(isinstance(m, _BatchNorm) for m in module.modules()):
            raise UserError(f"layer '{name}' is quantised: give the model from before that.")


def check_changeable(model: Any) -> None:
    """Raise what `check_model` raises, and `UserError` for a model whose layers must no longer change."""
    check_model(model)
    if any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        raise UserError(
            "the model is wrapped in DistributedDataParallel, which knows the parameters that it had: change the "
            "model inside (.module), and wrap that anew."
        )
    if flat_sharded(model):
        raise UserError(
            "the model is wrapped in FullyShardedDataParallel (FSDP1), which has put the parameters of several "
            "layers into one: change the model before you wrap it. (fully_shard keeps them apart.)"
        )


def check_whole(model: nn.Module, what: str) -> None:
    """Raise `UserError` if a rank holds a share of each parameter alone; `what` needs all of it."""
    if fully_sharded(model) or flat_sharded(model):
        raise UserError(
            f"the model is sharded (FSDP), and {what} needs whole parameters: gather them with "
            "torch.distributed.checkpoint.state_dict.get_model_state_dict(model, options=StateDictOptions("
            "full_state_dict=True)), load them into a model that is not sharded, and use that."
        )


def foreign_norms(model: nn.Module) -> dict[str, nn.Module]:
    """Return modules with a running mean that are not a PyTorch batch norm: own classes, or users of
    F.batch_norm."""
    return {
        name: module
        for name, module in model.named_modules()
        if any("running_mean" in key and value is not None for key, value in module._buffers.items())
        and not isinstance(module, _BatchNorm | _InstanceNorm)
    }


def warn_of_foreign_norms(model: nn.Module, left: str) -> None:
    """Warn of `foreign_norms`, which are `left` as they are."""
    found = [f"'{name}' ({type(module).__name__})" for name, module in foreign_norms(model).items()]
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        warnings.warn(f"{', '.join(found[:3])}{more}: {FOREIGN}, so {left}.", stacklevel=3)


def call(model: Callable[..., Any], *inputs: Any, what: str) -> Any:
    """Return `model(*inputs)`; whatever it raises becomes a `UserError` that says what `what` is."""
    try:
        return model(*inputs)
    except UserError:
        raise
    except Exception as error:
        x = inputs[0]
        given = f"{x.dtype}, {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise UserError(f"the model fails on {what} ({given}): {in_a_line(error)}.") from error


def in_a_line(error: Exception) -> str:
    """Return the first line of an error's message, after its type unless it is a `UserError`."""
    said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return said if isinstance(error, UserError) else f"{type(error).__name__}: {said}"


@contextmanager
def uncompiled() -> Iterator[None]:
    """Let compiled parts run eagerly: compiled code ignores hooks and cannot be traced."""
    _eager.enter()
    try:
        yield
    finally:
        _eager.leave()


class _Eager:
    """The compiler has one stance for all threads: the first that wants it eager sets that, the last undoes it."""

    def __init__(self) -> None:
        self._lock, self._users = threading.Lock(), 0
        self._stance: AbstractContextManager[None] | None = None

    def enter(self) -> None:
        with self._lock:
            self._users += 1
            if self._stance is None and compiler_is_loaded():
                self._stance = torch.compiler.set_stance("force_eager")  # torch takes it as soon as it is made

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0 and self._stance is not None:
                self._stance.__exit__(None, None, None)
                self._stance = None


_eager = _Eager()
