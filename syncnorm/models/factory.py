"""The factory of norm layers that models use: `norm(channels)` builds one."""

from collections.abc import Callable
from functools import partial

from torch import nn

from syncnorm.norms import make_norm

NormFactory = Callable[[int], nn.Module]


def plain_batch_norm(ndim: int = 2) -> NormFactory:
    """Return the factory of PyTorch's batch norm, the default of every model here."""
    return partial(make_norm, "bn", ndim=ndim)
