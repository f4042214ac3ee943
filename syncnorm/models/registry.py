"""Models by name, or by the import path of your own factory.

@syncnorm.register_model("mynet")
def mynet(shape, classes, norm, width=16):
    ...
"""

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import PurePath
from typing import Any, TypeVar

from torch import nn

from syncnorm.errors import UserError, unknown, where_raised, with_article
from syncnorm.models.binary_mlp import BinaryMLP
from syncnorm.models.ic_mlp import IndependentComponentMLP
from syncnorm.models.resnet import resnet18, thin_resnet
from syncnorm.models.signal_cnn import SignalCNN
from syncnorm.models.small import MLP, SmallCNN, StridedCNN
from syncnorm.models.unet import UNet
from syncnorm.norms import make_norm
from syncnorm.registry import Registry, check_named

Shape = tuple[int, ...]
Factory = Callable[..., nn.Module]
Made = TypeVar("Made", bound=Factory)


@dataclass(frozen=True)
class ModelSpec:
    """A model's row for `make_model`."""

    factory: Factory
    """Builds the model: called with those of shape, in_channels, pixels, classes and norm that its signature has, and
    with the model's options."""
    positions: int | None = None
    """Number of dimensions it convolves over: 2 for images (C, H, W), 1 for signals (C, L), 0 if it flattens samples
    of any shape. None: as many as the samples have besides C."""

    def takes(self, shape: Shape) -> bool:
        """Return whether it takes samples of `shape`."""
        return self.positions in (None, 0, len(shape) - 1)

    def norm_ndim(self, shape: Shape) -> int:
        """Return the number of spatial dimensions to pass to `make_norm` for samples of `shape`."""
        return max(len(shape) - 1 if self.positions is None else self.positions, 1)


MODELS: Registry[ModelSpec] = Registry(
    "model",
    {
        "small_cnn": ModelSpec(SmallCNN, positions=2),
        "strided_cnn": ModelSpec(StridedCNN, positions=2),
        "resnet18": ModelSpec(resnet18, positions=2),
        "resnet20": ModelSpec(partial(thin_resnet, depth=20), positions=2),
        "resnet32": ModelSpec(partial(thin_resnet, depth=32), positions=2),
        "resnet56": ModelSpec(partial(thin_resnet, depth=56), positions=2),
        "unet": ModelSpec(UNet, positions=2),
        "signal_cnn": ModelSpec(SignalCNN, positions=1),
        "mlp": ModelSpec(MLP, positions=0),
        "ic_mlp": ModelSpec(IndependentComponentMLP, positions=0),
        "binary_mlp": ModelSpec(BinaryMLP, positions=0),
    },
)
"""The row of each name; `syncnorm.register_model` adds rows."""
_SAMPLES = {2: "images (C, H, W)", 1: "signals (C, L)", 0: "samples of any shape"}


def model_names() -> list[str]:
    """Return the names that `make_model` knows."""
    return list(MODELS)


def register_model(name: str, *, positions: int | None = None) -> Callable[[Made], Made]:
    """Register your own model: a decorator for a function or class that builds a `torch.nn.Module`.

        @syncnorm.register_model("mynet")
        def mynet(shape, classes, norm, width=16): ...

    It is called with those of the following arguments that its signature has,

        shape        of a sample, (C, H, W) or (C, L)
        in_channels  C
        pixels       the number of values in a sample
        classes      the number of logits per sample
        norm         builds a norm layer from a number of channels, norm(16)

    and its other parameters are options of the model (`Run.model_options`). A model without the parameter `norm` has
    PyTorch's batch norms, or none; a run's norm replaces those in any case.

    Args:
        name: a new name.
        positions: number of dimensions it convolves over: 2 for images only, 1 for signals only, 0 if it flattens
            samples of any shape. None: as many as the samples have besides C.

    Raises:
        UserError: a name that is taken; an object that is not callable; another number of positions.
    """
    check_named(name, "register_model")
    if positions not in (None, *_SAMPLES):
        raise UserError(f"model '{name}': positions is {positions!r}: it must be 0, 1, 2 or None.")

    def register(factory: Made) -> Made:
        if not callable(factory) or isinstance(factory, nn.Module):
            raise UserError(
                f"model '{name}' is {with_article(type(factory).__name__)}: register a function or class that builds "
                "one."
            )
        MODELS.add(name, ModelSpec(factory, positions))
        return factory

    return register


def make_model(
    name: str,
    shape: Shape,
    classes: int,
    norm: str = "bn",
    norm_options: dict[str, Any] | None = None,
    **options: Any,
) -> nn.Module:
    """Build a model for samples of `shape` (C, H, W) or (C, L) and `classes` classes, with norm layers `norm`.

    `name` is one of `model_names()`, or "package.module:factory" for your own factory, which need not be registered.
    `register_model` describes the arguments of a factory; it gets `options` too.

    Raises:
        UserError: an unknown name or option; a factory that cannot be imported, fails, or does not return a
            `torch.nn.Module`; samples of the wrong kind for the model; or a norm that the model cannot use.
    """
    spec = model_spec(name)
    _check_shape(name, spec, shape)
    norm_factory = partial(make_norm, norm, ndim=spec.norm_ndim(shape), **(norm_options or {}))
    offered = {
        "in_channels": shape[0],
        "pixels": prod(shape),
        "classes": classes,
        "norm": norm_factory,
        "shape": shape,
    }
    signature = _signature(name, spec.factory)
    taken = signature.parameters
    arguments = {key: value for key, value in offered.items() if key in taken}
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    for option in options:
        if option not in taken and not takes_any:
            raise UserError(f"model '{name}': {unknown('option', option, set(taken) - set(offered))}")
    try:
        signature.bind(**arguments, **options)
    except TypeError as error:
        raise UserError(f"model '{name}': {error}; give it in model_options.") from error
    return _build(name, spec.factory, {**arguments, **options}, options)


def _build(name: str, factory: Factory, arguments: dict[str, Any], options: dict[str, Any]) -> nn.Module:
    """Call the factory; an error in a user's factory names it and the line of its file."""
    ours = name in MODELS and MODELS.source(name) is None
    try:
        model = factory(**arguments)
    except UserError:
        raise
    except Exception as error:
        if not ours:
            said = f"{type(error).__name__}: {error} ({where_raised(error)})"
            raise UserError(f"model '{name}' fails when it is built: {said}") from error
        if not isinstance(error, TypeError | ValueError | RuntimeError):
            raise
        given = ", ".join(f"{key}={value!r}" for key, value in options.items())
        raise UserError(f"model '{name}' cannot be built with {given}: {error}") from error
    if not isinstance(model, nn.Module):
        what = f"the class {model.__name__}" if isinstance(model, type) else with_article(type(model).__name__)
        raise UserError(f"model '{name}' returned {what}, not a torch.nn.Module.")
    return model


def _check_shape(name: str, spec: ModelSpec, shape: Shape) -> None:
    if spec.positions is None or spec.takes(shape):
        return
    fitting = [known for known, other in MODELS.items() if other.takes(shape)]
    raise UserError(
        f"model '{name}' takes {_SAMPLES[spec.positions]}, and these samples have shape {shape}: choose one of "
        f"{', '.join(fitting)}."
    )


def model_spec(name: str) -> ModelSpec:
    """Return the row of a name, or a row for the factory at an import path."""
    if not isinstance(name, str):
        raise UserError(f"the model is {name!r}: give its name, or package.module:factory.")
    if name in MODELS:
        return MODELS[name]
    module, colon, attribute = name.partition(":")
    form = "package.module:factory"
    if "/" in name or "\\" in name or module.endswith(".py"):
        example = f"{PurePath(module.replace(chr(92), '/')).stem}:{attribute or 'factory'}"
        raise UserError(
            f"model '{name}' is a path: write {form}, here {example}, and start where Python finds the module (or "
            "set PYTHONPATH)."
        )
    if not colon:
        raise UserError(f"{unknown('model', name, MODELS)} Your own is written {form}.")
    if not all(part.isidentifier() for part in (*module.split("."), *attribute.split("."))):
        raise UserError(f"model '{name}' is no import path: write {form}.")
    return ModelSpec(_import_factory(name, module, attribute))


def _import_factory(name: str, module: str, attribute: str) -> Factory:
    try:
        factory: Any = importlib.import_module(module)
        for part in attribute.split("."):
            factory = getattr(factory, part)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"model '{name}' cannot be imported ({error}): write package.module:factory, and start where Python "
            "finds the package (or set PYTHONPATH)."
        ) from error
    except Exception as error:  # importing the module may raise anything
        said = f"{type(error).__name__}: {error} ({where_raised(error)})"
        raise UserError(f"model '{name}' cannot be imported: {said}") from error
    if not callable(factory) or isinstance(factory, nn.Module):
        raise UserError(f"model '{name}' is {with_article(type(factory).__name__)}: name what builds a model.")
    return factory  # type: ignore[no-any-return]


def _signature(name: str, factory: Factory) -> inspect.Signature:
    try:
        return inspect.signature(factory)
    except (TypeError, ValueError) as error:  # some built-in functions have none
        raise UserError(f"model '{name}' does not say what it takes ({error}): wrap it in a function.") from error
