"""Layers that a model's own `train()` keeps in evaluation mode, and that it may lose sight of."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping

from torch import nn


def kept_in_evaluation(model: nn.Module, layers: Iterable[nn.Module]) -> set[nn.Module]:
    """Return those of `layers` that `model.train()` leaves in evaluation mode; modes do not change.

    Only a model with a `train()` of its own is asked; if that fails, nothing is known.
    """
    if not _own_trains(model):
        return set()
    modes = [(module, module.training) for module in model.modules()]
    learnt = [(p, p.requires_grad) for p in model.parameters()]
    try:
        model.train()
        return {layer for layer in layers if not layer.training}
    except Exception:  # a user's method may do anything
        return set()
    finally:
        for module, training in modes:
            module.training = training
        for p, requires_grad in learnt:
            p.requires_grad = requires_grad


def warn_of_thawed(
    model: nn.Module, layers: Mapping[nn.Module, str], swaps: Mapping[nn.Module, nn.Module], frozen: set[nn.Module]
) -> None:
    """Warn of new layers that train although `model.train()` kept the old ones, `frozen`, in evaluation mode."""
    still = kept_in_evaluation(model, swaps.values()) if frozen else set()
    lost = [f"'{name}'" for layer, name in layers.items() if layer in frozen and swaps[layer] not in still]
    if lost:
        kinds = " and ".join(sorted({type(swaps[layer]).__name__ for layer in frozen}))
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        others = _own_trains(model)
        theirs = others or sorted({type(layer).__name__ for layer in frozen})
        why = (
            f"and does not find {kinds} by its class, so that trains now: let train() look for "
            "torch.nn.modules.batchnorm._BatchNorm."
            if others
            else f"and {kinds} has no such train(), so it trains now: call syncnorm.freeze(model, ...) after "
            "convert, or leave these layers out with where=."
        )
        warnings.warn(
            f"{theirs[0]}.train() kept {', '.join(lost[:3])}{more} in evaluation mode, {why}",
            stacklevel=4,
        )


def _own_trains(model: nn.Module) -> list[str]:
    """Return the names of the classes in `model` that have a `train()` of their own."""
    found = [
        type(module).__name__
        for module in model.modules()
        if "train" in vars(module) or type(module).train is not nn.Module.train
    ]
    return list(dict.fromkeys(found))
