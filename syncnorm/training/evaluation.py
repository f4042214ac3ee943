"""Evaluation of a model on a test set."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def evaluate(model: nn.Module, x: Tensor, y: Tensor, batch: int = 500) -> tuple[float, float]:
    """Return `(accuracy, cross-entropy in nats)` of `model` in evaluation mode; samples (N, ...), labels (N,)."""
    logits = predict(model, x, batch)
    return accuracy_and_loss(logits, y.to(logits.device))


@torch.no_grad()
def predict(model: nn.Module, x: Tensor, batch: int = 500) -> Tensor:
    """Return the logits (N, classes) of `model` in evaluation mode, on its device; its mode is restored."""
    was_training = model.training
    parameter = next(model.parameters(), x)
    model.eval()
    try:
        return torch.cat([model(part.to(parameter.device)) for part in x.split(batch)])  # type: ignore[no-untyped-call]
    finally:
        model.train(was_training)


def accuracy_and_loss(logits: Tensor, y: Tensor, weights: Tensor | None = None) -> tuple[float, float]:
    """Return `(accuracy, cross-entropy in nats)`: means over samples, or sums weighted by `weights`.

    Weights (N,) sum to 1; the sums are in float64.
    """
    right = logits.argmax(1) == y
    if weights is None:
        return right.double().mean().item(), F.cross_entropy(logits, y).item()
    logits = logits.double()
    weights = weights.to(logits)
    return (weights * right).sum().item(), (weights * F.cross_entropy(logits, y, reduction="none")).sum().item()
