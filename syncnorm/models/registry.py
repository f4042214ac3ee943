"""Models by name, or by the import path of your own factory."""

import importlib
import inspect
from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

from torch import nn

from syncnorm.errors import UserError, unknown
from syncnorm.models.resnet import resnet18, thin_resnet
from syncnorm.models.small import MLP, SmallCNN, StridedCNN
from syncnorm.norms import make_norm

Shape = tuple[int, ...]


_MODELS: dict[str, Callable[..., nn.Module]] = {
    "small_cnn": SmallCNN,
    "strided_cnn": StridedCNN,
    "resnet18": resnet18,
    "resnet20": partial(thin_resnet, depth=20),
    "resnet32": partial(thin_resnet, depth=32),
    "resnet56": partial(thin_resnet, depth=56),
    "mlp": MLP,
}


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
    the arguments it names among in_channels, classes, norm (builds a norm layer from a number of channels) and
    shape, and with `options`. A model of yours that takes no `norm` keeps its batch norms: convert them yourself.

    Raises:
        UserError: an unknown name or option, a factory that cannot be imported, or a norm the model cannot take.
    """
    factory = _MODELS[name] if name in _MODELS else _import_factory(name)
    flat = name == "mlp"
    norm_factory = partial(make_norm, norm, ndim=1 if flat else 2, **(norm_options or {}))
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
