"""Runs of one architecture that train together: they differ in numbers alone, such as seeds and learning rates.

Parameters and buffers are stacked, one row per run, and each step is one batched computation. A row's arithmetic
depends on no other row, so a run that diverges disturbs none.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from syncnorm.training.learner import Learner, learning_rate, make_optimizer
from syncnorm.training.stacked.layers import ModelsTogether, fold, unfold
from syncnorm.training.stacked.models import Rowwise, entries_of, gradients_of, stack
from syncnorm.training.stacked.optimizers import ALL, STACKED, Rates, by_model

Held = dict[str, dict[str, Tensor]]
"""What torch's optimiser holds of each parameter, by names."""


class Stack:
    """K learners as one. Their models lend their entries at first, and get them back with `give_back`.

    The optimiser makes a step from the mean gradient of `optim.accumulate` batches, as Lightning's Trainer does: with
    the gradient's norm limited to `optim.clip_norm`, run by run, and the learning rate on `optim`'s schedule.

    Args:
        learners: of one architecture; their `optim` differs in numbers alone (`config.stacks.NUMBERS`).
        steps: number of optimiser steps of the whole training, for the schedule.
    """

    def __init__(self, learners: Sequence[Learner], steps: int) -> None:
        self._learners, self._steps, self.done = learners, steps, 0
        first = learners[0]
        self._model, self._rowwise, self._optims = first.model, Rowwise(first), [one.optim for one in learners]
        every = [entries_of(one.model) for one in learners]
        self._state = {name: stack([one[name].detach() for one in every], like) for name, like in every[0].items()}
        self._trained = [name for name, p in first.model.named_parameters() if p.requires_grad]
        trained = {name: self._state[name] for name in self._trained}
        self._optimizer = STACKED[first.optim.name](Rates.by_model(self._optims), trained)
        self._gradients: dict[str, Tensor] = {}

    def step(self, x: Sequence[Tensor], y: Sequence[Tensor], last: bool) -> Tensor:
        """Take a batch of each run, and return the losses (K,); with `last`, the optimiser then makes its step.

        `x` and `y` are K times (B, ...), of one size.
        """
        self._model.train()
        leaves = {name: self._state[name].detach().requires_grad_() for name in self._trained}
        samples = unfold(fold(torch.stack(list(x), 1)), len(self._learners))
        losses = self._rowwise.losses(self._state | leaves, samples, torch.stack(list(y)), ModelsTogether())
        accumulate = self._optims[0].accumulate
        for name, gradient in gradients_of(losses.sum() / accumulate, leaves).items():
            before = self._gradients.get(name)
            self._gradients[name] = gradient if before is None else before + gradient
        if last:
            self._move()
        return losses.detach()

    @torch.no_grad()
    def _move(self) -> None:
        optimizer, gradients = self._optimizer, self._gradients
        if clip := self._optims[0].clip_norm:
            gradients = clipped(gradients, clip)
        optimizer.rates.lr = by_model([one.lr * learning_rate(self.done, self._steps, one) for one in self._optims])
        for name, gradient in gradients.items():
            optimizer.step(name, self._state[name], gradient, ALL)
        self._gradients = {}
        self.done += 1

    @torch.no_grad()
    def give_back(self) -> None:
        """Copy each run's parameters and buffers into its learner's model."""
        for row, learner in enumerate(self._learners):
            for name, value in entries_of(learner.model).items():
                value.copy_(self._state[name][row])

    @torch.no_grad()
    def take_over(self, done: int) -> None:
        """Take the entries of the learners' models again, after so many steps of the optimiser."""
        for row, learner in enumerate(self._learners):
            for name, value in entries_of(learner.model).items():
                self._state[name][row].copy_(value)
        self.done = done

    def optimizer_of(self, row: int) -> torch.optim.Optimizer:
        """Return a run's optimiser as torch has it at this step, for a checkpoint."""
        learner = self._learners[row]
        optimizer = make_optimizer(learner.named_parameters(), learner.optim)
        held, named = self._optimizer.remember(row), dict(learner.model.named_parameters())
        for name, values in held.items():
            optimizer.state[named[name]] = dict(values)
        return optimizer

    def recall_optimizer(self, row: int, state: Mapping[str, Any]) -> None:
        """Restore a run's optimiser from its `state_dict`."""
        learner = self._learners[row]
        optimizer = make_optimizer(learner.named_parameters(), learner.optim)
        optimizer.load_state_dict(dict(state))
        held = {name: optimizer.state[p] for name, p in learner.model.named_parameters() if p in optimizer.state}
        self._optimizer.recall(row, held)


def clipped(gradients: Mapping[str, Tensor], limit: float) -> dict[str, Tensor]:
    """Return each model's gradients (K, ...) scaled down to a Euclidean norm, as `clip_grad_norm_` does for one."""
    norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients.values()]).norm(dim=0)
    scale = (limit / (norms + 1e-6)).clamp(max=1.0)
    return {name: value * scale.view(-1, *[1] * (value.dim() - 1)) for name, value in gradients.items()}
