"""Optimisers of many models at once: parameters are stacked along the first dimension, one row per model.

PyTorch's optimisers are elementwise, so the arithmetic is the same, with the groups of `make_optimizer`: weight decay
applies to parameters with two or more dimensions in the model. A step names its rows, since not all models make
every step; Adam counts each row's steps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from syncnorm.config import Optim
from syncnorm.training.learner import BY_DOMAIN

Rows = slice | Tensor
"""Some models of a stack: `stack[rows]` is a view for a slice, a copy for a tensor of indices."""
ALL: Rows = slice(None)

Number = float | Tensor
"""One number for all models, or one for each: (K,)."""


@dataclass
class Rates:
    """The numbers of an optimiser, which may differ between models. They may be changed between two steps."""

    lr: Number
    momentum: Number
    weight_decay: Number

    @classmethod
    def of(cls, optim: Optim) -> "Rates":
        """Return the numbers of one optimiser, for all models."""
        return cls(optim.lr, optim.momentum, optim.weight_decay)

    @classmethod
    def by_model(cls, optims: Sequence[Optim]) -> "Rates":
        """Return the numbers of each model's own optimiser."""
        return cls(*(by_model([getattr(one, name) for one in optims]) for name in ("lr", "momentum", "weight_decay")))


def by_model(numbers: Sequence[float]) -> Number:
    """Return the models' numbers as one where all are the same, else as float64 (K,)."""
    return numbers[0] if len(set(numbers)) == 1 else torch.tensor(numbers, dtype=torch.float64)


def put(stack: Tensor, rows: Rows, values: Tensor) -> None:
    """Write back `values`, which were taken as `stack[rows]` and changed in place."""
    if not isinstance(rows, slice):
        stack[rows] = values


def _present(number: Number) -> bool:
    return bool((number != 0).any()) if isinstance(number, Tensor) else number != 0


def _at(number: Number, rows: Rows, like: Tensor) -> Number:
    """Return the number of each of `rows`, shaped to multiply `like` (R, ...) with."""
    if not isinstance(number, Tensor):
        return number
    return number.to(like)[rows].view(-1, *[1] * (like.dim() - 1))


def _add(to: Tensor, what: Tensor, times: Number, sign: int = 1) -> Tensor:
    """Add `what` so many times, in place."""
    if isinstance(times, Tensor):
        return to.addcmul_(what, times, value=sign)
    return to.add_(what, alpha=sign * times)


class StackedOptimizer:
    """torch.optim.SGD for K stacked models, and the base of the others.

    Args:
        rates: learning rate, momentum and weight decay.
        parameters: parameters by name, (K, ...); not stored.
        momentum: SGD's momentum buffers to continue with, by name, (K, ...). Zeros are equivalent to none: PyTorch's
            first buffer is the gradient itself.
    """

    def __init__(
        self, rates: Rates, parameters: Mapping[str, Tensor], momentum: Mapping[str, Tensor] | None = None
    ) -> None:
        self.rates = rates
        self._momentum = {name: torch.zeros_like(p) for name, p in parameters.items()} | dict(momentum or {})
        self._moved = set(momentum or {})

    def step(self, name: str, parameter: Tensor, gradient: Tensor, rows: Rows) -> None:
        """Update `parameter`, (R, ...), of the models `rows`, in place."""
        self._moved.add(name)
        decays = parameter.dim() > 2 and not name.endswith(BY_DOMAIN)
        self._move(name, parameter, gradient, self.rates.weight_decay if decays else 0.0, rows)

    def momentum(self) -> dict[str, Tensor]:
        """Return the momentum buffers by name, (K, ...)."""
        return {name: self._momentum[name] for name in self._moved} if _present(self.rates.momentum) else {}

    def remember(self, row: int) -> dict[str, dict[str, Tensor]]:
        """Return what torch's optimiser would hold of model `row`, by parameter; the tensors are copies."""
        return {name: {"momentum_buffer": value[row].clone()} for name, value in self.momentum().items()}

    @torch.no_grad()
    def recall(self, row: int, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restore model `row` from what torch's optimiser held of it."""
        for name, held in state.items():
            if held.get("momentum_buffer") is not None:
                self._moved.add(name)
                self._momentum[name][row].copy_(held["momentum_buffer"])

    def _move(self, name: str, parameter: Tensor, gradient: Tensor, decay: Number, rows: Rows) -> None:
        decays, decay = _present(decay), _at(decay, rows, parameter)
        if _present(self.rates.momentum):
            # Added to the buffer term by term: gradients may share memory, and a sum would need its own.
            direction = self._momentum[name][rows].mul_(_at(self.rates.momentum, rows, parameter)).add_(gradient)
            if decays:
                _add(direction, parameter, decay)
            put(self._momentum[name], rows, direction)
        else:
            direction = _add(gradient.clone(), parameter, decay) if decays else gradient
        _add(parameter, direction, _at(self.rates.lr, rows, parameter), sign=-1)


class _Adam(StackedOptimizer):
    """torch.optim.Adam, which has no momentum buffers in SGD's sense."""

    _BETAS, _EPS = (0.9, 0.999), 1e-8

    def __init__(
        self, rates: Rates, parameters: Mapping[str, Tensor], momentum: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__(rates, parameters)
        self._mean = self._momentum
        self._square = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self._steps = {
            name: torch.zeros(len(p), dtype=torch.int64, device=p.device) for name, p in parameters.items()
        }

    def momentum(self) -> dict[str, Tensor]:
        """Return nothing."""
        return {}

    def remember(self, row: int) -> dict[str, dict[str, Tensor]]:
        """Return what torch's optimiser would hold of model `row`, by parameter; the tensors are copies."""
        return {
            name: {
                "step": self._steps[name][row].to("cpu", torch.float32),
                "exp_avg": self._mean[name][row].clone(),
                "exp_avg_sq": self._square[name][row].clone(),
            }
            for name in self._moved
        }

    @torch.no_grad()
    def recall(self, row: int, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restore model `row` from what torch's optimiser held of it."""
        for name, held in state.items():
            self._moved.add(name)
            for stacks, value in ((self._steps, "step"), (self._mean, "exp_avg"), (self._square, "exp_avg_sq")):
                stacks[name][row].copy_(held[value])

    def _move(self, name: str, parameter: Tensor, gradient: Tensor, decay: Number, rows: Rows) -> None:
        if _present(decay):
            gradient = _add(gradient.clone(), parameter, _at(decay, rows, parameter))
        beta1, beta2 = self._BETAS
        mean = self._mean[name][rows].lerp_(gradient, 1 - beta1)
        square = self._square[name][rows].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        steps = self._steps[name][rows].add_(1)
        for stacks, values in ((self._mean, mean), (self._square, square), (self._steps, steps)):
            put(stacks[name], rows, values)
        count = steps.view(-1, *[1] * (parameter.dim() - 1)).to(parameter.dtype)
        denominator = square.sqrt().div_((1 - beta2**count).sqrt()).add_(self._EPS)
        parameter.sub_(mean / denominator * (_at(self.rates.lr, rows, parameter) / (1 - beta1**count)))


class _AdamW(_Adam):
    """torch.optim.AdamW."""

    def _move(self, name: str, parameter: Tensor, gradient: Tensor, decay: Number, rows: Rows) -> None:
        parameter.mul_(1 - _at(self.rates.lr, rows, parameter) * _at(decay, rows, parameter))
        super()._move(name, parameter, gradient, 0.0, rows)


STACKED: dict[str, type[StackedOptimizer]] = {"sgd": StackedOptimizer, "adam": _Adam, "adamw": _AdamW}
"""The optimisers, by their names in `Optim`."""
