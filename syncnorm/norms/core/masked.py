"""Batch norm and group norm over the positions that count, as functions of plain operations.

What does not count goes in as zero and comes out as zero, without a gradient. So the rest is what the norm of the
positions that count would make of them, in all derivatives.
"""

from torch import Tensor

from syncnorm.moments import Moments
from syncnorm.norms.core.affine import normalise
from syncnorm.norms.core.valid import Valid


def batch_norm_where(
    x: Tensor, valid: Valid, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Moments]:
    """Return `(y, moments)` for x (N, C, ...), y normalised by the moments where `valid`, and 0 elsewhere."""
    filled = valid.fill(x)
    moments = Moments.of(filled, (0, *range(2, x.dim())), valid.where)
    return valid.fill(normalise(filled, moments.mean, moments.var(), eps, weight, bias)), moments


def group_norm_where(
    x: Tensor, valid: Valid, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Return x (N, C, ...) with each group of channels of each sample normalised by its moments where `valid`."""
    filled, channels = valid.fill(x), x.shape[1] // groups
    moments = Moments.of(filled.reshape(len(x), groups, channels, -1), (2, 3), valid.where.reshape(len(x), 1, 1, -1))
    mean, var = (values.repeat_interleave(channels, 1) for values in (moments.mean, moments.var()))
    return valid.fill(normalise(filled, mean, var, eps, weight, bias))


def mean_square_where(x: Tensor, valid: Valid, by_channel: bool) -> Tensor:
    """Return the mean square of each sample of x (N, C, ...) where `valid`; outside of it, x has to be zero.

    By channel (N, C, 1, ...), else (N, 1, ...); zero where nothing counts.
    """
    dims = tuple(range(2 if by_channel else 1, x.dim()))
    counts = valid.where.sum(tuple(range(1, x.dim())), keepdim=True) * (1 if by_channel else x.shape[1])
    squares = x.square()
    return (squares.sum(dims, keepdim=True) if dims else squares) / counts.clamp(min=1)


def check_counts(counts: list[int], layer: str) -> None:
    """Raise `ValueError` if one of `counts`, each of values that share a mean and a variance, is 1."""
    if 1 in counts:
        raise ValueError(
            f"{layer} got one value per channel where syncnorm.mask is true: a variance needs two. Give it more "
            "samples or larger ones, or call .eval() if it is a batch norm."
        )
