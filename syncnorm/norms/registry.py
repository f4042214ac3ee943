"""Norm layers by name."""

from collections.abc import Callable
from functools import cache
from inspect import isclass, signature
from types import NoneType
from typing import Any, get_args, get_type_hints

from torch import nn

from syncnorm.checks import check_value
from syncnorm.errors import UserError, unknown
from syncnorm.norms.batch_renorm import BatchRenorm
from syncnorm.norms.cross_iteration_batch_norm import CrossIterationBatchNorm
from syncnorm.norms.diminishing_batch_norm import DiminishingBatchNorm
from syncnorm.norms.domain_batch_norm import DomainBatchNorm
from syncnorm.norms.eval_norm import EvalNorm, ExampleWeighedBatchNorm
from syncnorm.norms.evo_norm import EvoNormB0, EvoNormS0
from syncnorm.norms.filter_response_norm import FilterResponseNorm
from syncnorm.norms.frozen_batch_norm import FrozenBatchNorm, ReferenceBatchNorm
from syncnorm.norms.full_norm import FullNorm
from syncnorm.norms.ghost_batch_norm import GhostBatchNorm
from syncnorm.norms.hybrid_batch_norm import HybridBatchNorm
from syncnorm.norms.instance_aware_batch_norm import InstanceAwareBatchNorm
from syncnorm.norms.mix_style import MixStyleBatchNorm
from syncnorm.norms.moving_average_batch_norm import MovingAverageBatchNorm
from syncnorm.norms.online_batch_norm import OnlineBatchNorm
from syncnorm.norms.per_sample import GroupNorm, InstanceNorm, LayerNorm
from syncnorm.norms.prediction_batch_norm import AlphaBatchNorm, PredictionBatchNorm
from syncnorm.norms.rms_norm import RMSNorm
from syncnorm.norms.sync_batch_norm import SyncBatchNorm
from syncnorm.norms.weight_side import BesideSpectralNorm, norm_beside_ws

_BATCH_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_NORMS: dict[str, Callable[..., nn.Module]] = {
    "bn": nn.BatchNorm2d,
    "sync_bn": SyncBatchNorm,
    "ghost_bn": GhostBatchNorm,
    "frozen_bn": FrozenBatchNorm,
    "reference_bn": ReferenceBatchNorm,
    "hybrid_bn": HybridBatchNorm,
    "domain_bn": DomainBatchNorm,
    "prediction_bn": PredictionBatchNorm,
    "alpha_bn": AlphaBatchNorm,
    "iabn": InstanceAwareBatchNorm,
    "online_bn": OnlineBatchNorm,
    "mixstyle": MixStyleBatchNorm,
    "brn": BatchRenorm,
    "evonorm_b0": EvoNormB0,
    "mabn": MovingAverageBatchNorm,
    "cbn": CrossIterationBatchNorm,
    "diminishing_bn": DiminishingBatchNorm,
    "full_norm": FullNorm,
    "eval_norm": EvalNorm,
    "example_bn": ExampleWeighedBatchNorm,
    "gn": GroupNorm,
    "ln": LayerNorm,
    "in": InstanceNorm,
    "rms": RMSNorm,
    "frn": FilterResponseNorm,
    "evonorm_s0": EvoNormS0,
    # These sit in the weights of convolutions, where only `convert` can put them; here is what they leave beside.
    "scaled_ws": nn.Identity,
    "ws": norm_beside_ws,
    "weight_norm": nn.Identity,
    "spectral_norm": BesideSpectralNorm,
    "none": nn.Identity,
}
# In training, what these make of a sample does not depend on the samples beside it.
_ALONE = {"frozen_bn", "reference_bn", "gn", "ln", "in", "rms", "frn", "evonorm_s0"}
_ALONE |= {"scaled_ws", "ws", "weight_norm", "spectral_norm", "none"}


def norm_names() -> list[str]:
    """Return the names that `make_norm` and `convert` know."""
    return list(_NORMS)


def norm_options(name: str) -> list[str]:
    """Return the names of a norm's options, e.g. ["groups", "eps", ...] for "gn"."""
    layer = _class_of(name)
    if layer is nn.Identity:
        return []
    return [option for option in signature(layer).parameters if option != "num_features"]


def sees_batch(name: str) -> bool:
    """Return whether a norm in training makes of a sample what depends on the rest of its batch."""
    _class_of(name)
    return name not in _ALONE


def make_norm(name: str, num_features: int, ndim: int = 2, **options: Any) -> nn.Module:
    """Build the norm layer `name` for C = `num_features` channels.

    `ndim` counts the spatial dimensions: 2 for (N, C, H, W), 1 for (N, C, L) and (N, C), 3 for (N, C, D, H, W).
    "scaled_ws", "ws", "weight_norm" and "spectral_norm" build what stands beside a convolution with such weights, an
    Identity or (for "ws") a group norm: let `syncnorm.convert` do this to a model's convolutions, or write them so.
    An unknown name or option, a missing option, one of another type, or a number the layer cannot serve raises
    `UserError`. ("bn" is PyTorch's own layer: what its forward cannot take, it says in PyTorch's words.)
    """
    layer = _class_of(name)
    if ndim not in _BATCH_NORM:
        raise UserError(f"ndim is {ndim}: a norm layer serves 1, 2 or 3 spatial dimensions.")
    num_features, options = _plain(num_features), {option: _plain(value) for option, value in options.items()}
    check_value(num_features, int, f"norm '{name}': num_features")
    if num_features < 1:
        raise UserError(f"norm '{name}' for {num_features} channels: it needs at least 1.")
    for option in options:
        if option not in norm_options(name):
            raise UserError(f"norm '{name}': {unknown('option', option, norm_options(name))}")
    _check_values(name, options)
    if layer is nn.Identity:
        return nn.Identity()
    factory: Callable[..., nn.Module] = _BATCH_NORM[ndim] if name == "bn" else layer
    try:
        signature(factory).bind(num_features, **options)
        return factory(num_features, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in options.items()) or "no options"
        raise UserError(f"norm '{name}' for {num_features} channels with {given}: {error}") from error


def _check_values(name: str, options: dict[str, Any]) -> None:
    """Raise `UserError` for numbers of another type, and for what torch's layers take without a look."""
    hints = _hints(_class_of(name))
    for option, value in options.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if option == "eps" and not (number and 0 <= value < float("inf")):
            raise UserError(f"norm '{name}': eps is {value!r}: it must be a number, at least 0.")
        if option == "momentum" and value is not None and not (number and 0 <= value <= 1):
            raise UserError(f"norm '{name}': momentum is {value!r}: it must be a number from 0 to 1, or None.")
        hint = hints.get(option, Any)
        if {bool, int, float, NoneType}.issuperset(get_args(hint) or (hint,)):  # of the rest the layers know
            check_value(value, hint, f"norm '{name}': {option}")


@cache
def _hints(layer: Callable[..., nn.Module]) -> dict[str, Any]:
    return get_type_hints(layer.__init__ if isclass(layer) else layer)


def _plain(value: Any) -> Any:
    """Return the number that a NumPy scalar or a tensor of one holds; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def _class_of(name: str) -> Callable[..., nn.Module]:
    if not isinstance(name, str) or name not in _NORMS:
        raise unknown("norm", str(name), _NORMS)
    return _NORMS[name]
