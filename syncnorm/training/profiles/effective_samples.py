"""How many independent values a batch's statistics are worth, layer by layer.

A norm layer that gets b images with P positions each computes its mean over m = b P values of a channel. If these
were independent, the mean would vary from batch to batch with the variance var / m. Neighbouring positions, and
images of one scene, are alike, so that it varies more: as if there were only m_eff values.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from syncnorm.moments import Moments
from syncnorm.norms.weight.weight_standardization import CONVOLUTIONS
from syncnorm.surgery.conversion.convert import converted_layers

LEAST = 2
"""Smallest number of batches that have a variance of their means."""


def effective_samples(batches: Sequence[Moments]) -> float:
    """Return m_eff, the number of independent values whose mean would vary as much as the batches' means do.

    From K batches of m values a channel each, with means mean_k and sums of squared deviations M2_k,

        V = sum_k (mean_k - mean)^2 / (K - 1),   var = M2 / (K m) + V / K,
        m_eff = 1 / (mean over channels of V / var),

    where mean and M2 are those of all values together. V is an unbiased estimate of the variance of a batch's mean,
    and var one of the variance of a value, if the batches are independent of each other, whatever the dependence
    within them. (M2 / (K m) alone is V / K too small, because it is taken around the sample's own mean.) V / var is
    the design effect of survey sampling divided by m (Kish 1965). Channels are averaged before the inverse is taken:
    an average of var / V would be dominated by channels whose V happens to be small. A constant channel does not
    count; without any other the result is nan.

    For independent values it is m up to the error of estimation, a factor of about 1 +- sqrt(2 / (K C)) for C
    channels; for m copies of one value it is 1. It is above m if the values of a batch balance each other, as they do
    where positions have fixed levels of their own (next to the padding, say), which every batch has alike.

    Raises:
        ValueError: fewer than two batches, or batches of different size.
    """
    count = len(batches)
    sizes = {float(part.count) for part in batches}
    if count < LEAST or len(sizes) > 1:
        raise ValueError(f"{count} batches of {sorted(sizes)} values: give two or more of one size.")
    size = sizes.pop()
    parts = [Moments(part.count, part.mean.double(), part.m2.double()) for part in batches]
    together = Moments.pool(parts)
    between = Moments.of(torch.stack([part.mean for part in parts]), 0).var(correction=1)
    variance = together.m2 / (count * size) + between / count
    varied = variance > 0
    if not varied.any():
        return math.nan
    ratio = (between[varied] / variance[varied]).mean().item()
    return 1 / ratio if ratio > 0 else math.inf


def norm_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the norm layers of `model` by name: batch norms, and what `convert` put in their place."""
    chosen = set(converted_layers(model))
    return {
        name: layer
        for name, layer in model.named_modules()
        if (layer in chosen or isinstance(layer, _BatchNorm)) and not isinstance(layer, CONVOLUTIONS)
    }


@torch.no_grad()
def batch_moments(model: nn.Module, batches: Iterable[Tensor], parts: int = 1) -> dict[str, list[Moments]]:
    """Return the moments of each norm layer's input over each batch (N, ...), by layer.

    A batch is that of `parts` devices, of which device r has samples r, r + parts, ...; their moments are separate.

    The model is in evaluation mode, so that a sample's values do not depend on its batch. (In training a norm has
    centred the batch for the layers after it, whose means then vary less than those of independent values: that says
    nothing of the data.) Its mode is restored. A layer that is called more than once has the moments of all its
    inputs.
    """
    found: dict[str, list[Moments]] = {}

    def see(name: str, x: Tensor) -> None:
        for part in range(parts):
            mine = x[part::parts]
            found.setdefault(name, []).append(Moments.of(mine, (0, *range(2, mine.dim()))))

    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: see(name, inputs[0]))
        for name, layer in norm_layers(model).items()
    ]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        for x in batches:
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    return found


def effective_profiles(moments: Mapping[str, Sequence[Moments]]) -> dict[str, dict[str, list[Any]]]:
    """Return what rows store of `batch_moments`: "effective_samples" and, beside it, "values_per_channel" (m).

    Each is {"layers": names, "values": numbers}. A number that is not finite becomes None. Layers whose batches
    differ in size, as after a model of one's own has chosen positions, are left out.
    """
    kept = {
        name: parts
        for name, parts in moments.items()
        if len(parts) >= LEAST and len({float(part.count) for part in parts}) == 1
    }
    values = [effective_samples(parts) for parts in kept.values()]
    nominal = [float(parts[0].count) for parts in kept.values()]
    return {
        "effective_samples": {
            "layers": list(kept),
            "values": [value if math.isfinite(value) else None for value in values],
        },
        "values_per_channel": {"layers": list(kept), "values": nominal},
    }
