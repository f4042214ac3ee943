"""Local training: what one client does in one round, as plain data that every engine reads alike.

An engine is a function `train(local, x, y, tasks) -> updates` over index tensors into one pool of images. `loop`
trains one client after the other, `cohort` all of them in one batched step; both minimise the same local objective,

    data loss + mu/2 ||w - w_received||^2 (FedProx) + <c - c_k, w> (SCAFFOLD).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from syncnorm.config import Optim
from syncnorm.data import augment
from syncnorm.data.augment import Kind
from syncnorm.training import Classifier


@dataclass(frozen=True)
class Local:
    """Local training in one round, the same for all of its clients."""

    classifier: Classifier
    """With the layers that the policy wants in this round; its values mean nothing."""
    optim: Optim
    """With the learning rate of this round, which is constant in it."""
    prox: float = 0.0
    """mu of FedProx (arXiv 1812.06127)."""
    squared: bool = True
    """Whether FedProx's penalty is mu/2 ||.||^2, or mu/2 ||.|| as in some code of its users."""
    shared: frozenset[str] = frozenset()
    """Parameters that FedProx pulls to what was received: those that the server averages."""
    clip: float = 0.0
    """Adaptive gradient clipping (arXiv 2102.06171), 0 is off."""
    synchronised: bool = False
    """Whether all clients share batch statistics in their first step (FedTAN, arXiv 2301.02982)."""
    augment: Kind = "none"


@dataclass(frozen=True)
class Task:
    """What one client trains in one round."""

    client: int
    batches: tuple[Tensor, ...]
    """Indices into the pool, int64, one tensor a local step."""
    running: tuple[bool, ...]
    """Steps that running statistics normalise; batch norm's buffers do not move in them."""
    state: Mapping[str, Tensor]
    """Where training starts: every parameter and buffer of the model, those that a state_dict leaves out too."""
    seed: int
    """Of augmentation and random layers."""
    correction: Mapping[str, Tensor] | None = None
    """SCAFFOLD's c - c_k, added to the gradient of each parameter that it names."""
    momentum: Mapping[str, Tensor] | None = None
    """Momentum by parameter to go on with; empty: none yet. None: forget it after the round."""


@dataclass(frozen=True)
class Update:
    """What a client holds after local training."""

    client: int
    state: dict[str, Tensor]
    """As the task's, after training. Empty where the client failed."""
    loss: float = 0.0
    """Mean over the samples seen of the data loss, in nats."""
    momentum: dict[str, Tensor] | None = None
    error: str = ""
    """Why the client failed, in one sentence."""


class Step(nn.Module):
    """A classifier's training step as a module's forward, for `torch.func.functional_call`: (x, y) to the loss."""

    PREFIX = "classifier.model."
    """Of the model's names among this module's."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of images (N, C, H, W) and labels (N,)."""
        loss = self.classifier.training_step((x, y), 0)
        self.classifier.forget_losses()
        return loss


def images(local: Local, x: Tensor, task: Task, step: int) -> Tensor:
    """Return the images of one local step, augmented."""
    return augment(x[task.batches[step]], local.augment, task.seed, 0, step)


def extra_terms(
    local: Local,
    parameters: Mapping[str, Tensor],
    received: Mapping[str, Tensor],
    correction: Mapping[str, Tensor] | None,
) -> Tensor | None:
    """Return what FedProx and SCAFFOLD add to one client's data loss; None where nothing is added."""
    total: Tensor | None = None
    if local.prox:
        squares = [(parameters[name] - received[name]).square().sum() for name in sorted(local.shared)]
        distance = torch.stack(squares).sum()
        total = local.prox / 2 * (distance if local.squared else _root(distance))
    if correction is not None:
        linear = torch.stack([(value * parameters[name]).sum() for name, value in sorted(correction.items())]).sum()
        total = linear if total is None else total + linear
    return total


def _root(square: Tensor) -> Tensor:
    """Return the square root, with a gradient of zero at zero, where that of sqrt is infinite."""
    zero = square == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())
