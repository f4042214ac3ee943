"""Swap a model's batch norms for another norm, and back.

model = syncnorm.convert(model, "sync_bn")
model = syncnorm.revert(model)
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

from syncnorm.errors import UserError
from syncnorm.norms import DomainBatchNorm, NormSpec, make_norm, norm_options, norm_spec
from syncnorm.norms.make import check_options
from syncnorm.norms.registry import spec_of
from syncnorm.norms.weight_side import raw_parameter
from syncnorm.norms.weight_standardization import CONVOLUTIONS, can_be_standardised
from syncnorm.surgery.preconditions import check_changeable, warn_of_foreign_norms
from syncnorm.surgery.replace import replace_modules

_ORIGIN = "_syncnorm_origin"
_AFFINE = ("weight", "bias")
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_CARRIED = ("eps", "momentum", "affine", "track_running_stats")


Place = tuple[torch.device, torch.dtype]


@dataclass
class _Origin:
    """The original of a converted layer. (Not a module: it must not appear in state_dict or parameters.)

    `norm` is the name of the norm that replaced it. The original's own tensors do not move with the model. `place` is
    the replacement's first device and type, so that `revert` can tell whether the model has moved since.
    """

    layer: nn.Module
    norm: str
    place: Place | None = None


def batch_norms(model: nn.Module) -> dict[str, nn.Module]:
    """Return a model's batch-norm layers by their names, found by type: every subclass of torch's `_BatchNorm`.

    A layer that a model uses in several places is listed once, under its first name.
    """
    return {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}


def convert(model: nn.Module, name: str, **options: Any) -> nn.Module:
    """Replace every batch norm of `model` by the norm `name`, in place, and return the model.

    Parameters stay the same objects, so an existing optimiser keeps working, and running statistics are kept if the
    new layer has any. eps, momentum, affine and track_running_stats are those of the replaced layer, unless given as
    options. A layer used in several places stays one layer. Converted layers are converted again from their
    originals. Hooks stay with the replaced layer. (If `model` itself is a batch norm, it is replaced: use the return
    value.)

    "gn" gets 32 groups by default, and fewer on layers of less than 64 channels. Where a layer has one position, that
    leaves few values a group, of which little can be learned: give `groups` (`norms.per_sample.default_groups`).

    "scaled_ws", "weight_norm" and "spectral_norm" remove the batch norms, "ws" and "mabn" replace them, and all of
    these replace every convolution (except transposed ones, and those with one weight per unit) by one that
    normalises its weight. Converting to any other norm, and `revert`, undo this: the trained raw weight stays, and
    other parameters of the norm (a gain) are dropped.

    Raises:
        UserError: an unknown norm or option, a number of channels that the norm cannot handle, or a norm of weights
            for a model without convolutions; a lazy layer whose channels are not known yet, or a layer whose weight
            or bias is parametrised or pruned; a model that is scripted, quantised or in DDP. The model is then
            unchanged.

    Warns if a replaced layer's class overrides forward, since its additions are lost; if a module has a running mean
    but is not a PyTorch batch norm, since it stays; and if the model has nothing to replace.
    """
    check_changeable(model)
    check_options(name, options)
    warn_of_foreign_norms(model, "it stays as it is")
    layers = {layer: where for where, layer in batch_norms(model).items()} | converted_layers(model)
    if norm_spec(name).weight is not None:
        layers |= _convolutions(model, name)
    if not layers:
        warnings.warn(f"the model has no batch norm that '{name}' could replace: it stays as it is.", stacklevel=2)
    return convert_layers(model, layers, name, options)


def revert(model: nn.Module, *, domain: int | None = None) -> nn.Module:
    """Turn every converted layer of `model` back into its original class, in place, and return the model.

    The layer gets the current parameters, and the current running statistics if the norm kept any; otherwise its old
    ones, on the model's current device and in its type. `convert` followed by `revert` leaves a model's outputs
    exactly unchanged.

    From a layer with statistics for each domain, it gets those of `domain`, or, without `domain`, those of all
    domains pooled (`DomainBatchNorm.pooled`).

    Raises:
        UserError: a converted layer whose weight or bias has been parametrised or pruned since; a `domain` that is
            unknown, or that no layer of the model uses.
    """
    check_changeable(model)
    layers = converted_layers(model)
    by_domain = [layer for layer in layers if isinstance(layer, DomainBatchNorm)]
    if domain is not None:
        known = min((layer.domains for layer in by_domain), default=0)
        if not isinstance(domain, int) or isinstance(domain, bool) or not 0 <= domain < known:
            has = f"its layers know the ids 0 to {known - 1}" if known else "none of its layers tells domains apart"
            raise UserError(f"the model cannot be reverted to domain {domain!r}: {has}.")
    model = revert_layers(model, layers)
    for layer in by_domain:
        layer.hand_to(getattr(layer, _ORIGIN).layer, domain)
    return model


def converted_layers(model: nn.Module) -> dict[nn.Module, str]:
    """Return the layers of `model` that `convert` has put in place of others, with their names."""
    return {module: name for name, module in model.named_modules() if hasattr(module, _ORIGIN)}


def spec_of_layer(layer: nn.Module) -> NormSpec | None:
    """Return the row of a norm layer: of the norm it was converted to, else of its class; None if there is none."""
    origin: _Origin | None = getattr(layer, _ORIGIN, None)
    if isinstance(layer, CONVOLUTIONS):
        return None
    return spec_of(layer) if origin is None else norm_spec(origin.norm)


def convert_layers(model: nn.Module, layers: dict[nn.Module, str], name: str, options: dict[str, Any]) -> nn.Module:
    """Do what `convert` does, for these layers of `model` (with their names) only."""
    for layer, where in layers.items():
        _check(where, layer)
    swaps = {layer: _substitute(original(layer, model), name, options) for layer in layers}
    model = replace_modules(model, swaps)
    for new in swaps.values():
        if hasattr(new, _ORIGIN):
            getattr(new, _ORIGIN).place = _place(new, model)
    return model


def revert_layers(model: nn.Module, layers: dict[nn.Module, str]) -> nn.Module:
    """Do what `revert` does, for these converted layers of `model` (with their names) only."""
    for layer, where in layers.items():
        _check_parameters(where, layer)
    return replace_modules(model, {layer: original(layer, model) for layer in layers})


def _convolutions(model: nn.Module, name: str) -> dict[nn.Module, str]:
    """Return the convolutions of `model` whose weights the norm `name` will normalise, with their names."""
    if not any(isinstance(module, CONVOLUTIONS) for module in model.modules()):
        raise UserError(
            f"norm '{name}' normalises the weights of convolutions, and the model has none: choose another norm."
        )
    return {module: where for where, module in model.named_modules() if can_be_standardised(module)}


def original(module: nn.Module, model: nn.Module) -> nn.Module:
    """Return the original of `module`, moved to its current device and type; `module` itself if never converted."""
    origin: _Origin | None = getattr(module, _ORIGIN, None)
    if origin is None:
        return module
    _hand_over(module, origin.layer)
    place = _place(module, model)
    if place is not None and place != origin.place:
        origin.layer.to(*place)
    return origin.layer


def _place(module: nn.Module, model: nn.Module) -> Place | None:
    """Return the device and type of the tensors of `module`, or of its model if it has none."""
    tensors = chain(module.parameters(), module.buffers(), model.parameters(), model.buffers())
    return next(((tensor.device, tensor.dtype) for tensor in tensors if tensor.is_floating_point()), None)


def _check(where: str, module: nn.Module) -> None:
    """Raise if `module` cannot be converted; warn if converting it would lose something."""
    origin: _Origin | None = getattr(module, _ORIGIN, None)
    layer = module if origin is None else origin.layer
    _check_parameters(where, module)
    if isinstance(layer, LazyModuleMixin) or any(is_lazy(p) for p in layer.parameters()):
        raise UserError(f"layer '{where}' does not know its channels yet: run one batch through the model first.")
    known = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, *CONVOLUTIONS)
    own = type(layer).forward
    if not type(layer).__module__.startswith("syncnorm.") and all(own is not base.forward for base in known):
        warnings.warn(
            f"layer '{where}' is a {type(layer).__name__} with a forward of its own: converting it keeps "
            "what its base class does and leaves out whatever else that forward does.",
            stacklevel=4,
        )


def _check_parameters(where: str, module: nn.Module) -> None:
    for key in _AFFINE:
        if not isinstance(raw_parameter(module, key), nn.Parameter | None):
            raise UserError(
                f"layer '{where}' computes its {key} from something else (it is parametrised or pruned): make that "
                "permanent first, with remove_parametrizations or prune.remove."
            )


def _substitute(layer: nn.Module, name: str, options: dict[str, Any]) -> nn.Module:
    """Build the replacement of `layer` for the norm `name`, with its parameters and statistics."""
    if isinstance(layer, CONVOLUTIONS):
        on_weight = norm_spec(name).weight
        if on_weight is None:
            return layer
        convolution = on_weight(layer, options)
        setattr(convolution, _ORIGIN, _Origin(layer, name))
        return convolution
    carried = {key: getattr(layer, key) for key in _CARRIED}
    like = next((t for t in (layer.running_mean, layer.weight) if isinstance(t, Tensor)), None)
    if like is not None:
        carried |= {"device": like.device, "dtype": like.dtype}
    carried = {key: value for key, value in carried.items() if key in norm_options(name)}
    channels = int(layer.num_features)  # type: ignore[arg-type]
    new = make_norm(name, channels, _spatial_dimensions(layer), **{**carried, **options})
    if like is not None and not carried.keys() >= {"device", "dtype"}:
        new.to(like.device, like.dtype)  # its class does not take device and dtype
    _hand_over(layer, new)
    if layer.weight is not None and layer.bias is None and getattr(new, "bias", None) is not None:
        new.bias = None  # the original layer learnt no bias
    setattr(new, _ORIGIN, _Origin(layer, name))
    return new


def _spatial_dimensions(layer: nn.Module) -> int:
    for ndim, kind in ((1, nn.BatchNorm1d), (3, nn.BatchNorm3d)):
        if isinstance(layer, kind):
            return ndim
    return 2


def _hand_over(source: nn.Module, target: nn.Module) -> None:
    """Copy parameters, statistics and mode from `source` to `target`, where both have them in the same shape."""
    held = {key: raw_parameter(source, key) for key in _AFFINE}
    held |= {key: getattr(source, key, None) for key in _STATISTICS}
    for key, value in held.items():
        own = getattr(target, key, None)
        if isinstance(value, Tensor) and isinstance(own, Tensor) and (own.shape == value.shape or is_lazy(own)):
            setattr(target, key, value)
    if isinstance(source, DomainBatchNorm):
        source.hand_to(target)
    if isinstance(target, DomainBatchNorm):
        target.start_from(source)
    start: Callable[[], None] | None = getattr(target, "_start_ranks", None)
    if start is not None:
        start()
    target.train(source.training)


def layers_with_statistics(model: nn.Module) -> list[nn.Module]:
    """Return the batch norms of `model`, and their replacements with other running statistics."""
    stand_ins = [layer for layer in converted_layers(model) if any(True for _ in layer.buffers(recurse=False))]
    return list(dict.fromkeys([*batch_norms(model).values(), *stand_ins]))
