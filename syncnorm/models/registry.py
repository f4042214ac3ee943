"""Models by name, or by the import path of your own factory."""

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

from torch import nn

from syncnorm.errors import UserError, unknown
from syncnorm.models.binary_mlp import BinaryMLP
from syncnorm.models.ic_mlp import IndependentComponentMLP
from syncnorm.models.resnet import resnet18, thin_resnet
from syncnorm.models.signal_cnn import SignalCNN
from syncnorm.models.small import MLP, SmallCNN, StridedCNN
from syncnorm.norms import make_norm

Shape = tuple[int, ...]


@dataclass(frozen=True)
class _Entry:
    """A factory, and what its models convolve over: 2 dimensions (images), 1 (signals), 0 (samples are flattened)."""

    factory: Callable[..., nn.Module]
    positions: int

    @property
    def norm_ndim(self) -> int:
        """What `make_norm` is to be told."""
        return max(self.positions, 1)


_MODELS: dict[str, _Entry] = {
    "small_cnn": _Entry(SmallCNN, positions=2),
    "strided_cnn": _Entry(StridedCNN, positions=2),
    "resnet18": _Entry(resnet18, positions=2),
    "resnet20": _Entry(partial(thin_resnet, depth=20), positions=2),
    "resnet32": _Entry(partial(thin_resnet, depth=32), positions=2),
    "resnet56": _Entry(partial(thin_resnet, depth=56), positions=2),
    "signal_cnn": _Entry(SignalCNN, positions=1),
    "mlp": _Entry(MLP, positions=0),
    "ic_mlp": _Entry(IndependentComponentMLP, positions=0),
    "binary_mlp": _Entry(BinaryMLP, positions=0),
}
_SAMPLES = {2: "images (C, H, W)", 1: "signals (C, L)"}


def model_names() -> list[str]:
    """Return the names that `make_model` knows."""
    return list(_MODELS)


def make_model(
    name: str,
    shape: Shape,
    classes: int,
    norm: str = "bn",
    norm_options: dict[str, Any] | None = None,
    **options: Any,
) -> nn.Module:
    """Build a model for samples of `shape` (C, H, W) or (C, L) and `classes` classes, with norm layers `norm`.

    `name` is one of `model_names()`, or "package.module:factory" for a factory of your own, which is called with
    the arguments it names among in_channels, classes, norm (builds a norm layer from a number of channels, for as
    many dimensions as `shape` has beside C) and shape, and with `options`. A model of yours that takes no `norm`
    keeps its batch norms: convert them yourself.

    Raises:
        UserError: an unknown name or option, a factory that cannot be imported, samples of another kind than the
            model's, or a norm the model cannot take.
    """
    entry = _MODELS.get(name) or _Entry(_import_factory(name), positions=len(shape) - 1)
    _check_shape(name, entry, shape)
    factory = entry.factory
    norm_factory = partial(make_norm, norm, ndim=entry.norm_ndim, **(norm_options or {}))
    offered = {
        "in_channels": shape[0],
        "pixels": prod(shape),
        "classes": classes,
        "norm": norm_factory,
        "shape": shape,
    }
    taken = inspect.signature(factory).parameters
    arguments = {key: value for key, value in offered.items() if key in taken}
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    for option in options:
        if option not in taken and not takes_any:
            raise UserError(f"model '{name}': {unknown('option', option, set(taken) - set(offered))}")
    try:
        inspect.signature(factory).bind(**arguments, **options)
    except TypeError as error:
        raise UserError(f"model '{name}': {error}; give it in model_options.") from error
    try:
        return factory(**arguments, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        if name not in _MODELS or isinstance(error, UserError):  # in code of the user's own, the traceback helps
            raise
        given = ", ".join(f"{key}={value!r}" for key, value in options.items())
        raise UserError(f"model '{name}' cannot be built with {given}: {error}") from error


def _check_shape(name: str, entry: _Entry, shape: Shape) -> None:
    if entry.positions in (0, len(shape) - 1):
        return
    fitting = [known for known, other in _MODELS.items() if other.positions in (0, len(shape) - 1)]
    raise UserError(
        f"model '{name}' takes {_SAMPLES[entry.positions]}, and these samples have shape {shape}: choose one of "
        f"{', '.join(fitting)}."
    )


def _import_factory(name: str) -> Callable[..., nn.Module]:
    module, colon, attribute = name.partition(":")
    if not colon:
        raise UserError(f"{unknown('model', name, _MODELS)} Your own is written package.module:factory.")
    try:
        factory: Callable[..., nn.Module] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"model '{name}' cannot be imported ({error}): write package.module:factory, and start where Python "
            "finds the package (or set PYTHONPATH)."
        ) from error
    if not callable(factory):
        raise UserError(f"model '{name}' is a {type(factory).__name__}: name what builds a model.")
    return factory
