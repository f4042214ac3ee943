"""FedProx (Li et al., arXiv 1812.06127): a penalty on the distance to what was received."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from syncnorm.federated.algorithms.base import Algorithm, as_real
from syncnorm.federated.messages import Tensors
from syncnorm.federated.options import Option


class FedProx(Algorithm):
    """Minimise data loss + mu/2 ||w - w_received||^2, over the shared parameters.

    Options:
        mu: the strength of the penalty.
        squared: False gives mu/2 ||w - w_received||, without the square, as in some public code.
    """

    OPTIONS: ClassVar[Mapping[str, Option]] = {"mu": Option(0.01), "squared": Option(True)}

    def local_term(self, parameters: Tensors, received: Tensors, inputs: Tensors) -> Tensor:
        """Return the penalty."""
        squares = [as_real(value - received[name]).square().sum() for name, value in parameters.items()]
        distance = torch.stack(squares).sum()
        strength: float = self.options["mu"] / 2
        return strength * (distance if self.options["squared"] else _root(distance))


def _root(square: Tensor) -> Tensor:
    """Return the square root, with gradient zero at zero, where sqrt's gradient is infinite."""
    zero = square == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())
