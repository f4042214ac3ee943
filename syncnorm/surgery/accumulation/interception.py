"""Bring every batch norm of a micro-batch's forward to the meeting of all micro-batches.

PyTorch's batch norms and foreign ones (which may apply an activation afterwards) call F.batch_norm, which a mode of
their thread intercepts. Synchronised ones are replaced in their forward.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.overrides import TorchFunctionMode

from syncnorm.errors import UserError
from syncnorm.norms.batch.sync_batch_norm import SyncBatchNorm
from syncnorm.norms.core.layer import NormLayer
from syncnorm.norms.core.ranks.collectives import rank_and_size
from syncnorm.norms.core.ranks.meeting import joining
from syncnorm.norms.core.running import update_running
from syncnorm.norms.core.valid import current_masks, hand_on_batch_norms
from syncnorm.norms.registry import spec_of
from syncnorm.surgery.accumulation.lockstep import Meet
from syncnorm.surgery.accumulation.meeting import Arrival, Enter

_F_BATCH_NORM = inspect.signature(F.batch_norm)
_MEET: ContextVar[Meet] = ContextVar("meet")
"""The meeting that synchronised norms of this thread come to."""


class AtNorms(TorchFunctionMode):
    """Replaces F.batch_norm in training by the meeting, while a micro-batch's forward runs."""

    def __init__(self, meet: Meet, norms: Norms) -> None:
        super().__init__()
        self.meet, self.norms = meet, norms

    def __enter__(self) -> AtNorms:
        """Begin, in the thread of a micro-batch, whose synchronised norms find `meet` too."""
        hand_on_batch_norms()
        _MEET.set(self.meet)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func`, or meet."""
        kwargs = kwargs or {}
        if func is not F.batch_norm:
            return func(*args, **kwargs)
        given = _F_BATCH_NORM.bind(*args, **kwargs)
        given.apply_defaults()
        if not given.arguments["training"]:
            return func(*args, **kwargs)
        return enter(self.meet, self.norms.arrival(given.arguments))


def enter(meet: Meet, arrival: Arrival) -> Tensor:
    """Meet, and return the output of this micro-batch."""
    place = meet(arrival)
    anchor = torch.ones((), requires_grad=True)
    y: Tensor = Enter.apply(anchor, place)  # type: ignore[no-untyped-call]
    return y


@dataclass(frozen=True)
class Norms:
    """The norms of a model: which layer keeps which running mean, and the names of all."""

    keeper: dict[int, nn.Module]
    names: dict[int, str]
    micro_batches: int

    @classmethod
    def of(cls, model: nn.Module, micro_batches: int) -> Norms:
        """Find them; raise `UserError` for one whose batch statistics cannot be those of all micro-batches."""
        keeper, names = {}, {}
        for name, module in model.named_modules():
            _refuse(name, module)
            for key in ("weight", "running_mean"):
                tensor = getattr(module, key, None)
                if isinstance(tensor, Tensor):
                    names[id(tensor)] = f"'{name}'"
            if isinstance(getattr(module, "running_mean", None), Tensor):
                keeper[id(module.running_mean)] = module
        return cls(keeper, names, micro_batches)

    def arrival(self, given: dict[str, Any]) -> Arrival:
        """Return what a call of F.batch_norm brings to a meeting."""
        mean, var, weight = given["running_mean"], given["running_var"], given["weight"]
        keeper = self.keeper.get(id(mean))
        layer = next((tensor for tensor in (mean, weight) if tensor is not None), None)
        momentum = given["momentum"]

        def move(new_mean: Tensor, new_var: Tensor, where: Tensor) -> None:
            counter = getattr(keeper, "num_batches_tracked", None)
            if mean is not None and counter is not None:
                counter.sub_(self.micro_batches - 1)  # each micro-batch has counted itself
            for running, new in ((mean, new_mean), (var, new_var)):
                if running is not None:
                    update_running(running, new, momentum, where)

        named = self.names.get(id(layer), "without parameters") if layer is not None else "without parameters"
        return Arrival(given["input"], layer, named, weight, given["bias"], given["eps"], move, current_masks())


@contextmanager
def synchronised(model: nn.Module) -> Iterator[None]:
    """Bring the synchronised norms of `model` that train to the meeting of the micro-batch that runs."""
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, SyncBatchNorm) and module.training
    }
    for name, layer in layers.items():
        if joining(layer.process_group):
            raise UserError(
                f"SyncBatchNorm '{name}' does not take exact accumulation within syncnorm.join: nothing can stand in "
                "for a rank that is out of batches. Deal every rank equally many."
            )
        group: ProcessGroup | None = None  # asked for here, since a thread may not know its ranks
        if rank_and_size(layer.process_group)[1] > 1:
            group = layer.process_group or torch.distributed.group.WORLD
        layer.forward = partial(_meet_at, name, layer, group)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers.values():
            del layer.forward


def _meet_at(name: str, layer: SyncBatchNorm, group: ProcessGroup | None, input: Tensor) -> Tensor:
    arrival = Arrival(
        input, layer, f"'{name}'", layer.weight, layer.bias, layer.eps, layer.move, current_masks(), group
    )
    return enter(_MEET.get(), arrival)


@contextmanager
def no_recomputation(model: nn.Module) -> Iterator[None]:
    """Raise `UserError` where a norm runs during the backward: it would see one micro-batch alone."""

    def refuse(named: str) -> None:
        raise UserError(
            f"norm '{named}' is recomputed in the backward, as activation checkpointing does, with one micro-batch "
            "alone: accumulate without checkpointing; offload=True saves memory as well."
        )

    hooks = [
        module.register_forward_pre_hook(lambda _module, _inputs, name=name: refuse(name))
        for name, module in model.named_modules()
        if module.training and (isinstance(module, _BatchNorm) or getattr(module, "running_mean", None) is not None)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _refuse(name: str, module: nn.Module) -> None:
    if not module.training:
        return
    kind = type(module).__name__
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        raise UserError(
            f"norm '{name}' ({kind}) does not know its channels yet: run one batch through the model first."
        )
    if isinstance(module, nn.SyncBatchNorm) and rank_and_size(module.process_group)[1] > 1:
        raise UserError(f"norm '{name}' is torch's SyncBatchNorm: write syncnorm.convert(model, 'sync_bn') first.")
    spec = spec_of(module)
    torchs = isinstance(module, _BatchNorm) and not isinstance(module, NormLayer)  # its subclasses call F.batch_norm
    if spec is not None and spec.sees_batch and not torchs and not isinstance(module, SyncBatchNorm):
        raise UserError(
            f"norm '{name}' is {kind}, whose statistics follow a rule of their own: exact accumulation takes batch "
            "norms, synchronised ones, and norms that do not see the batch."
        )
    if isinstance(module, torch.jit.ScriptModule) and isinstance(module, _BatchNorm):
        raise UserError(f"norm '{name}' is compiled by TorchScript: give the model from before that.")
