"""A warning about groups of so few values that a norm of each sample by itself leaves little of the sample."""

import warnings
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from syncnorm.config import Run
from syncnorm.norms.batch.evo_norm import EvoNormS0
from syncnorm.progress import counted
from syncnorm.surgery.layers.replace import copied

FEW = 4
"""Groups of up to this many values are warned of."""


def warn_of_small_groups(run: Run, model: nn.Module, x: Tensor) -> None:
    """Warn if a layer of a run's model normalises groups of at most `FEW` values of one sample.

    A group has C / G channels times the positions of the layer. Of two values, normalisation keeps only which one is
    larger. `x` are samples (N, ...); the model does not change. Python shows the same warning once.
    """
    found = small_groups(model, x)
    if not found:
        return
    name, (channels, positions) = min(found.items(), key=lambda item: prod(item[1]))
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    values = f"{counted(channels, 'channel')} of {counted(positions, 'position')}"
    warnings.warn(
        f"layer '{name}'{more} of model '{run.model}' with norm '{run.norm.name}' normalises groups of "
        f"{counted(channels * positions, 'value')} ({values}), which keeps little of a sample (of two values, which "
        "is larger): take fewer groups, larger images or another norm.",
        stacklevel=2,
    )


@torch.no_grad()
def small_groups(model: nn.Module, x: Tensor) -> dict[str, tuple[int, int]]:
    """Return the layers of `model` with groups of at most `FEW` values, with channels a group and positions."""
    if not any(isinstance(layer, nn.GroupNorm | EvoNormS0) for layer in model.modules()):
        return {}
    try:
        model, found = copied(model).eval(), {}
    except (RuntimeError, TypeError):  # a warning is no reason to refuse a model
        return {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.GroupNorm | EvoNormS0):

            def note(layer: Any, inputs: tuple[Tensor, ...], name: str = name) -> None:
                groups = layer.groups_of(inputs[0]) if isinstance(layer, EvoNormS0) else layer.num_groups
                found[name] = (inputs[0].shape[1] // groups, prod(inputs[0].shape[2:]))

            layer.register_forward_pre_hook(note)
    model(x[:2])
    return {name: sizes for name, sizes in found.items() if prod(sizes) <= FEW}
