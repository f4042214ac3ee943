"""Coordinate-wise trimmed mean and median (Yin et al., arXiv 1803.01498), also for statistics and counters."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from syncnorm.federated.aggregations.base import Aggregation, nth_smallest
from syncnorm.federated.options import Option, Range

BELOW_HALF = Range("from 0 to below 0.5", lambda number: 0 <= number < 0.5)


class Trimmed(Aggregation):
    """Coordinate-wise trimmed mean of parameters, and trimmed pooled moments (Yin et al., arXiv 1803.01498).

    Of K values of a coordinate, the floor(trim K) smallest and as many largest are dropped, and the others averaged;
    of whole numbers the largest that is left counts. Up to floor(trim K) hostile clients cannot move a coordinate out
    of the range of the others' values. Clients count alike: a number of samples is a client's own word.

    Pooled statistics use the trimmed mean T over clients in the law of total variance, channel by channel,

        mu = T_k(mu_k),   sigma^2 = T_k(sigma_k^2 + (mu_k - mu)^2),

    which is the pooled variance for trim 0 and equal weights. Where honest clients differ much, this trims the spread
    of their means too, so it is smaller than the pooled variance.

    Options:
        trim: fraction of clients dropped at each end.
    """

    OPTIONS: ClassVar[Mapping[str, Option]] = {"trim": Option(0.34, BELOW_HALF)}

    def center(self, values: Tensor, shares: Tensor) -> Tensor:
        """Return the trimmed mean."""
        count, cut = len(values), self._cut(len(values))
        kept = values.sort(0).values[cut : count - cut]
        return (kept / len(kept)).sum(0)

    def largest(self, values: Tensor) -> Tensor:
        """Return the largest whole number that is left."""
        return nth_smallest(values, len(values) - 1 - self._cut(len(values)))

    def _cut(self, count: int) -> int:
        """Return how many of `count` clients are dropped at each end."""
        # A product such as 0.29 * 100 may lie just below the whole number that it stands for.
        return min(int(self.options["trim"] * count + 1e-9), (count - 1) // 2)


class Median(Trimmed):
    """Coordinate-wise median of parameters, statistics and counters (Yin et al., arXiv 1803.01498).

    Of an even number of values it is the mean of the two in the middle; of whole numbers the larger of these. It is
    the trimmed mean that drops as much as it can, and pools statistics as that does. Clients count alike.
    """

    OPTIONS: ClassVar[Mapping[str, Option]] = {}

    def _cut(self, count: int) -> int:
        return (count - 1) // 2
