"""How far running statistics are from the data that a model gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from syncnorm.doctor.case import Case
from syncnorm.doctor.watch.inputs import tensors_of
from syncnorm.doctor.watch.passes import channel_moments
from syncnorm.doctor.watch.quiet import running

ENOUGH = 8
"""Fewest samples that can tell."""
FAR = 0.3
"""Standard deviations that are too far, as a mean over channels, beyond what chance gives (`too_far`).

Measured on 20 small trained networks (`benchmarks/misfit.py`, results/misfit.txt): on test samples of their own data
the furthest layer was at most 0.12 beyond chance, in 60 batches. Of changes that cost 5 points of accuracy or more,
0.3 reports 393 of 489, and 0.5 317; of those that cost less than a point, 30 and 26 of 315. At 0.1 statistics that
fit are reported. A trained network from elsewhere (CREPE, on tones) is at 0.07. The threshold was chosen on these
numbers, so on others it will do somewhat worse.
"""


@dataclass(frozen=True)
class Misfits:
    """Distances of layers by name, and by how much outputs differ between both modes, relative; None if unknown."""

    distances: dict[str, float]
    gap: float | None


def wasserstein(mean: Tensor, var: Tensor, other_mean: Tensor, other_var: Tensor) -> Tensor:
    """Return the distance of two normal distributions, channel by channel, in standard deviations of the first.

        W = sqrt((mean - mean')^2 + (std - std')^2) / std

    the 2-Wasserstein distance of N(mean, var) and N(mean', var') (Dowson & Landau 1982), all of shape (C,).
    """
    std, other = var.clamp(min=0).sqrt(), other_var.clamp(min=0).sqrt()
    return ((mean - other_mean).square() + (std - other).square()).sqrt() / std.clamp(min=1e-12)


def too_far(samples: int) -> float:
    """Return the distance, in standard deviations, from which statistics do not fit a batch of so many samples.

    The mean and the standard deviation of n values of a normal distribution have errors of 1 / sqrt(n) and about
    1 / sqrt(2 n), so their distance from the true ones is about sqrt(1.5 / n) by chance. Positions of an image are
    alike, so n is the number of samples.
    """
    return FAR + float((1.5 / samples) ** 0.5)


def misfits(case: Case, names: Sequence[str]) -> Misfits:
    """Measure the inputs of batch norms in evaluation, where each follows layers with running statistics too."""
    if not names:
        return Misfits({}, None)
    evaluated: list[Tensor] = []
    twin = case.copy().eval()
    twin.register_forward_hook(lambda _, args, output: evaluated.extend(tensors_of(output)))
    found = channel_moments(twin, case.given, names)
    distances = {}
    for name, moments in found.items():
        layer = case.batch_norms[name]
        eps = float(getattr(layer, "eps", 1e-5))
        pair = (layer.running_mean.double(), layer.running_var.double() + eps)
        # A channel that was nearly constant is far in its own tiny deviations, and must not drown the rest.
        far = wasserstein(*pair, moments.mean.double(), moments.var().double() + eps)
        distances[name] = float(far.clamp(max=10.0).mean())
    return Misfits(distances, _gap(case, evaluated))


def _gap(case: Case, evaluated: list[Tensor]) -> float | None:
    twin = case.copy().train()
    for module in twin.modules():
        if "dropout" in type(module).__name__.lower() or "droppath" in type(module).__name__.lower():
            module.training = False
    with running(twin, case.given):
        trained = tensors_of(case.given.call(twin))
    return relative(trained, evaluated)


def relative(outputs: list[Tensor], reference: list[Tensor]) -> float | None:
    """Return the root mean square of the differences, relative to that of the reference; None if not comparable."""
    total = size = 0.0
    for one, other in zip(outputs, reference, strict=False):
        if one.is_floating_point() and one.shape == other.shape:
            total += float((one.double() - other.double()).square().sum())
            size += float(other.double().square().sum())
    ratio = (total / size) ** 0.5 if size > 0 else None
    return ratio if ratio is not None and torch.tensor(ratio).isfinite() else None
