"""Running statistics and their settings, as a model or a checkpoint holds them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from syncnorm.doctor.case import Case
from syncnorm.doctor.finding import Finding
from syncnorm.doctor.measures.misfit import ENOUGH, misfits, too_far
from syncnorm.doctor.words import percent
from syncnorm.errors import UserError
from syncnorm.surgery import batch_norms

RECALIBRATE = "run syncnorm.recalibrate(model, batches) on training data, or load a checkpoint from before"
LOUD = 20.0
"""A channel with |gamma| / sqrt(var + eps) above this, at variance 0, makes large outputs of the least deviation."""


def not_finite(case: Case) -> Iterator[Finding]:
    """Running statistics that are not finite."""
    for name, mean, var in _statistics(case):
        count = int((~mean.isfinite() | ~var.isfinite()).sum())
        if count:
            yield Finding(
                name,
                f"its running statistics are not finite in {count} of {len(mean)} channels",
                RECALIBRATE,
                "error",
            )


def negative_variance(case: Case) -> Iterator[Finding]:
    """A running variance below 0."""
    for name, _, var in _statistics(case):
        if (var < 0).any():
            yield Finding(
                name,
                f"its running variance is negative in {int((var < 0).sum())} of {len(var)} channels, which gives NaN",
                f"let no optimiser or server step the running variance, and {RECALIBRATE}",
                "error",
            )


def zero_variance(case: Case) -> Iterator[Finding]:
    """A running variance of exactly 0 in a channel that is not dead."""
    for name, _, var in _statistics(case):
        layer = case.batch_norms[name]
        scale = _scale(layer, var)
        loud = (var == 0) & (scale > LOUD)
        if loud.any():
            yield Finding(
                name,
                f"its running variance is 0 in {int(loud.sum())} of {len(var)} channels, so evaluation multiplies "
                f"any deviation from the mean by up to {float(scale[loud].max()):.0f}",
                "find out why these inputs were constant in training (dead units before it, say), and recalibrate",
                "warning",
            )


def never_updated(case: Case) -> Iterator[Finding]:
    """Running statistics still at mean 0 and variance 1 in a model that has been trained."""
    layers = {name: case.batch_norms[name] for name, _, _ in _statistics(case)}
    updated = [name for name, layer in layers.items() if not _is_fresh(layer) and _batches(layer) != 0]
    for name, layer in layers.items():
        if not _is_fresh(layer):
            continue
        if batches := _batches(layer):
            why = f"it has counted {batches} batches, and its statistics are still mean 0 and variance 1"
            yield Finding(name, why, RECALIBRATE, "error")
        elif _is_trained(layer) and (updated or not case.live or not case.model.training):
            why = "its weight and bias are not at their start, and its statistics are still mean 0 and variance 1"
            # Some networks draw weight and bias at the start: where no layer was updated, this may be one of them.
            yield Finding(name, why, RECALIBRATE, "warning" if updated or not case.live else "note", "likely")
        elif updated:
            why = f"its statistics were never updated, and those of {len(updated)} other layers were: it is new, or "
            yield Finding(
                name,
                why + "training does not reach it",
                "train before you evaluate; if it is not new, look whether the forward reaches it",
                "note" if case.model.training else "warning",
                "likely",
            )


def contradicting_flag(case: Case) -> Iterator[Finding]:
    """`track_running_stats` that contradicts the buffers."""
    for name in batch_norms(case.model) if case.live else ():
        layer: Any = case.batch_norms.get(name)
        if layer is None:
            continue
        mean, var = layer.running_mean, layer.running_var
        if (mean is None) != (var is None):
            what = f"it has {'no running mean' if mean is None else 'no running variance'}, and the other of both"
            yield Finding(name, what, "set both to None, or build the layer anew", "error")
        elif layer.track_running_stats and mean is None:
            yield Finding(
                name,
                "track_running_stats is True, and it has no running statistics: evaluation uses the batch's",
                "build it with track_running_stats=True, which makes the buffers, and recalibrate",
            )
        elif not layer.track_running_stats and mean is not None:
            yield Finding(
                name,
                "track_running_stats is False, and it has running statistics: training normalises by the batch and "
                "leaves them as they are, and evaluation uses them",
                f'to freeze it write syncnorm.freeze(model, "{name}"); to go without them set both buffers to None',
            )


def odd_momentum(case: Case) -> Iterator[Finding]:
    """A momentum of another convention, of 0, or None."""
    for name, layer in case.batch_norms.items() if case.live else ():
        momentum = getattr(layer, "momentum", 0.1)
        if getattr(layer, "running_mean", None) is None:
            continue
        if momentum is None:
            yield Finding(
                name,
                "momentum is None: its statistics are the mean over all batches since the start, with the early "
                "ones of an untrained network",
                "write momentum=0.1, or recalibrate before evaluation",
                "note",
            )
        elif momentum == 0:
            yield Finding(
                name, "momentum is 0, so its running statistics never move", "write momentum=0.1, PyTorch's default"
            )
        elif momentum >= 0.9:
            yield Finding(
                name,
                f"momentum is {momentum:g}, so its statistics are nearly those of the last batch: PyTorch's momentum "
                "is the weight of the new batch, that of TensorFlow, Keras and JAX of the old statistics",
                f"write momentum={round(1 - momentum, 6):g}",
                "warning",
                "likely",
            )


def odd_eps(case: Case) -> Iterator[Finding]:
    """An eps that is no rounding of the variance any more, or 0."""
    for name, layer in case.batch_norms.items() if case.live else ():
        eps = getattr(layer, "eps", None)
        if not isinstance(eps, float | int):
            continue
        if eps >= 0.01:
            swapped = getattr(layer, "momentum", None)
            told = ", which looks as if eps and momentum were swapped" if swapped and swapped < 1e-3 else ""
            yield Finding(
                name,
                f"eps is {eps:g}{told}: it is added to the variance, so channels of small variance stay small",
                "write eps=1e-5 (1e-3 for weights from TensorFlow or Keras); the second argument of nn.BatchNorm2d "
                "is eps, and not momentum",
                "warning",
                "likely",
            )
        elif eps == 0:
            yield Finding(name, "eps is 0: a constant channel gives NaN", "write eps=1e-5", "warning")


def averaged_counter(case: Case) -> Iterator[Finding]:
    """A counter of batches that is no whole number any more, or lost its shape."""
    for name, layer in case.batch_norms.items():
        counter = getattr(layer, "num_batches_tracked", None)
        if not isinstance(counter, Tensor):
            continue
        if counter.is_floating_point() or counter.numel() != 1:
            shape = f"{str(counter.dtype).removeprefix('torch.')} of shape {tuple(counter.shape)}"
            yield Finding(
                name,
                f"num_batches_tracked is a {shape}, as after averaging over clients or ranks",
                "keep it a whole number without dimensions: take the maximum, and average the other buffers alone",
                "warning",
            )


def misfitting_statistics(case: Case) -> Iterator[Finding]:
    """Running statistics that do not fit the data: of other weights, other data, or a training that has moved on."""
    if not case.given.real:
        raise UserError("give a batch of your own data: drawn input says nothing of whether statistics fit")
    if case.given.count < ENOUGH:
        raise UserError(f"give at least {ENOUGH} samples")
    chosen = [name for name, mean, _ in _statistics(case) if mean.isfinite().all()]
    found = misfits(case, [name for name in chosen if not _is_fresh(case.batch_norms[name])])
    for name, distance in found.distances.items():
        if distance > too_far(case.given.count):
            gap = "" if found.gap is None else f"; outputs differ by {percent(found.gap)} between both modes"
            yield Finding(
                name,
                "its running statistics do not fit the data",
                "run syncnorm.recalibrate(model, batches) if the weights were averaged (SWA, EMA), ported or trained "
                "on; otherwise look whether data are normalised as in training",
                "warning",
                "measured",
                f"they are {distance:.1f} standard deviations from the input's (Wasserstein distance, mean over "
                f"channels, {case.given.count} samples of yours){gap}",
            )


def _statistics(case: Case) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield the layers with running statistics on a device that holds values, by name."""
    for name, layer in case.batch_norms.items():
        mean, var = getattr(layer, "running_mean", None), getattr(layer, "running_var", None)
        if isinstance(mean, Tensor) and isinstance(var, Tensor) and not mean.is_meta and mean.dim() == 1:
            yield name, mean.detach().double(), var.detach().double()


def _batches(layer: Any) -> int | None:
    """Return how many batches a layer has counted; None if it does not count."""
    counter = getattr(layer, "num_batches_tracked", None)
    return int(counter.sum()) if isinstance(counter, Tensor) and not counter.is_meta else None


def _is_fresh(layer: Any) -> bool:
    return bool((layer.running_mean == 0).all() and (layer.running_var == 1).all())


def _is_trained(layer: Any) -> bool:
    """Return whether an optimiser must have moved the layer: constructors leave a constant, or a bias of 0."""
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    if not isinstance(weight, Tensor) or not isinstance(bias, Tensor) or weight.numel() < 2:
        return False
    return bool((weight != weight[0]).any() and (bias != bias[0]).any())


def _scale(layer: Any, var: Tensor) -> Tensor:
    weight = getattr(layer, "weight", None)
    gamma = (
        weight.detach().double() if isinstance(weight, Tensor) and weight.shape == var.shape else torch.ones_like(var)
    )
    scale: Tensor = gamma.abs() / (var.clamp(min=0) + getattr(layer, "eps", 1e-5)).sqrt()
    return scale
