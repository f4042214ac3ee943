"""A model with a norm and the loss of a task: what one step of any training needs, with torch alone."""

from collections.abc import Iterable
from math import cos, pi
from typing import Any

import torch
from torch import Tensor, nn

from syncnorm.config import Norm, Optim
from syncnorm.surgery import convert
from syncnorm.tasks import task_named
from syncnorm.training.precision import at_least_float32, autocast

BY_DOMAIN = ("domain_weight", "domain_bias")
"""Names of a norm's parameters for each domain, (D, C)."""


class Learner(nn.Module):
    """A model and the loss of a task on a batch.

    Args:
        model: takes images (N, C, H, W), returns logits (N, classes).
        norm: norm to which the model's batch norms are converted; None leaves them.
        optim: optimiser and schedule.
        task: name of the task (`syncnorm.tasks.TASKS`), which has the loss: cross-entropy for classification.
        precision: name in `syncnorm.training.precision.PRECISIONS`; a mixed one applies to the step's forward.
    """

    def __init__(
        self,
        model: nn.Module,
        norm: Norm | str | None = None,
        optim: Optim | None = None,
        task: str = "classification",
        precision: str = "float32",
    ) -> None:
        super().__init__()
        norm = Norm(norm) if isinstance(norm, str) else norm
        self.model = model if norm is None else convert(model, norm.name, **norm.options)
        self.optim = optim or Optim()
        self.task = task_named(task)
        self.precision = precision
        self._losses: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes), or the outputs of another task, for images (N, C, H, W)."""
        logits: Tensor = self.model(x)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch of samples and targets."""
        x, y = batch
        with autocast(self.precision, x.device):
            logits = self(x)
        logits = at_least_float32(logits)
        # Without samples there is no mean, but other ranks wait for a gradient of zero.
        loss = self.task.loss(logits, y) if len(x) else logits.sum()
        self._losses.append(loss.detach())
        return loss

    def count_losses(self, losses: Iterable[Tensor]) -> None:
        """Count the losses of steps that were made outside of `training_step`."""
        self._losses.extend(losses)

    def forget_losses(self, last: int | None = None) -> None:
        """Drop the losses of the steps since the last epoch, or of the last few; for callers of `training_step`."""
        del self._losses[-last if last else 0 :]


def latest(history: dict[str, list[float]], now: int) -> dict[str, float]:
    """Return the values of epoch or round `now`, counted from 1, by series; a series with gaps may have none."""
    evaluated = history.get("accuracy_at", [])[-1:] == [now]
    return {
        name: values[-1]
        for name, values in history.items()
        if values and name != "accuracy_at" and (evaluated or len(values) == now)
    }


def make_optimizer(parameters: Iterable[tuple[str, nn.Parameter]], optim: Optim) -> torch.optim.Optimizer:
    """Build the optimiser; weight decay applies to tensors of two or more dimensions, not to norms and biases."""
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, p in parameters:
        if p.requires_grad:
            (decayed if p.dim() > 1 and not name.endswith(BY_DOMAIN) else others).append(p)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": optim.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if optim.name == "sgd":
        return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum)
    kind = torch.optim.Adam if optim.name == "adam" else torch.optim.AdamW
    return kind(groups, lr=optim.lr)


def learning_rate(step: int, steps: int, optim: Optim) -> float:
    """Return the factor on the peak learning rate at `step` of `steps`: warm-up, then constant or half a cosine."""
    warmup = optim.warmup * steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if optim.schedule == "constant":
        return 1.0
    return 0.5 * (1 + cos(pi * (step - warmup) / max(steps - warmup, 1)))
