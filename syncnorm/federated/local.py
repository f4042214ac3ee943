"""Local training: one client's work in one round, as plain data for every engine.

An engine is a function `train(local, x, y, tasks) -> updates` over index tensors into one pool of images. `loop`
trains one client after another, `cohort` all of them in one batched step. Both minimise the same local objective, the
data loss plus the algorithm's `local_term`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from syncnorm.config import Optim
from syncnorm.data import augment
from syncnorm.data.augment import Kind
from syncnorm.federated.algorithms.base import Algorithm
from syncnorm.training.learner import Learner


@dataclass(frozen=True)
class Local:
    """Local training in one round, the same for all of its clients."""

    classifier: Learner
    """Model with the layers that the policy needs in this round; its weights are ignored."""
    optim: Optim
    """Optimiser with this round's learning rate, which is constant within the round."""
    algorithm: Algorithm = field(default_factory=Algorithm)
    """Defines the additional term of the local objective, and whether clients share statistics in their first
    step."""
    shared: tuple[str, ...] = ()
    """Sorted names of the parameters that the server averages; the algorithm's term applies to them."""
    clip: float = 0.0
    """Adaptive gradient clipping (arXiv 2102.06171); 0 is off."""
    augment: Kind = "none"
    workers: int = 0
    """Processes that make batches; 0: the one that trains."""
    over_ranks: bool = False
    """Whether clients that share statistics share them over all ranks of torch.distributed."""

    @property
    def has_term(self) -> bool:
        """Whether the local objective has a term besides the data loss."""
        return bool(self.shared) and self.algorithm.has_local_term


@dataclass(frozen=True)
class Task:
    """What one client trains in one round."""

    client: int
    batches: tuple[Tensor, ...]
    """Indices into the pool, int64, one tensor per local step."""
    running: tuple[bool, ...]
    """Steps normalised with running statistics; they do not update batch norm's buffers."""
    state: Mapping[str, Tensor]
    """Initial values: every parameter and buffer of the model, including those that a state_dict leaves out."""
    seed: int
    """Seed of augmentation and random layers."""
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    """Further inputs of the algorithm's term (`Algorithm.client_inputs`)."""
    momentum: Mapping[str, Tensor] | None = None
    """Momentum by parameter to continue with; empty: none yet. None: do not keep momentum after the round."""


@dataclass(frozen=True)
class Update:
    """A client's result of local training."""

    client: int
    state: dict[str, Tensor]
    """The task's `state` after training; empty if the client failed."""
    loss: float = 0.0
    """Mean data loss over the samples seen, in nats."""
    momentum: dict[str, Tensor] | None = None
    error: str = ""
    """Why the client failed, in one sentence; empty if it did not."""


def images(local: Local, x: Tensor, task: Task, step: int) -> Tensor:
    """Return the images of one local step, augmented."""
    return augment(x[task.batches[step].to(x.device)], local.augment, task.seed, 0, step)
