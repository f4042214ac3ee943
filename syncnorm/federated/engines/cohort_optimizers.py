"""Optimisers of many clients at once: parameters are stacked along the first dimension, one row per client.

PyTorch's optimisers are elementwise, so the arithmetic is the same, with the groups of `make_optimizer`: weight decay
applies to parameters with two or more dimensions in the model. A step names its rows, since not all clients make
every step; Adam counts each row's steps.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from syncnorm.config import Optim

Rows = slice | Tensor
"""Some clients of a stack: `stack[rows]` is a view for a slice, a copy for a tensor of indices."""


def put(stack: Tensor, rows: Rows, values: Tensor) -> None:
    """Write back `values`, which were taken as `stack[rows]` and changed in place."""
    if not isinstance(rows, slice):
        stack[rows] = values


class StackedOptimizer:
    """torch.optim.SGD for K stacked models, and the base of the others.

    Args:
        optim: the optimiser; its learning rate does not change.
        parameters: parameters by name, (K, ...); not stored.
        momentum: SGD's momentum buffers to continue with, by name, (K, ...). Zeros are equivalent to none: PyTorch's
            first buffer is the gradient itself.
    """

    def __init__(self, optim: Optim, parameters: Mapping[str, Tensor], momentum: Mapping[str, Tensor]) -> None:
        self._optim = optim
        self._momentum = {name: torch.zeros_like(p) for name, p in parameters.items()} | dict(momentum)
        self._moved = set(momentum)

    def step(self, name: str, parameter: Tensor, gradient: Tensor, rows: Rows) -> None:
        """Update `parameter`, (R, ...), of the clients `rows`, in place."""
        self._moved.add(name)
        self._move(name, parameter, gradient, self._optim.weight_decay if parameter.dim() > 2 else 0.0, rows)

    def momentum(self) -> dict[str, Tensor]:
        """Return the momentum buffers by name, (K, ...)."""
        return {name: self._momentum[name] for name in self._moved} if self._optim.momentum else {}

    def _move(self, name: str, parameter: Tensor, gradient: Tensor, decay: float, rows: Rows) -> None:
        if self._optim.momentum:
            # Added to the buffer term by term: gradients may share memory, and a sum would need its own.
            direction = self._momentum[name][rows].mul_(self._optim.momentum).add_(gradient)
            if decay:
                direction.add_(parameter, alpha=decay)
            put(self._momentum[name], rows, direction)
        else:
            direction = gradient.add(parameter, alpha=decay) if decay else gradient
        parameter.add_(direction, alpha=-self._optim.lr)


class _Adam(StackedOptimizer):
    """torch.optim.Adam, which has no momentum buffers in SGD's sense."""

    _BETAS, _EPS = (0.9, 0.999), 1e-8

    def __init__(self, optim: Optim, parameters: Mapping[str, Tensor], momentum: Mapping[str, Tensor]) -> None:
        super().__init__(optim, parameters, {})
        self._mean = self._momentum
        self._square = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self._steps = {
            name: torch.zeros(len(p), dtype=torch.int64, device=p.device) for name, p in parameters.items()
        }

    def momentum(self) -> dict[str, Tensor]:
        """Return nothing."""
        return {}

    def _move(self, name: str, parameter: Tensor, gradient: Tensor, decay: float, rows: Rows) -> None:
        if decay:
            gradient = gradient.add(parameter, alpha=decay)
        beta1, beta2 = self._BETAS
        mean = self._mean[name][rows].lerp_(gradient, 1 - beta1)
        square = self._square[name][rows].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        steps = self._steps[name][rows].add_(1)
        for stacks, values in ((self._mean, mean), (self._square, square), (self._steps, steps)):
            put(stacks[name], rows, values)
        count = steps.view(-1, *[1] * (parameter.dim() - 1)).to(parameter.dtype)
        denominator = square.sqrt().div_((1 - beta2**count).sqrt()).add_(self._EPS)
        parameter.sub_(mean / denominator * (self._optim.lr / (1 - beta1**count)))


class _AdamW(_Adam):
    """torch.optim.AdamW."""

    def _move(self, name: str, parameter: Tensor, gradient: Tensor, decay: float, rows: Rows) -> None:
        parameter.mul_(1 - self._optim.lr * decay)
        super()._move(name, parameter, gradient, 0.0, rows)


STACKED: dict[str, type[StackedOptimizer]] = {"sgd": StackedOptimizer, "adam": _Adam, "adamw": _AdamW}
"""The optimisers, by their names in `Optim`."""
