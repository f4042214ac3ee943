"""Build the layer that takes another's place, and the original back from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from syncnorm.errors import UserError
from syncnorm.norms import DomainBatchNorm, NormSpec, make_norm, norm_options, norm_spec
from syncnorm.norms.registry import spec_of
from syncnorm.norms.weight.weight_side import raw_parameter
from syncnorm.norms.weight.weight_standardization import CONVOLUTIONS
from syncnorm.surgery.layers.any_dimensions import BatchNorm
from syncnorm.surgery.layers.fused import Rest, with_rest
from syncnorm.surgery.layers.own_parts import AFFINE, STATISTICS, OwnParts, own_parts

ORIGIN = "_syncnorm_origin"
_CARRIED = ("eps", "momentum", "affine", "track_running_stats")
Place = tuple[torch.device, torch.dtype]


@dataclass
class Origin:
    """The original of a converted layer. (Not a module: it must not appear in state_dict or parameters.)

    `norm` is the name of the norm that replaced it, and `own` what the original has handed to the replacement. The
    original's own tensors do not move with the model. `place` is the replacement's first device and type, so that
    `revert` can tell whether the model has moved since.
    """

    layer: nn.Module
    norm: str
    own: OwnParts
    place: Place | None = None


def spec_of_layer(layer: nn.Module) -> NormSpec | None:
    """Return the row of a norm layer: of the norm it was converted to, else of its class; None if there is none."""
    origin: Origin | None = getattr(layer, ORIGIN, None)
    if isinstance(layer, CONVOLUTIONS):
        return None
    return spec_of(layer) if origin is None else norm_spec(origin.norm)


def original_layer(module: nn.Module) -> nn.Module:
    """Return the layer that `module` was converted from, as it was left; `module` itself if never converted."""
    origin: Origin | None = getattr(module, ORIGIN, None)
    return module if origin is None else origin.layer


def original(module: nn.Module, model: nn.Module) -> nn.Module:
    """Return the original of `module`, moved to its current device and type; `module` itself if never converted."""
    origin: Origin | None = getattr(module, ORIGIN, None)
    if origin is None:
        return module
    own = origin.own
    modes = [(part, part.training) for name in own.children for part in module._modules[name].modules()]  # type: ignore[union-attr]
    place = place_of(module, model)
    if place is not None:
        _leave_meta(origin.layer, place[0])
    _hand_over(module, origin.layer)
    if place is not None and place != origin.place:
        origin.layer.to(*place)
    own.hand_over(module, origin.layer)
    for part, training in modes:
        part.training = training
    return origin.layer


def _leave_meta(layer: nn.Module, device: torch.device) -> None:
    """Start what a layer built on the meta device holds and its replacement does not: there are no values to move."""
    for name, start in (
        ("weight", 1),
        ("bias", 0),
        ("running_mean", 0),
        ("running_var", 1),
        ("num_batches_tracked", 0),
    ):
        held = getattr(layer, name, None)
        if isinstance(held, Tensor) and held.is_meta and device.type != "meta":
            value = torch.full_like(held, start, device=device, requires_grad=False)
            setattr(layer, name, nn.Parameter(value) if isinstance(held, nn.Parameter) else value)


def place_of(module: nn.Module, model: nn.Module) -> Place | None:
    """Return the device and type of the tensors of `module`, or of its model if it has none."""
    tensors = chain(module.parameters(), module.buffers(), model.parameters(), model.buffers())
    return next(((tensor.device, tensor.dtype) for tensor in tensors if tensor.is_floating_point()), None)


def substitute(layer: nn.Module, name: str, options: dict[str, Any], rest: Rest | None) -> nn.Module:
    """Build the replacement of `layer` for the norm `name`, with what it holds, and what it does besides."""
    if isinstance(layer, CONVOLUTIONS):
        on_weight = norm_spec(name).weight
        if on_weight is None:
            return layer
        new = on_weight(layer, options)
    else:
        new = _norm_like(layer, name, options)
    own = own_parts(layer)
    free = own.free_in(new)
    if rest is not None and free != own:
        raise UserError(
            f"norm '{name}' has something of the same name as what {type(layer).__name__} holds for itself "
            f"({', '.join(own.names() - free.names())}): rename that, or choose another norm."
        )
    free.hand_over(layer, new)
    with_rest(new, rest)
    setattr(new, ORIGIN, Origin(layer, name, free))
    return new


def _norm_like(layer: nn.Module, name: str, options: dict[str, Any]) -> nn.Module:
    """Build the norm `name` with the settings, parameters and statistics of `layer`."""
    carried = {key: getattr(layer, key) for key in _CARRIED}
    carried["track_running_stats"] = keeps = isinstance(layer.running_mean, Tensor)
    like = next((t for t in (layer.running_mean, layer.weight) if isinstance(t, Tensor)), None)
    if like is not None:
        carried |= {"device": like.device, "dtype": like.dtype}
    carried = {key: value for key, value in carried.items() if key in norm_options(name)}
    channels, ndim = int(layer.num_features), _spatial_dimensions(layer)  # type: ignore[arg-type]
    new = make_norm(name, channels, ndim or 2, **{**carried, **options})
    if like is not None and not carried.keys() >= {"device", "dtype"}:
        new.to(like.device, like.dtype)  # its class does not take device and dtype
    if not ndim and norm_spec(name).by_ndim and type(new) is norm_spec(name).layer:
        new.__class__ = BatchNorm
    _hand_over(layer, new)
    if layer.weight is not None and layer.bias is None and getattr(new, "bias", None) is not None:
        new.bias = None  # the original layer learnt no bias
    if keeps and "track_running_stats" in vars(new) and "track_running_stats" not in options:
        new.track_running_stats = layer.track_running_stats  # it may have been switched off since
    return new


def _spatial_dimensions(layer: nn.Module) -> int:
    """Return the number of spatial dimensions that `layer` takes; 0 if it takes any."""
    for ndim, kind in enumerate((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), start=1):
        if isinstance(layer, kind):
            return ndim
    return 0


def _hand_over(source: nn.Module, target: nn.Module) -> None:
    """Copy parameters, statistics and mode from `source` to `target`, where both have them in the same shape."""
    held = {key: raw_parameter(source, key) for key in AFFINE}
    held |= {key: getattr(source, key, None) for key in STATISTICS}
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
