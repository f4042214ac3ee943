"""FedTAN (Wang, Shi & Chang, arXiv 2301.02982): clients share batch statistics in their first local step."""

from collections.abc import Callable, Sequence

from torch import Tensor

from syncnorm.federated.algorithms.base import Algorithm
from syncnorm.federated.messages import Tensors, size


class FedTAN(Algorithm):
    """Normalise the first local step with the statistics of all clients' batches together.

    Each client contributes as many samples as the smallest one has, so that all have equal weight.
    """

    needs_average = False
    shares_statistics = True

    def local_batches(self, batches: Sequence[Tensor], smallest: Callable[[], int]) -> Sequence[Tensor]:
        """Cut the first batch to the size of the smallest client."""
        if not batches:
            return batches
        return [batches[0][: smallest()], *batches[1:]]

    def bytes_inside(self, statistics: Tensors) -> int:
        """Return the size of each layer's mean and variance, and of the gradients with respect to both."""
        return 2 * size(statistics)
