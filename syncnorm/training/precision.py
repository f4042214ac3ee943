"""Precisions of a run: which types it computes in, and the one place where autocast is entered.

Whatever the precision, statistics are at least float32, and so is a loss.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from syncnorm.errors import UserError
from syncnorm.norms.weight.weight_standardization import CONVOLUTIONS
from syncnorm.surgery.conversion.convert import layers_with_statistics


@dataclass(frozen=True)
class Precision:
    """The types of a run. Micikevicius et al. (arXiv 1710.03740); bfloat16: Kalamkar et al. (arXiv 1905.12322)."""

    data: torch.dtype
    """Of samples, fractional targets, losses, and of layers that keep statistics, whole."""
    parameters: torch.dtype
    """Of all other parameters and buffers."""
    products: torch.dtype | None = None
    """To which autocast lowers convolutions and matrix products in training."""
    loss_scale: float = 1.0
    """By which clients multiply the loss before the backward pass, and divide gradients after it. It is constant,
    since a client's few steps leave no time to find one; Lightning's scale of devices and domains adapts itself."""
    trainer: str = "32-true"
    """What Lightning's Trainer is to do about it: nothing, where the model and `autocast` do all."""


PRECISIONS = {
    "float32": Precision(torch.float32, torch.float32),
    "float64": Precision(torch.float64, torch.float64, trainer="64-true"),
    "bf16-mixed": Precision(torch.float32, torch.float32, products=torch.bfloat16),
    "16-mixed": Precision(torch.float32, torch.float32, torch.float16, loss_scale=1024.0, trainer="16-mixed"),
    "bf16-true": Precision(torch.float32, torch.bfloat16),
}
"""The precisions by the names of `Run.precision`."""


def check_precision(name: str) -> None:
    """Raise `UserError` for a precision that this machine's device lacks.

    On a CPU, PyTorch accepts float16 without a word and computes it without the fast kernels of other types, and
    Lightning trains in bfloat16 instead; so it is refused there. bfloat16 runs on every CPU, on most of them slower
    than float32 (`benchmarks/precision.py`).
    """
    cuda = torch.cuda.is_available()
    if name == "16-mixed" and not cuda:
        raise UserError("precision 16-mixed needs a CUDA device: write bf16-mixed, which any machine can do.")
    if name.startswith("bf16") and cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(
            f"precision {name} needs a CUDA device that computes bfloat16, and {torch.cuda.get_device_name()} does "
            "not: write 16-mixed or float32."
        )


def autocast(name: str, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context of a training forward: autocast to a mixed precision's type, else nothing."""
    products = PRECISIONS[name].products
    return nullcontext() if products is None else torch.autocast(device.type, dtype=products)


def at_least_float32(outputs: Tensor) -> Tensor:
    """Return a model's outputs in a type in which a loss can be taken: float32 for half-precision ones."""
    short = isinstance(outputs, Tensor) and outputs.is_floating_point() and outputs.element_size() < 4
    return outputs.float() if short else outputs


def in_precision(model: nn.Module, name: str, device: torch.device | None = None) -> nn.Module:
    """Move a model to a device, and its real and complex entries to a run's precision, in place; return it.

    Layers that keep statistics stay in the type of the data as a whole: their kernels take float32 parameters and
    statistics beside a bfloat16 input, and a running mean in bfloat16 would stop moving, since an update below 1/512
    of its value is always lost. If the other parameters have a shorter type, the model casts its input to it, and its
    output back.

    Raises:
        UserError: a model with complex entries, in a precision that has no complex numbers.
    """
    precision = PRECISIONS[name]
    model.to(device)  # `Module.to` with a type would cast complex entries to real ones
    statistics = {id(tensor) for layer in _statistical(model) for tensor in _tensors(layer)}
    for tensor in _tensors(model):
        dtype = precision.data if id(tensor) in statistics else precision.parameters
        if tensor.is_complex():
            if dtype is torch.bfloat16:
                raise UserError(f"precision {name} has no complex numbers, and the model has: write float32.")
            dtype = dtype.to_complex()
        elif not tensor.is_floating_point():
            continue
        tensor.data = tensor.data.to(dtype)
    if precision.parameters != precision.data:
        model.register_forward_pre_hook(partial(_cast_input, precision.parameters))
        model.register_forward_hook(_cast_output)
    return model


def _statistical(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers that keep statistics of their inputs, without convolutions that normalise weights."""
    return (layer for layer in layers_with_statistics(model) if not isinstance(layer, CONVOLUTIONS))


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())


def _cast_input(dtype: torch.dtype, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)


def _cast_output(module: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> Any:
    return at_least_float32(outputs)
