"""Swap a model's batch norms for another norm, and back.

model = syncnorm.convert(model, "sync_bn")
model = syncnorm.revert(model)
"""

import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

from syncnorm._torch import fully_sharded
from syncnorm.errors import UserError
from syncnorm.norms import DomainBatchNorm, SyncBatchNorm, norm_spec
from syncnorm.norms.make import check_options
from syncnorm.norms.weight.weight_side import raw_parameter
from syncnorm.norms.weight.weight_standardization import CONVOLUTIONS, can_be_standardised
from syncnorm.surgery.conversion.groups import with_group
from syncnorm.surgery.conversion.where import Where, selected
from syncnorm.surgery.layers.fused import Rest, rest_of
from syncnorm.surgery.layers.own_parts import AFFINE, base_class
from syncnorm.surgery.layers.own_train import kept_in_evaluation, warn_of_thawed
from syncnorm.surgery.layers.preconditions import check_changeable, warn_of_foreign_norms
from syncnorm.surgery.layers.sharded import put_shards_back, replace_layers
from syncnorm.surgery.layers.substitute import ORIGIN, original, original_layer, place_of, substitute

FLAT = "_fsdp_wrapped_module."  # what FSDP1 adds to names of modules, though not to those in a state_dict


def batch_norms(model: nn.Module) -> dict[str, nn.Module]:
    """Return a model's batch-norm layers by their names, found by type: every subclass of torch's `_BatchNorm`.

    A layer that a model uses in several places is listed once, under its first name. In a model in FSDP1 the names
    are those of its `state_dict`, without the wrappers.
    """
    return {
        name.replace(FLAT, ""): module for name, module in model.named_modules() if isinstance(module, _BatchNorm)
    }


def convert(model: nn.Module, name: str, *, where: Where | None = None, **options: Any) -> nn.Module:
    """Replace every batch norm of `model` by the norm `name`, in place, and return the model.

    `where` chooses layers, which can then have a norm each; the others stay as they are: a pattern of names
    ("layer1.*"), a class, a list of these, a slice of positions in the model's order (slice(4): the first four), or a
    function of a layer's name and the layer (before any conversion). `convert_report` says in advance what happens to
    each layer.

    Parameters stay the same objects, so an existing optimiser keeps working, and running statistics are kept if the
    new layer has any. eps, momentum, affine and track_running_stats are those of the replaced layer, unless given as
    options. A layer used in several places stays one layer. Converted layers are converted again from their
    originals. Hooks stay with the replaced layer. (If `model` itself is a batch norm, it is replaced: use the return
    value.)

    What a class of batch norms does after the norm (an activation, dropout) goes on with the new norm: it is tried
    out on a copy of the layer. Attributes, parameters, buffers and children that such a layer has of its own go along
    under their names.

    Layers are replaced wherever the model holds them: as children, in lists, dicts, plain objects, closures. A
    replaced layer that the forward reaches all the same (through a global variable, say) raises a `UserError` that
    names it.

    A norm that takes statistics over a batch takes `sync=True`: those are then taken over the batches of all ranks
    ("sync_bn" does so in any case, and "bn" keeps them by rank). With `group_size` neighbouring ranks, so many at a
    time, share statistics, or those of a machine ("node"); `process_group` takes a group of your own, or
    `mesh["shard"]`. Every rank has to convert then.

    In a model in `fully_shard` (FSDP2), the norm has to have the parameters of the layer.

    "gn" gets 32 groups by default, and fewer on layers of less than 64 channels. Where a layer has one position, that
    leaves few values a group, of which little can be learned: give `groups` (`norms.per_sample.default_groups`).

    "scaled_ws", "weight_norm" and "spectral_norm" remove the batch norms, "ws" and "mabn" replace them, and all of
    these replace every convolution (except transposed ones, and those with one weight per unit) by one that
    normalises its weight. Converting to any other norm, and `revert`, undo this: the trained raw weight stays, and
    other parameters of the norm (a gain) are dropped.

    Raises:
        UserError: an unknown norm or option, a number of channels that the norm cannot handle, or a norm of weights
            for a model without convolutions; a lazy layer whose channels are not known yet, or a layer whose weight
            or bias is parametrised or pruned; a layer with a forward of its own that is not batch norm with something
            after it; a `where` that selects nothing; a model that is scripted, quantised, in DDP or in FSDP1; in
            FSDP2, a norm with other parameters, or a layer that is sharded by itself. The model is then unchanged.

    "bn" in place of a layer that takes inputs of any dimensions (`nn.SyncBatchNorm`) becomes `nn.BatchNorm1d`, `2d`
    or `3d` at its first input.

    Warns if a module has a running mean but is not a PyTorch batch norm, since it stays; if the model has nothing to
    replace; and if its own `train()` keeps layers in evaluation mode and does not find the new ones (it is called to
    find out, and modes are restored); and if a replaced layer has forward hooks, since these do not run.
    """
    check_changeable(model)
    put_shards_back(model)
    options = with_group(name, options)
    check_options(name, options)
    warn_of_foreign_norms(model, "it stays as it is")
    layers = selected(model, candidates(model, name), where)
    if not layers:
        warnings.warn(f"the model has no batch norm that '{name}' could replace: it stays as it is.", stacklevel=2)
    return convert_layers(model, layers, name, options)


def candidates(model: nn.Module, name: str) -> dict[nn.Module, str]:
    """Return the layers that `convert` to the norm `name` replaces, with their names."""
    layers = {layer: where for where, layer in batch_norms(model).items()} | converted_layers(model)
    return layers if norm_spec(name).weight is None else layers | _convolutions(model, name)


def revert(model: nn.Module, *, domain: int | None = None) -> nn.Module:
    """Turn every converted layer of `model` back into its original class, in place, and return the model.

    The layer gets the current parameters, and the current running statistics if the norm kept any; otherwise its old
    ones, on the model's current device and in its type. `convert` followed by `revert` leaves a model's outputs
    exactly unchanged.

    From a layer with statistics for each domain, it gets those of `domain`, or, without `domain`, those of all
    domains pooled (`DomainBatchNorm.pooled`).

    Warns if the model has no converted layer, or synchronised ones that `convert` has not made, since these stay.

    Raises:
        UserError: a converted layer whose weight or bias has been parametrised or pruned since; a `domain` that is
            unknown, or that no layer of the model uses.
    """
    check_changeable(model)
    put_shards_back(model)
    layers = converted_layers(model)
    _warn_of_unconverted(model, layers)
    by_domain = [layer for layer in layers if isinstance(layer, DomainBatchNorm)]
    if domain is not None:
        known = min((layer.domains for layer in by_domain), default=0)
        if not isinstance(domain, int) or isinstance(domain, bool) or not 0 <= domain < known:
            has = f"its layers know the ids 0 to {known - 1}" if known else "none of its layers tells domains apart"
            raise UserError(f"the model cannot be reverted to domain {domain!r}: {has}.")
    model = revert_layers(model, layers)
    for layer in by_domain:
        layer.hand_to(getattr(layer, ORIGIN).layer, domain)
    return model


def _warn_of_unconverted(model: nn.Module, converted: dict[nn.Module, str]) -> None:
    """Warn of what looks as if it was converted, but not by `convert`; and if nothing was."""
    others = [
        f"'{name}'"
        for name, layer in batch_norms(model).items()
        if isinstance(layer, nn.SyncBatchNorm | SyncBatchNorm) and layer not in converted
    ]
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        warnings.warn(
            f"{', '.join(others[:3])}{more}: synchronised batch norm that syncnorm.convert has not put there, so it "
            "stays: convert(model, 'bn') makes it batch norm.",
            stacklevel=3,
        )
    elif not converted:
        warnings.warn("the model has no layer from syncnorm.convert: it stays as it is.", stacklevel=3)


def converted_layers(model: nn.Module) -> dict[nn.Module, str]:
    """Return the layers of `model` that `convert` has put in place of others, with their names."""
    return {module: name for name, module in model.named_modules() if hasattr(module, ORIGIN)}


def convert_layers(model: nn.Module, layers: dict[nn.Module, str], name: str, options: dict[str, Any]) -> nn.Module:
    """Do what `convert` does, for these layers of `model` (with their names) only."""
    rests = {layer: check_layer(where, layer, name) for layer, where in layers.items()}
    swaps = {layer: substitute(original(layer, model), name, options, rest) for layer, rest in rests.items()}
    frozen = kept_in_evaluation(model, layers) if norm_spec(name).sees_batch else set()
    model = replace_layers(model, swaps, layers)
    for new in swaps.values():
        if hasattr(new, ORIGIN):
            getattr(new, ORIGIN).place = place_of(new, model)
    warn_of_thawed(model, layers, swaps, frozen)
    _warn_of_hooks(layers)
    return model


def _warn_of_hooks(layers: Mapping[nn.Module, str]) -> None:
    """Warn of replaced layers with forward hooks, which may have changed their outputs."""
    hooked = [f"'{name}'" for layer, name in layers.items() if layer._forward_hooks or layer._forward_pre_hooks]
    if hooked:
        more = f" and {len(hooked) - 3} more" if len(hooked) > 3 else ""
        warnings.warn(
            f"{', '.join(hooked[:3])}{more}: forward hooks stay with the replaced layer until revert, and do not run "
            "meanwhile: register them on the new layer too if they are needed.",
            stacklevel=4,
        )


def revert_layers(model: nn.Module, layers: dict[nn.Module, str]) -> nn.Module:
    """Do what `revert` does, for these converted layers of `model` (with their names) only."""
    for layer, where in layers.items():
        _check_parameters(where, layer)
    return replace_layers(model, {layer: original(layer, model) for layer in layers}, layers)


def _convolutions(model: nn.Module, name: str) -> dict[nn.Module, str]:
    """Return the convolutions of `model` whose weights the norm `name` will normalise, with their names."""
    if fully_sharded(model):
        raise UserError(f"norm '{name}' normalises weights, which fully_shard has sharded: convert before you shard.")
    if not any(isinstance(module, CONVOLUTIONS) for module in model.modules()):
        raise UserError(
            f"norm '{name}' normalises the weights of convolutions, and the model has none: choose another norm."
        )
    return {module: where for where, module in model.named_modules() if can_be_standardised(module)}


def check_layer(where: str, module: nn.Module, name: str) -> Rest | None:
    """Raise if `module` cannot be converted to `name`; return what it does besides its norm."""
    layer = original_layer(module)
    _check_parameters(where, module)
    if isinstance(layer, LazyModuleMixin) or any(is_lazy(p) for p in layer.parameters()):
        raise UserError(f"layer '{where}' does not know its channels yet: run one batch through the model first.")
    if not isinstance(layer, CONVOLUTIONS):
        return rest_of(layer, where)
    if type(layer).forward is not base_class(type(layer)).forward and norm_spec(name).weight is not None:
        raise UserError(
            f"layer '{where}' is a {type(layer).__name__} with a forward of its own, which norm '{name}' would leave "
            f"out: put a {base_class(type(layer)).__name__} in its place, or choose a norm that leaves convolutions."
        )
    return None


def _check_parameters(where: str, module: nn.Module) -> None:
    for key in AFFINE:
        if not isinstance(raw_parameter(module, key), nn.Parameter | None):
            raise UserError(
                f"layer '{where}' computes its {key} from something else (it is parametrised or pruned): make that "
                "permanent first, with remove_parametrizations or prune.remove."
            )


def layers_with_statistics(model: nn.Module) -> list[nn.Module]:
    """Return the batch norms of `model`, and their replacements with other running statistics."""
    stand_ins = [layer for layer in converted_layers(model) if any(True for _ in layer.buffers(recurse=False))]
    return list(dict.fromkeys([*batch_norms(model).values(), *stand_ins]))
