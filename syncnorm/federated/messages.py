"""The messages of a round, whatever carries them: plain tensors by name."""

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
    """What the run's algorithm sends beside it (`Algorithm.message`)."""

    @property
    def bytes(self) -> int:
        """Size of the tensors."""
        return size(self.state) + size(self.extra)


@dataclass(frozen=True)
class Reply:
    """What a client sends after it has trained."""

    client: int
    state: Tensors
    """The entries that the server combines, and the statistics that a policy compares."""
    samples: int = 0
    """Training samples that the client holds."""
    loss: float = 0.0
    """Mean data loss of its local training, in nats."""
    extra: Tensors = field(default_factory=dict)
    """What the run's algorithm sends beside it (`Algorithm.client_result`)."""
    small_batches: int = 0
    """Number of batches below min_batch, whatever `small_batch` did with them."""
    error: str = ""
    """Why there is no state, in one sentence."""

    @property
    def bytes(self) -> int:
        """Size of the tensors."""
        return size(self.state) + size(self.extra)


def size(tensors: Tensors) -> int:
    """Return the bytes of some tensors."""
    return sum(value.numel() * value.element_size() for value in tensors.values())
