"""Keep batch norms from changing while the rest of a model trains.

model = syncnorm.freeze(model, "backbone")                      # statistics stay; survives model.train()
model = syncnorm.freeze(model, affine=True, from_step=1000)     # gamma and beta too, after 1,000 steps
model = syncnorm.unfreeze(model)
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from syncnorm._torch import flat_sharded, sharded_parameters
from syncnorm.errors import UserError
from syncnorm.surgery.conversion.convert import batch_norms
from syncnorm.surgery.conversion.where import Where, selected
from syncnorm.surgery.layers.preconditions import check_model
from syncnorm.surgery.layers.sharded import put_shards_back

_HOLD = "_syncnorm_hold"


class _Clock:
    """A model's hook that counts its forward passes in training.

    shards: what FSDP2 trains of each layer (by id), when the freeze begins: a layer that runs holds whole parameters,
    which live no longer than its forward.
    """

    def __init__(self, left: int) -> None:
        self.left = left
        self.shards: dict[int, list[nn.Parameter]] = {}

    def __call__(self, model: nn.Module, inputs: Any) -> None:
        if model.training:
            self.left -= 1
            if self.left == -1:
                for layer, _, shard in sharded_parameters(model):
                    self.shards.setdefault(id(layer), []).append(shard)

    @property
    def due(self) -> bool:
        """Whether the passes before the freeze are over."""
        return self.left < 0


class _Hold:
    """A layer's hook that puts it into evaluation mode before every forward pass, however often it is put back."""

    def __init__(self, clock: _Clock, affine: bool) -> None:
        self.clock = clock
        self.affine = affine
        self.active = True
        self.stopped: list[nn.Parameter] = []
        """Parameters that trained before."""

    def __call__(self, layer: nn.Module, inputs: Any) -> None:
        if self.active and layer.training and self.clock.due:
            self.hold(layer)

    def hold(self, layer: nn.Module) -> None:
        """Freeze the layer."""
        layer.training = False
        if not self.affine:
            return
        if _flattened(layer):
            if not self.stopped:
                raise UserError(
                    f"a {type(layer).__name__} of {layer.num_features} channels was frozen with affine=True from a "
                    "step on, and then wrapped in FullyShardedDataParallel (FSDP1), which cannot stop a part of its "
                    "one parameter: leave affine or from_step out, or use fully_shard."
                )
            return  # it was frozen before it was wrapped
        whole = list(layer.parameters(recurse=False))
        shards = self.clock.shards.get(id(layer), [])
        for parameter in shards or whole:
            if parameter.requires_grad:
                parameter.requires_grad_(False)
                self.stopped.append(parameter)
            parameter.grad = None  # an optimiser passes over parameters without gradient, momentum and decay included
        for parameter in whole if shards else ():
            parameter.requires_grad_(False)  # in this forward; the next gets it from its shard

    def release(self, layer: nn.Module, training: bool) -> None:
        """Let the layer train again."""
        self.active = False
        layer.training = training
        for parameter in self.stopped:
            parameter.requires_grad_(True)


def freeze(model: nn.Module, where: Where | None = None, *, affine: bool = False, from_step: int = 0) -> nn.Module:
    """Freeze the running statistics of batch norms of `model`, in place, and return it.

    A frozen layer normalises with its running mean and variance and updates neither, in training too. This survives
    `model.train()`, copies and `load_state_dict`; `unfreeze` undoes it. `convert`, `revert` and `fold` replace a
    frozen layer by one that is not frozen: freeze afterwards. Gradients flow through a frozen layer as through any
    fixed affine map. A layer that is frozen already gets the new settings.

    Args:
        model: any model.
        where: which batch norms, of those in `batch_norms(model)`; None is all (see `Where`).
        affine: freeze weight and bias as well: they lose `requires_grad` and their gradient, so that an optimiser
            passes over them. DistributedDataParallel has to wrap the model afterwards, or find unused parameters.
        from_step: number of forward passes of `model` in training, from now on, before the freeze begins.

    Raises:
        UserError: no batch norm, or none that `where` selects; a layer without running statistics; a negative step;
            `affine` for a model in FSDP1.

    Sources: FixBN freezes for the second part of training (Zhong et al., arXiv 2303.06530).
    """
    check_model(model)
    if affine and flat_sharded(model):
        raise UserError(
            "the model is wrapped in FullyShardedDataParallel (FSDP1), which has put weights and biases into one "
            "parameter with others: freeze(affine=True) before you wrap it, with use_orig_params=True; without "
            "affine, freeze takes it as it is."
        )
    put_shards_back(model)
    if from_step < 0:
        raise UserError(f"from_step is {from_step}: it must be at least 0.")
    layers = _selected(model, where)
    if not layers:
        raise UserError("the model has no batch norm to freeze.")
    for name, layer in layers.items():
        if layer.running_mean is None or layer.running_var is None:
            raise UserError(
                f"layer '{name}' ({type(layer).__name__}) keeps no running statistics, so it cannot be frozen: leave "
                "it out with where, or let it track them."
            )
    unfreeze(model, where)
    clock = _Clock(from_step if from_step else -1)
    if from_step:
        model.register_forward_pre_hook(clock)
    for layer in layers.values():
        hold = _Hold(clock, affine)
        layer.register_forward_pre_hook(hold)
        setattr(layer, _HOLD, hold)
        if clock.due:
            hold.hold(layer)
    return model


def _flattened(layer: nn.Module) -> bool:
    """Return whether FSDP1 has put views of its one parameter in place of weight or bias."""
    held = {**vars(layer), **layer._parameters}
    return any(
        isinstance(held.get(key), Tensor)
        and not isinstance(held[key], nn.Parameter)
        and f"{key}_orig" not in held  # as pruning names the parameter behind such a tensor
        for key in ("weight", "bias")
    )


def unfreeze(model: nn.Module, where: Where | None = None) -> nn.Module:
    """Undo `freeze` for the batch norms that `where` selects, in place, and return the model.

    They take the model's mode, training or evaluation, and their parameters train again if they did before.
    """
    put_shards_back(model)
    for layer in _selected(model, where).values():
        hold = getattr(layer, _HOLD, None)
        if isinstance(hold, _Hold) and hold.active:
            hold.release(layer, model.training)
    return model


def _selected(model: nn.Module, where: Where | None) -> dict[str, nn.Module]:
    names = {layer: name for name, layer in batch_norms(model).items()}
    return {name: layer for layer, name in selected(model, names, where).items()}


def frozen_layers(model: nn.Module) -> list[str]:
    """Return the names of the batch norms that `freeze` holds, or will from a later step."""
    holds = {name: getattr(layer, _HOLD, None) for name, layer in batch_norms(model).items()}
    return [name for name, hold in holds.items() if isinstance(hold, _Hold) and hold.active]
