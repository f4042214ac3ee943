"""What a layer holds beyond its class of torch.nn: attributes, parameters, buffers and children of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from syncnorm.surgery.replace import METHODS

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

    def hand_over(self, source: nn.Module, target: nn.Module) -> None:
        """Let `target` hold the same objects as `source`, where its class has no other use for the name."""
        for name in self.attributes:
            if name in vars(source) and (name in vars(target) or not hasattr(target, name)):
                vars(target)[name] = vars(source)[name]
        for name in self._free(self.parameters, source._parameters, target):
            target._parameters[name] = source._parameters[name]
        for name in self._free(self.buffers, source._buffers, target):
            persistent = name not in source._non_persistent_buffers_set
            target.register_buffer(name, source._buffers[name], persistent)
        for name in self._free(self.children, source._modules, target):
            target._modules[name] = source._modules[name]

    @staticmethod
    def _free(names: tuple[str, ...], held: Mapping[str, object], target: nn.Module) -> list[str]:
        registered = {**target._parameters, **target._buffers, **target._modules}
        return [name for name in names if name in held and (name in registered or not hasattr(target, name))]


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
