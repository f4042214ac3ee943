"""Local training: what one client does in one round, as plain data that every engine reads alike.

An engine is a function `train(local, x, y, tasks) -> updates` over index tensors into one pool of images. `loop`
trains one client after the other, `cohort` all of them in one batched step. Both minimise the same local objective,
the data loss plus the algorithm's `local_term`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from syncnorm.config import Optim
from syncnorm.data import augment
from syncnorm.data.augment import Kind
from syncnorm.federated.algorithms.base import Algorithm
from syncnorm.training import Classifier


@dataclass(frozen=True)
class Local:
    """Local training in one round, the same for all of its clients."""

    classifier: Classifier
    """With the layers that the policy asks for in this round; its weights are ignored."""
    optim: Optim
    """With the learning rate of this round, which is constant in it."""
    algorithm: Algorithm = field(default_factory=Algorithm)
    """Gives the local objective its further term, and says whether clients share statistics in their first step."""
    shared: tuple[str, ...] = ()
    """Names of the parameters that the server averages, sorted: those that the algorithm's term is about."""
    clip: float = 0.0
    """Adaptive gradient clipping (arXiv 2102.06171), 0 is off."""
    augment: Kind = "none"

    @property
    def has_term(self) -> bool:
        """Whether the local objective has a term beside the data loss."""
        return bool(self.shared) and self.algorithm.has_local_term


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
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    """What the algorithm's term reads beside the parameters (`Algorithm.client_inputs`)."""
    momentum: Mapping[str, Tensor] | None = None
    """Momentum by parameter to go on with; empty: none yet. None: forget it after the round."""


@dataclass(frozen=True)
class Update:
    """What a client holds after local training."""

    client: int
    state: dict[str, Tensor]
    """As the task's, after training. Empty where the client failed."""
    loss: float = 0.0
    """Mean data loss over the samples seen, in nats."""
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
