"""Gradient norms at every layer, which show whether the gradient grows or vanishes on its way back."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from syncnorm.errors import UserError
from syncnorm.surgery.layers.replace import copied
from syncnorm.tasks import task_named

_NORMS = (_BatchNorm, nn.LayerNorm, nn.RMSNorm)
"""Norms whose weights may have two dimensions but are not matrices."""


def gradient_norms(model: nn.Module, x: Tensor, y: Tensor, task: str = "classification") -> dict[str, float]:
    """Return ||dL / dz|| for the output z of every layer with a weight, in the order of their first calls.

    L is the task's loss of the batch `x` (N, ...) with targets `y` (N, ...), in training mode: for classification the
    mean cross-entropy with labels (N,), in nats. Layers are
    those whose weight has two or more dimensions (linear, convolutional; not norms), by their names in `model`. The
    norm is Euclidean, over all entries of z for the whole batch; if a layer is called more than once, over all of its
    outputs. Values that overflow are returned as inf or nan.

    It is the gradient with respect to outputs, not weights, since that is what propagates from layer to layer: Sari,
    Belbahri & Partovi Nia (arXiv 1909.09139), and the initialisations of Glorot and He, consider whether its variance
    grows from one layer to the previous one. The gradient with respect to a weight is this one times the layer's
    input, which has its own scale. If a norm follows the layer, z is the norm's input.

    A copy of the model is measured, so the model's parameters, gradients, buffers, modes, the state of its norms and
    the process's random state do not change.

    Raises:
        UserError: a model that `copy.deepcopy` cannot copy.
    """
    twin = _copy(model).train()
    squares: dict[str, float] = {}
    counting = False

    def watch(name: str, output: object) -> None:
        squares.setdefault(name, 0.0)
        if isinstance(output, Tensor) and output.requires_grad:
            # A hook sees the gradient of the output as it is here, even if an activation overwrites it later.
            output.register_hook(lambda gradient: add(name, gradient))  # type: ignore[no-untyped-call]

    def add(name: str, gradient: Tensor) -> None:
        if counting:  # before that, a norm may have computed its own derivatives
            squares[name] += gradient.double().square().sum().item()

    for name, layer in twin.named_modules():
        if _has_matrix(layer):
            layer.register_forward_hook(lambda _, __, output, name=name: watch(name, output))
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.enable_grad():
        # The input requires a gradient too, so that frozen layers have gradients at their outputs.
        loss = task_named(task).loss(twin(x.detach().requires_grad_()), y)
        counting = True
        loss.backward()  # type: ignore[no-untyped-call]
    return {name: math.sqrt(square) for name, square in squares.items()}


def gradient_profile(
    model: nn.Module, x: Tensor, y: Tensor, task: str = "classification"
) -> dict[str, list[Any]] | None:
    """Return `gradient_norms` in the form that rows store: {"layers": names, "values": numbers}.

    JSON has no inf or nan, so values that overflowed become None. A model that cannot be copied has no profile.
    """
    try:
        norms = gradient_norms(model, x, y, task)
    except UserError:  # a missing diagnostic must not fail the run
        return None
    values = [value if math.isfinite(value) else None for value in norms.values()]
    return {"layers": list(norms), "values": values}


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copied(model)
    except Exception as error:  # a user's module may contain anything
        kind = type(model).__name__
        raise UserError(f"gradients are measured on a copy, and {kind} cannot be copied: {error}") from error


def _has_matrix(layer: nn.Module) -> bool:
    weight = getattr(layer, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() >= 2 and not isinstance(layer, _NORMS)
