"""Which layers are norms, of which kind, and how many values a statistic of theirs rests on."""

from __future__ import annotations

from math import prod
from typing import Any, Literal

from torch import Size, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from syncnorm.norms.core.synchronised import Synchronised
from syncnorm.norms.weight.weight_standardization import CONVOLUTIONS
from syncnorm.surgery.layers.substitute import spec_of_layer

Kind = Literal["batch", "group", "instance", "layer", "rms", "other"]


def kind_of(module: nn.Module) -> Kind | None:
    """Return what a module normalises over, by its type; None for anything that is not known as a norm."""
    if isinstance(module, CONVOLUTIONS):
        return None
    spec = spec_of_layer(module)
    if isinstance(module, _BatchNorm):
        return "batch"
    if isinstance(module, _InstanceNorm):
        return "instance"
    if isinstance(module, nn.GroupNorm):
        return "group"
    if isinstance(module, nn.LayerNorm):
        return "layer"
    if isinstance(module, nn.RMSNorm):
        return "rms"
    if spec is None or spec.evaluates == "nothing":
        return None
    return "batch" if spec.sees_batch or spec.evaluates == "running" else "other"


def is_over_ranks(module: nn.Module) -> bool:
    """Return whether a norm shares its statistics between ranks."""
    spec = spec_of_layer(module)
    if isinstance(module, Synchronised):
        return module.sync
    return isinstance(module, nn.SyncBatchNorm) or (spec is not None and spec.over_ranks is True)


def uses_the_batch(module: nn.Module) -> bool:
    """Return whether a norm, in the mode that it is in, normalises a sample with others of its batch."""
    spec = spec_of_layer(module)
    if spec is not None and not spec.sees_batch:
        return False
    kept = getattr(module, "running_mean", None) is not None and getattr(module, "running_var", None) is not None
    return module.training or not kept


def values_of(kind: Kind, module: nn.Module | None, shape: Size, extra: Any = None) -> int:
    """Return how many values one statistic rests on, for an input of `shape`; `extra` is a function's argument.

    For a batch norm these are the values of a channel over the whole batch; for the others, of one sample.
    """
    positions = prod(shape[2:])
    if kind == "batch":
        return int(shape[0]) * positions
    if kind == "instance":
        return positions
    if kind == "group":
        groups = getattr(module, "num_groups", extra) if module is not None else extra
        return int(shape[1]) // int(groups) * positions
    if kind in ("layer", "rms"):
        return prod(getattr(module, "normalized_shape", extra) if module is not None else extra)
    return prod(shape[1:])
