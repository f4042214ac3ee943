"""How good a model is on a test set."""

import torch
from torch import Tensor


@torch.no_grad()
def evaluate(model: torch.nn.Module, x: Tensor, y: Tensor, batch: int = 500) -> tuple[float, float]:
    """Return `(accuracy, cross-entropy in nats)` of `model` in evaluation mode on images (N, C, H, W)."""
    was_training = model.training
    model.eval()
    logits = torch.cat([model(part) for part in x.split(batch)])  # type: ignore[no-untyped-call]
    model.train(was_training)
    accuracy = (logits.argmax(1) == y).double().mean().item()
    return accuracy, torch.nn.functional.cross_entropy(logits, y).item()
