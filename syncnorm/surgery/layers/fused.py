"""Batch norms whose forward does more: the rest is found, and carried along to the layer in their place.

rest = rest_of(layer, "features.norm0")         # for example dropout and activation; None for a plain batch norm
with_rest(new, rest)                            # new(x) is now the rest of new's own output
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from syncnorm.errors import UserError
from syncnorm.moments import acc_dtype
from syncnorm.norms import NORMS, SyncBatchNorm
from syncnorm.surgery.layers.own_parts import AFFINE, STATISTICS, OwnParts, base_class, own_parts
from syncnorm.surgery.layers.replace import METHODS, is_retired

_EPS = 2.0**-10  # 1 - eps is exact in every type
_PLACES = ((torch.float64, 1e-9), (torch.float32, 1e-4))


@dataclass
class Rest:
    """What a layer does with the output of its norm.

    own: what the layer holds for it, by name.
    layer: None if the rest is its children, one after the other. Otherwise a layer of the original class, without
        tensors of its own: as a batch norm that changes nothing (mean 0, variance + eps = 1), it does the rest alone.
    """

    own: OwnParts
    layer: nn.Module | None = None

    def __call__(self, holder: nn.Module, y: Tensor) -> Tensor:
        """Return the rest of `y`, done with what `holder` holds."""
        if self.layer is None:
            for name in self.own.children:
                y = holder._modules[name](y)  # type: ignore[misc]
            return y
        mean = y.new_zeros(y.shape[1], dtype=acc_dtype(y.dtype))
        var = torch.full_like(mean, 1.0 - _EPS)
        vars(self.layer).update({name: vars(holder)[name] for name in self.own.attributes if name in vars(holder)})
        vars(self.layer).update(
            _modules=holder._modules,
            _parameters={**holder._parameters, "weight": None, "bias": None},
            _buffers={**holder._buffers, "running_mean": mean, "running_var": var, "num_batches_tracked": None},
        )
        try:
            done: Tensor = type(self.layer).forward(self.layer, y)
        finally:  # it keeps nothing of a call, which may have been one of a compiler
            vars(self.layer).update(_modules={}, _parameters={}, _buffers={})
        return done


class _WithRest(nn.Module):
    """Adds the rest to a norm: the first base of classes that `_fused_class` makes."""

    _rest: Rest

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Normalise, and do the rest."""
        return self._rest(self, super().forward(*inputs, **options))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _new, (norm_class(self),), self.__getstate__()  # type: ignore[no-untyped-call]


_CLASSES: dict[Any, type[nn.Module]] = {}


def _fused_class(base: type[nn.Module]) -> type[nn.Module]:
    if base not in _CLASSES:
        names = {"__doc__": base.__doc__, "__module__": base.__module__}  # fx and others go by the module's name
        _CLASSES[base] = type(f"Fused{base.__name__.lstrip('_')}", (_WithRest, base), names)
    return _CLASSES[base]


def _new(base: type[nn.Module]) -> nn.Module:
    kind = _fused_class(base)
    return kind.__new__(kind)


def norm_class(layer: nn.Module) -> type[nn.Module]:
    """Return the class of a layer's norm, without the rest that it may carry."""
    classes = type(layer).__mro__
    return classes[classes.index(_WithRest) + 1] if isinstance(layer, _WithRest) else classes[0]


def become(layer: nn.Module, kind: type[nn.Module]) -> None:
    """Make `layer` a norm of class `kind`, with the rest that it carries."""
    layer.__class__ = _fused_class(kind) if isinstance(layer, _WithRest) else kind


def with_rest(layer: nn.Module, rest: Rest | None) -> nn.Module:
    """Let `layer`, which holds `rest.own` already, do the rest after its own forward; return it."""
    if rest is not None:
        layer.__class__ = _fused_class(type(layer))
        layer._rest = rest  # type: ignore[assignment]
    return layer


def without_rest(layer: nn.Module) -> tuple[nn.Module, Rest | None]:
    """Return the norm of `layer` alone, a layer that shares its tensors, and the rest."""
    twin = same_layer(layer)
    if not isinstance(layer, _WithRest):
        return twin, None
    own: OwnParts = vars(twin).pop("_rest").own
    twin.__class__ = norm_class(layer)
    for held, names in (("_parameters", own.parameters), ("_buffers", own.buffers), ("_modules", own.children)):
        vars(twin)[held] = {name: value for name, value in vars(layer)[held].items() if name not in names}
    return twin, layer._rest


def same_layer(layer: nn.Module) -> nn.Module:
    """Return another layer of the same class that holds the very same tensors, children and hooks."""
    twin = type(layer).__new__(type(layer))
    vars(twin).update({name: value for name, value in vars(layer).items() if name not in METHODS})
    return twin


def rest_of(layer: nn.Module, where: str) -> Rest | None:
    """Return what the forward of a batch norm does with the normalised input; None if it is its norm alone.

    It is tried out on made-up inputs and statistics, in evaluation and in training, on a copy of the layer. A class
    that is registered as a norm is its norm alone.

    Raises:
        UserError: a forward that is not that of a batch norm and then something else.
    """
    if isinstance(layer, _WithRest):
        return layer._rest
    base, kind = base_class(type(layer)), type(layer)
    patched = "forward" in vars(layer) and not is_retired(layer)
    norms = [own for spec in NORMS.values() for own in (spec.layer, *spec.by_ndim.values())]
    called = kind.__call__ is not nn.Module.__call__  # what it does there is beyond any forward
    if not called and not patched and (kind.forward is base.forward or kind in norms):
        return None
    own = own_parts(layer)
    foreign = base.__module__.startswith("syncnorm.") and bool(layer._modules)
    if not called and not patched and not foreign:
        nothing = Rest(OwnParts())
        for rest in ([Rest(own)] if own.children else []) + [nothing, Rest(own, _stand_in(layer))]:
            if _is_rest(rest, layer, base):
                return None if rest is nothing else rest
    raise UserError(
        f"layer '{where}' is a {kind.__name__} with a forward of its own, which is not {base.__name__} with "
        "something after it, and would be lost: put a torch.nn batch norm in its place, and what else it does in a "
        "module beside it."
    )


def _stand_in(layer: nn.Module) -> nn.Module:
    """Return a layer of the same class without tensors, children and hooks, that is always in evaluation."""
    twin = _unhooked(layer)
    vars(twin).update(eps=_EPS, training=False, _parameters={}, _buffers={}, _modules={})
    if "process_group" in vars(twin):
        vars(twin)["process_group"] = None  # it could not be copied
    return twin


def _unhooked(layer: nn.Module) -> nn.Module:
    twin = same_layer(layer)
    vars(twin).update({name: type(value)() for name, value in vars(layer).items() if name.endswith("_hooks")})
    return twin


def _is_rest(rest: Rest, layer: nn.Module, base: type[nn.Module]) -> bool:
    """Return whether the layer's forward is the rest of its base's: in float64, or in float32 if it must be."""
    tried = (_agrees(rest, layer, base, dtype, within) for dtype, within in _PLACES)
    return next((agrees for agrees in tried if agrees is not None), False)


@torch.no_grad()
def _agrees(rest: Rest, layer: nn.Module, base: type[nn.Module], dtype: torch.dtype, within: float) -> bool | None:
    """Return whether both agree, in both modes, with the same random draws; None if no input can tell."""
    alone = not (issubclass(base, nn.SyncBatchNorm | SyncBatchNorm) and _several_ranks())
    if not alone and "training" in type(layer).forward.__code__.co_names:
        return False  # it cannot be run in training by one rank
    with torch.random.fork_rng(devices=[]):
        for training in (False, True):
            tried = [
                _same(rest, layer, base, x, (training, training and alone), within) for x in _inputs(layer, dtype)
            ]
            if False in tried or not any(tried):
                return False if False in tried else None
    return True


def _same(
    rest: Rest, layer: nn.Module, base: type[nn.Module], x: Tensor, modes: tuple[bool, bool], within: float
) -> bool | None:
    """Return whether forward and rest agree on `x`; None if the forward does not take it, or has another type."""
    results: list[Any] = []
    for whole in (True, False):
        twin = _made_up(layer, x.dtype, modes)
        torch.default_generator.manual_seed(1)
        try:
            if whole:
                results.append(type(layer).forward(twin, x.clone()))
            else:
                results.append(rest(twin, base.forward(twin, x.clone())))
        except Exception:  # a user's forward may do anything
            return None if whole else False
    right, found = results
    if not isinstance(right, Tensor) or right.shape != found.shape:
        return False
    if right.dtype != x.dtype:
        return None
    return torch.allclose(found, right, rtol=within, atol=within, equal_nan=True)


def _inputs(layer: nn.Module, dtype: torch.dtype) -> Iterator[Tensor]:
    channels = int(layer.num_features)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    for positions in ((3, 3), (), (3,), (2, 3, 3)):
        yield torch.randn(4, channels, *positions, generator=generator, dtype=dtype, device="cpu") * 2 + 1


def _made_up(layer: nn.Module, dtype: torch.dtype, modes: tuple[bool, bool]) -> nn.Module:
    """Return a copy on the CPU with weights and statistics that are all different; `modes`: children's, its own."""
    generator = torch.Generator().manual_seed(0)

    def drawn(tensor: Tensor) -> Tensor:
        return torch.rand(tensor.shape, generator=generator, dtype=dtype, device="cpu") + 0.5

    def moved(tensor: Tensor) -> Tensor:
        if tensor.is_meta:
            return drawn(tensor)
        return tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None, copy=True)

    def known(name: str, tensor: Tensor | None) -> Tensor | None:
        if tensor is None or name == "num_batches_tracked":
            return None if tensor is None else torch.zeros((), dtype=torch.long, device="cpu")
        return drawn(tensor) if name in (*AFFINE, *STATISTICS) else moved(tensor)

    twin = _unhooked(layer)
    parameters = {name: known(name, p) for name, p in layer._parameters.items()}
    vars(twin)["_parameters"] = {name: p if p is None else nn.Parameter(p) for name, p in parameters.items()}
    vars(twin)["_buffers"] = {name: known(name, buffer) for name, buffer in layer._buffers.items()}
    vars(twin)["_modules"] = copy.deepcopy(layer._modules)
    for child in twin.children():
        child._apply(moved).train(modes[0])  # type: ignore[no-untyped-call]
    vars(twin)["training"] = modes[1]
    return twin


def _several_ranks() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
