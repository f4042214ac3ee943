"""The messages of a round, independent of the transport: plain tensors by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Broadcast:
    """What a client receives before it trains or evaluates."""

    round: int
    state: Tensors
    """The entries of the model's state that the server owns."""
    extra: Tensors = field(default_factory=dict)
    """Additional tensors from the run's algorithm (`Algorithm.message`)."""

    @property
    def bytes(self) -> int:
        """Size of the tensors."""
        return size(self.state) + size(self.extra)


@dataclass(frozen=True)
class Reply:
    """What a client sends after training."""

    client: int
    state: Tensors
    """Entries that the server combines, and statistics that a policy compares."""
    samples: int = 0
    """Number of the client's training samples."""
    loss: float = 0.0
    """Mean data loss of local training, in nats."""
    extra: Tensors = field(default_factory=dict)
    """Additional tensors from the run's algorithm (`Algorithm.client_result`)."""
    small_batches: int = 0
    """Number of batches below min_batch, however `small_batch` treated them."""
    error: str = ""
    """Why there is no state, in one sentence; empty if there is one."""

    @property
    def bytes(self) -> int:
        """Size of the tensors."""
        return size(self.state) + size(self.extra)


def size(tensors: Tensors) -> int:
    """Return the size of some tensors in bytes."""
    return sum(value.numel() * value.element_size() for value in tensors.values())
