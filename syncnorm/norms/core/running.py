"""The update of running statistics, written once: an exponential average, or the mean of all batches."""

import torch
from torch import Tensor


def newest_weight(momentum: float | None, batches: Tensor) -> float | Tensor:
    """Return what the newest batch weighs: `momentum`, or 1 / `batches` where momentum is None (the plain mean)."""
    return 1.0 / batches.double() if momentum is None else momentum


def moved(running: Tensor, new: Tensor, weight: float | Tensor) -> Tensor:
    """Return `running` moved towards `new`: running + weight (new - running), in the wider type of both."""
    return running + weight * (new - running)


@torch.no_grad()
def update_running(running: Tensor, new: Tensor, weight: float | Tensor, where: Tensor | None = None) -> None:
    """Move `running` towards `new` in place, in its own type; only where `where` is true, if given.

    Values of `new` that are not used may be anything, including NaN.
    """
    value = moved(running, new, weight)
    running.copy_(value if where is None else torch.where(where, value, running))
