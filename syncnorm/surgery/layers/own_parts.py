"""What a layer holds beyond its class of torch.nn: attributes, parameters, buffers and children of its own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from syncnorm.surgery.layers.replace import METHODS

AFFINE = ("weight", "bias")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class OwnParts:
    """The names of a layer's own attributes, parameters, buffers and children.

    A layer of syncnorm has none but its `qconfig`: whatever else it holds is its norm's.
    """

    attributes: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()
    children: tuple[str, ...] = ()

    def names(self) -> set[str]:
        """Return all names."""
        return {*self.attributes, *self.parameters, *self.buffers, *self.children}

    def free_in(self, target: nn.Module) -> OwnParts:
        """Return those that `target` has no other use for."""
        return OwnParts(
            *(tuple(name for name in names if not hasattr(target, name)) for names in vars(self).values())
        )

    def hand_over(self, source: nn.Module, target: nn.Module) -> None:
        """Let `target` hold the same objects as `source`."""
        for name in self.attributes:
            if name in vars(source):
                vars(target)[name] = vars(source)[name]
        for name in self.parameters:
            target._parameters[name] = source._parameters[name]
        for name in self.buffers:
            target._buffers[name] = source._buffers[name]
            if name in source._non_persistent_buffers_set:
                target._non_persistent_buffers_set.add(name)
        for name in self.children:
            target._modules[name] = source._modules[name]


def base_class(kind: type[nn.Module]) -> type[nn.Module]:
    """Return the class of torch or of syncnorm that a user's class of layers inherits from; `kind` if it is one."""
    return next(own for own in kind.__mro__ if own.__module__.partition(".")[0] in ("torch", "syncnorm"))


def own_parts(layer: nn.Module) -> OwnParts:
    """Return what `layer` holds that neither its class of torch.nn nor `convert` has put there."""
    if base_class(type(layer)).__module__.startswith("syncnorm."):
        return OwnParts(tuple(name for name in ("qconfig",) if name in vars(layer)))
    theirs = _held_by_torch()
    return OwnParts(
        tuple(name for name in vars(layer) if name not in theirs),
        tuple(name for name, p in layer._parameters.items() if name not in AFFINE and p is not None),
        tuple(name for name in layer._buffers if name not in STATISTICS),
        tuple(layer._modules),
    )


@cache
def _held_by_torch() -> frozenset[str]:
    with torch.device("meta"):  # where nothing is drawn
        layers = (nn.SyncBatchNorm(1), nn.Conv2d(1, 1, 1))
    return frozenset({*METHODS, *(name for layer in layers for name in vars(layer))})
