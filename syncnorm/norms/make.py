"""Build norm layers by name, and register new names."""

from collections.abc import Callable, Mapping
from functools import cache
from inspect import Parameter, isclass, signature
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

from torch import nn

from syncnorm.checks import check_value
from syncnorm.errors import UserError, unknown, where_raised, with_article
from syncnorm.norms.registry import NORMS, norm_spec
from syncnorm.norms.spec import NO_FOLD, Evaluates, Fold, Layer, NormSpec, OnWeight, OverRanks, WorldFact
from syncnorm.registry import check_named

Made = TypeVar("Made", bound=Layer)


def norm_options(name: str) -> list[str]:
    """Return the names of a norm's options, e.g. ["groups", "eps", ...] for "gn"."""
    return list(_options(norm_spec(name).layer))


def takes_any_option(name: str) -> bool:
    """Return whether a norm's layer takes options that its signature does not name (`**options`)."""
    parameters = signature(norm_spec(name).layer).parameters.values()
    return any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters)


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise `UserError` for an option that the norm does not have."""
    known = norm_options(name)
    if takes_any_option(name):
        return
    for option in options:
        if option not in known:
            if option in ("sync", "process_group") and (why := norm_spec(name).not_shared()):
                raise UserError(f"norm '{name}' {why}: leave {option} out.")
            if not known:
                raise UserError(f"norm '{name}': unknown option '{option}': it has none.")
            raise UserError(f"norm '{name}': {unknown('option', option, known)}")


def options_in_world(name: str, options: Mapping[str, Any], facts: Mapping[WorldFact, int]) -> dict[str, Any]:
    """Return a norm's options, with those that its world knows filled in unless given.

    Args:
        name: the norm.
        options: the given options.
        facts: the world's own numbers.
    """
    filled = {option: facts[fact] for option, fact in norm_spec(name).from_world.items() if fact in facts}
    return {**filled, **options}


def make_norm(name: str, num_features: int, ndim: int = 2, **options: Any) -> nn.Module:
    """Build the norm layer `name` for C = `num_features` channels.

    `ndim` counts the spatial dimensions: 2 for (N, C, H, W), 1 for (N, C, L) and (N, C), 3 for (N, C, D, H, W).
    "scaled_ws", "ws", "weight_norm" and "spectral_norm" build only the layer beside a convolution with such weights:
    one that copies or (for "ws") a group norm. `syncnorm.convert` changes a model's convolutions as well.

    Group norms of few values learn little: a group has C / groups channels times the positions of its layer, which
    this function does not know. Give `groups` where layers are narrow or have one position (`default_groups`).

    Raises:
        UserError: an unknown name or option; a missing option, or one of the wrong type; a number that the layer
            cannot take; whatever a registered layer raises. ("bn" is PyTorch's own layer: its forward raises
            PyTorch's errors.)
    """
    spec = norm_spec(name)
    if ndim not in (1, 2, 3):
        raise UserError(f"ndim is {ndim}: a norm layer serves 1, 2 or 3 spatial dimensions.")
    num_features, options = _plain(num_features), {option: _plain(value) for option, value in options.items()}
    check_value(num_features, int, f"norm '{name}': num_features")
    if num_features < 1:
        raise UserError(f"norm '{name}' for {num_features} channels: it needs at least 1.")
    check_options(name, options)
    _check_values(name, options)
    layer = spec.by_ndim.get(ndim, spec.layer)
    try:
        signature(layer).bind(num_features, **options)
        made = layer(num_features, **options)
    except Exception as error:
        theirs = NORMS.source(name) is not None
        if not theirs and not isinstance(error, TypeError | ValueError | RuntimeError):
            raise
        given = ", ".join(f"{key}={value!r}" for key, value in options.items()) or "no options"
        said = f"{type(error).__name__}: {error} ({where_raised(error)})" if theirs else str(error)
        raise UserError(f"norm '{name}' for {num_features} channels with {given}: {said}") from error
    if not isinstance(made, nn.Module):
        raise UserError(f"norm '{name}' returned {with_article(type(made).__name__)}, not a torch.nn.Module.")
    return made


def register_norm(
    name: str,
    *,
    sees_batch: bool = True,
    over_ranks: OverRanks = False,
    by_channel: bool = False,
    weight: OnWeight | None = None,
    evaluates: Evaluates = "running",
    fold: Fold | str | None = NO_FOLD,
    from_world: Mapping[str, WorldFact] | None = None,
) -> Callable[[Made], Made]:
    """Register your own norm: a decorator for a class or function `(num_features, **options) -> nn.Module`.

        @syncnorm.register_norm("mine")
        class Mine(torch.nn.Module):
            def __init__(self, num_features, gain=1.0): ...

    The name then works like syncnorm's own: in `make_norm`, `convert`, studies and the command line. The signature
    gives its options. `convert` passes on eps, momentum, affine, track_running_stats, device and dtype of the
    replaced batch norm, as far as the signature has them. It copies weight, bias, running_mean, running_var and
    num_batches_tracked if the layer has them in the same shape.

    The facts about the norm have safe defaults; a wrong fact gives wrong results. `syncnorm.norms.NormSpec` describes
    each.

    Args:
        name: a new name.
        sees_batch: whether, in training, a sample's output depends on the rest of its batch.
        over_ranks: whether the layer itself normalises over the batch of all ranks; "sync" if its options `sync` (a
            bool, or None: if there is a group) and `process_group` say so, and between which ranks.
        by_channel: whether R virtual ranks may run as one layer of R * C channels.
        weight: for a norm of convolution weights, the function that normalises one.
        evaluates: which statistics normalise in evaluation.
        fold: how it folds, or why not.
        from_world: options that a run's world fills in.

    Raises:
        UserError: a name that is taken; an object that is not such a class or function; a fact of the wrong type.
    """
    check_named(name, "register_norm")
    spec = NormSpec(
        nn.Identity,
        sees_batch=sees_batch,
        over_ranks=over_ranks,
        by_channel=by_channel,
        weight=weight,
        evaluates=evaluates,
        fold=fold,
        from_world=dict(from_world or {}),
    )
    _check_facts(name, spec)

    def register(layer: Made) -> Made:
        _check_layer(name, layer, spec)
        NORMS.add(name, NormSpec(**{**vars(spec), "layer": layer}))
        return layer

    return register


def _check_facts(name: str, spec: NormSpec) -> None:
    for fact in ("sees_batch", "by_channel"):
        check_value(getattr(spec, fact), bool, f"norm '{name}': {fact}")
    if not isinstance(spec.over_ranks, bool) and spec.over_ranks != "sync":
        raise UserError(f"norm '{name}': over_ranks is {spec.over_ranks!r}: it must be True, False or 'sync'.")
    check_value(spec.evaluates, Evaluates, f"norm '{name}': evaluates")
    for fact in spec.from_world.values():
        check_value(fact, WorldFact, f"norm '{name}': from_world")
    for told, value in (("weight", spec.weight), ("fold", spec.fold)):
        if not (value is None or callable(value) or (told == "fold" and isinstance(value, str))):
            raise UserError(f"norm '{name}': {told} is {value!r}: it must be a function, or None.")


def _check_layer(name: str, layer: Any, spec: NormSpec) -> None:
    """Raise `UserError` if `layer` cannot build a norm layer from a number of channels."""
    if not callable(layer) or isinstance(layer, nn.Module):
        raise UserError(
            f"norm '{name}' is {with_article(type(layer).__name__)}: register what builds a torch.nn.Module, a class "
            "or a function."
        )
    called = getattr(layer, "__name__", repr(layer))
    if isclass(layer) and not issubclass(layer, nn.Module):
        raise UserError(f"norm '{name}': the class {called} is no torch.nn.Module: let it inherit from that.")
    first = next(iter(signature(layer).parameters.values()), None)
    if first is None or first.name != "num_features" or first.kind is Parameter.KEYWORD_ONLY:
        raise UserError(
            f"norm '{name}': {called}{signature(layer)} does not take num_features: make that, the number of "
            "channels, its first parameter."
        )
    for option in ("sync", "process_group") if spec.over_ranks == "sync" else ():
        if option not in _options(layer):
            raise UserError(f"norm '{name}': over_ranks='sync' needs the option '{option}', which {called} lacks.")
    for option in spec.from_world:
        if option not in _options(layer):
            raise UserError(f"norm '{name}': from_world names the option '{option}', which {called} does not have.")


def _options(layer: Layer) -> dict[str, Parameter]:
    named = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    found = signature(layer).parameters.items()
    return {key: parameter for key, parameter in found if key != "num_features" and parameter.kind in named}


def _check_values(name: str, options: dict[str, Any]) -> None:
    """Raise `UserError` for numbers of the wrong type, and for values that PyTorch's layers do not check."""
    hints = _hints(norm_spec(name).layer)
    for option, value in options.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if option == "eps" and not (number and 0 <= value < float("inf")):
            raise UserError(f"norm '{name}': eps is {value!r}: it must be a number, at least 0.")
        if option == "momentum" and value is not None and not (number and 0 <= value <= 1):
            raise UserError(f"norm '{name}': momentum is {value!r}: it must be a number from 0 to 1, or None.")
        hint = hints.get(option, Any)
        if {bool, int, float, NoneType}.issuperset(get_args(hint) or (hint,)):  # the layers check the rest
            check_value(value, hint, f"norm '{name}': {option}")


@cache
def _hints(layer: Layer) -> dict[str, Any]:
    try:
        return get_type_hints(layer.__init__ if isclass(layer) else layer)
    except Exception:  # a user's annotations may not resolve
        return {}


def _plain(value: Any) -> Any:
    """Return the number in a NumPy scalar or one-element tensor; anything else unchanged."""
    return value.item() if getattr(value, "ndim", None) == 0 else value
