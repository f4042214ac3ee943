"""What server and client say to each other in a round, whatever carries it: plain tensors by name."""

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
    control: Tensors = field(default_factory=dict)
    """SCAFFOLD's c, by parameter."""

    @property
    def bytes(self) -> int:
        """Size of the tensors."""
        return size(self.state) + size(self.control)


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
    control: Tensors = field(default_factory=dict)
    """SCAFFOLD's change of c_k, by parameter."""
    small_batches: int = 0
    """Batches below min_batch, whatever was done with them."""
    error: str = ""
    """Why there is no state, in one sentence."""

    @property
    def bytes(self) -> int:
        """Size of the tensors."""
        return size(self.state) + size(self.control)


def size(tensors: Tensors) -> int:
    """Return the bytes of some tensors."""
    return sum(value.numel() * value.element_size() for value in tensors.values())
