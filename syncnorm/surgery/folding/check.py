"""Compare a model's outputs before and after folding, on a given batch or on one that is made up for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, zip_longest
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from syncnorm.errors import UserError
from syncnorm.surgery.layers.modes import evaluation
from syncnorm.surgery.layers.preconditions import call

# Largest allowed deviation from the unfolded output, relative to that output's largest value. In float64 it is that
# of rounding alone, which tells a wrong fold from a long sum; each type has its own for what rounding may do to it.
_EXACT = 1e-9
_ROUNDED = {torch.float64: 1e-9, torch.float32: 1e-4}
_SIZES = (32, 28, 64, 224, 16, 8, 12, 10, 6, 4, 96, 128, 256, 299, 384)

Change = Callable[[], Callable[[], None]]
Inputs = tuple[Any, ...]


def checked(model: nn.Module, change: Change, inputs: Inputs, what: str) -> None:
    """Make the change, and undo it and raise `UserError` if it moves the outputs of `model` on `inputs`.

    Outputs are compared in the model's own type, and in float64 if the model runs in it. All runs draw the same
    random numbers of PyTorch.

    Args:
        model: a module, which is run in evaluation mode.
        change: changes the model, and returns a function that undoes it.
        inputs: the arguments of its forward.
        what: what the inputs are, for the sentence.
    """
    with torch.no_grad(), evaluation(model):
        before = _outputs(model, inputs, what)
        if not any(right.numel() for right in before):
            raise UserError(f"there is no number in the model's output on {what} to compare: give a larger batch.")
        if not all(right.isfinite().all() for right in before):
            raise UserError(f"the model's output on {what} is not finite, so it says nothing: give another batch.")
        if _moved(before, _outputs(model, inputs, what), alone=True):
            raise UserError(f"the model's output on {what} is random, so it cannot be compared: make it repeatable.")
        exact = _moved_in_double(model, change, inputs)
        undo = change()
        try:
            after = _outputs(model, inputs, what)
            deviation = exact or _moved(before, after, exact is None, _finest(model))
        except BaseException:
            undo()
            raise
        if deviation:
            undo()
            raise UserError(
                f"folding would change the model's output on {what} by {deviation:.2g}: its forward uses the layers "
                "in another way than their order says, so all batch norms stay as they are."
            )


def made_up_inputs(model: nn.Module, graph: fx.Graph | None) -> Iterator[Inputs]:
    """Yield inputs that the traced forward may take, as the first layer that each goes through has it."""
    if graph is None:
        return
    firsts = [_first_layer(model, node) for node in graph.nodes if node.op == "placeholder" and not node.args]
    if not firsts or None in firsts:
        return
    generator = torch.Generator().manual_seed(0)
    tried = set()
    for size in _SIZES:
        inputs = tuple(_input_of(layer, size, generator) for layer in firsts)
        shapes = tuple(x.shape for x in inputs)
        if shapes not in tried:
            tried.add(shapes)
            yield inputs


def takes(model: nn.Module, inputs: Inputs) -> bool:
    """Return whether the outputs of `model` on `inputs` can be compared: they are numbers, and the same again."""
    with torch.no_grad(), evaluation(model):
        try:
            found, again = (_outputs(model, inputs, "") for _ in range(2))
        except UserError:
            return False
    numbers = any(part.numel() for part in found) and all(bool(part.isfinite().all()) for part in found)
    return numbers and not _moved(found, again, alone=True)


def _first_layer(model: nn.Module, start: fx.Node) -> nn.Module | None:
    """Return the first layer with a known number of channels that `start` goes through, in the order of the trace."""
    reached = {start}
    for node in start.graph.nodes:
        if not reached.isdisjoint(node.all_input_nodes):
            reached.add(node)
            if node.op == "call_module":
                known = _ConvNd, nn.Linear, nn.Embedding, _BatchNorm
                for layer in model.get_submodule(str(node.target)).modules():
                    if isinstance(layer, known):
                        return layer
    return None


def _input_of(layer: Any, size: int, generator: torch.Generator) -> Tensor:
    """Return a batch of two for `layer`, with `size` positions in each dimension."""
    if isinstance(layer, nn.Embedding):
        ids = torch.randint(layer.num_embeddings, (2, size), generator=generator, device="cpu")
        return ids.to(layer.weight.device)
    if isinstance(layer, _ConvNd):
        shape = (layer.in_channels, *[size] * len(layer.kernel_size))
    elif isinstance(layer, nn.Linear):
        shape = (layer.in_features,)
    else:
        ndim = {nn.BatchNorm1d: 0, nn.BatchNorm3d: 3}.get(type(layer), 2)
        shape = (layer.num_features, *[size] * ndim)
    like = next(chain(layer.parameters(), layer.buffers()), torch.zeros(0, device="cpu"))
    dtype = like.dtype if like.is_floating_point() else torch.float32
    return torch.randn(2, *shape, generator=generator, device="cpu").to(like.device, dtype)


def _outputs(model: nn.Module, inputs: Inputs, what: str) -> list[Tensor]:
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        return [part.detach().clone() for part in _tensors(call(model, *inputs, what=what))]


def _rounding(dtype: torch.dtype) -> float:
    return _ROUNDED.get(dtype, 5e-2)


def _finest(model: nn.Module) -> float:
    """Return the rounding of the finest of the model's types, which an output of a finer one has gone through."""
    tensors = chain(model.parameters(), model.buffers())
    return min((_rounding(tensor.dtype) for tensor in tensors if tensor.is_floating_point()), default=0.0)


def _moved(before: list[Tensor], after: list[Tensor], alone: bool, rounding: float = 0.0) -> float:
    """Return the largest deviation, or 0 if none is beyond rounding; `alone` if float64 has said nothing."""
    worst = 0.0
    for right, found in zip_longest(before, after):
        if right is None or found is None or right.shape != found.shape:
            return float("inf")
        if right.numel():
            deviation = (found.double() - right.double()).abs().max().item()
            largest = max(right.double().abs().max().item(), 0.0 if alone else 1.0)
            if not deviation <= max(_rounding(right.dtype), rounding) * largest:
                worst = max(worst, deviation) if deviation == deviation else float("nan")
    return worst


def _moved_in_double(model: nn.Module, change: Change, inputs: Inputs) -> float | None:
    """Return how far the change moves the outputs in float64, 0 for rounding alone; None if the model cannot run."""
    try:
        with _double(model):
            wide = tuple(_doubled(x) for x in inputs)
            before = _outputs(model, wide, "")
            undo = change()
            try:
                after = _outputs(model, wide, "")
            finally:
                undo()
    except Exception:  # a forward may have a type of its own
        return None
    if not before or any(part.dtype != torch.float64 or not part.isfinite().all() for part in before):
        return None
    return _moved(before, after, alone=True)


@contextmanager
def _double(model: nn.Module) -> Iterator[None]:
    """Let all tensors of `model` hold their values in float64; afterwards, what they held."""
    tensors = [t for t in chain(model.parameters(), model.buffers()) if t.is_floating_point()]
    held = [(tensor, tensor.data) for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.data = tensor.data.double()
        yield
    finally:
        for tensor, data in held:
            tensor.data = data


def _doubled(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _doubled(part) for key, part in value.items()}
    return type(value)(map(_doubled, value)) if type(value) in (list, tuple) else value


def _tensors(output: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors of an output, however nested."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, dict | list | tuple):
        for part in output.values() if isinstance(output, dict) else output:
            yield from _tensors(part)
