"""Evaluation of a model on a test set."""

import torch
from torch import Tensor, nn

from syncnorm.tasks import task_named


def evaluate(
    model: nn.Module, x: Tensor, y: Tensor, batch: int = 500, task: str = "classification"
) -> tuple[float, float]:
    """Return `(main metric, loss)` of `model` in evaluation mode, for samples (N, ...) and targets (N, ...).

    They are accuracy and cross-entropy in nats for classification, whose targets are labels (N,).
    """
    outputs = predict(model, x, batch)
    return score_and_loss(task, outputs, y.to(outputs.device))


@torch.no_grad()
def predict(model: nn.Module, x: Tensor, batch: int = 500) -> Tensor:
    """Return the outputs (N, ...) of `model` in evaluation mode, on its device; its mode is restored."""
    was_training = model.training
    parameter = next(model.parameters(), x)
    model.eval()
    try:
        return torch.cat([model(part.to(parameter.device)) for part in x.split(batch)])  # type: ignore[no-untyped-call]
    finally:
        model.train(was_training)


def score_and_loss(task: str, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> tuple[float, float]:
    """Return `(main metric, loss)` of a task: means over samples, or sums weighted by `weights`.

    Weights (N,) sum to 1; the sums are in float64.
    """
    asked = task_named(task)
    if weights is None:
        return asked.scores(outputs, targets).double().mean().item(), asked.loss(outputs, targets).item()
    outputs = outputs.double()
    weights = weights.to(outputs)
    scores, losses = asked.scores(outputs, targets), asked.losses(outputs, targets)
    return (weights * scores).sum().item(), (weights * losses).sum().item()
