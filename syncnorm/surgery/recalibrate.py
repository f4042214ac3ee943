"""Measure what enters a model's batch norms on some data, and let running statistics be that.

model = syncnorm.recalibrate(model, batches)                    # PreciseBN; on a new domain's batches, AdaBN
moments = syncnorm.layer_moments(model, batches, "running")     # the same without touching the model, to be merged
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from syncnorm.errors import UserError, unknown
from syncnorm.moments import Moments
from syncnorm.surgery.convert import batch_norms

Normaliser = Literal["batch", "running"]
Estimator = Literal["population", "mean_of_batches"]


def layer_moments(
    model: nn.Module, batches: Iterable[Tensor], normaliser: Normaliser = "batch"
) -> dict[str, Moments]:
    """Return the exact moments of what enters each batch norm of `model` over all `batches`, by the layer's name.

    Estimator: `Moments.of` all inputs of a layer together, positions and samples alike, whatever the batches' sizes;
    a layer that the model uses several times gets those of all uses. Moments of several calls, for example one a
    client, `merge`.

    The model runs as in evaluation (no dropout), but its batch norms, of whatever type, normalise with

        "batch"     the mean and biased variance of the batch at hand, as in training. What deeper layers get depends
                    on how the samples are batched: use the batch size of training.
        "running"   the running statistics that they have. What deeper layers get is then what they got from the
                    model as it is, not from one with the new statistics in its earlier layers.

    A layer that keeps no running statistics has the batch's own in either case. The model stays as it is: parameters,
    buffers, modes, and torch's random numbers. The moments are this process's alone.

    Args:
        model: any model that takes a batch as its only argument.
        batches: inputs (N, ...) on the model's device; one without samples counts nothing. An iterator is used up.
        normaliser: as above.

    Returns:
        {} for a model without batch norm; layers that the forward does not reach are left out.

    Raises:
        UserError: no batches, a batch that is no tensor, an unknown normaliser, or, with "batch", a batch with one
            value per channel, whose variance does not exist.
    """
    found: dict[str, Moments] = {}

    def see(name: str, moments: Moments) -> None:
        found[name] = found[name].merge(moments) if name in found else moments

    _run(model, batches, normaliser, see)
    return found


def recalibrate(
    model: nn.Module,
    batches: Iterable[Tensor],
    normaliser: Normaliser = "batch",
    estimator: Estimator = "population",
) -> nn.Module:
    """Set the running statistics of every batch norm of `model` to those of `batches`, in place, and return it.

    Estimators:

        "population"        mean and unbiased variance M2 / (n - 1) of all n values that entered the layer: exact for
                            the inputs it is given, whatever their batches.
        "mean_of_batches"   the plain mean over batches of each batch's mean and of its unbiased variance, as
                            `torch.optim.swa_utils.update_bn` takes it. It leaves out the variance of the batches'
                            means: where values in a batch are alike (positions of one image, samples of one client,
                            sorted data), n / (n - 1) does not make up for it, and the variance is too small, the more
                            so the smaller the batches. A short last batch counts as much as a full one.

    For both, deeper layers' inputs depend on `normaliser` (see `layer_moments`), and dropout is off. Frozen layers
    get their new statistics like all others: this is how they are to change. Layers without running statistics, and
    those that the forward does not reach, stay as they are, and so do counters of batches.

    Raises:
        UserError: as `layer_moments`; an unknown estimator; one value per channel, in all or in a batch.

    Sources: PreciseBN (Wu & Johnson, arXiv 2105.07576); AdaBN (Li et al., arXiv 1603.04779).
    """
    if estimator == "population":
        statistics = {
            name: (moments.mean, _unbiased(name, moments))
            for name, moments in layer_moments(model, batches, normaliser).items()
        }
    elif estimator == "mean_of_batches":
        statistics = _mean_of_batches(model, batches, normaliser)
    else:
        raise unknown("estimator", estimator, ("population", "mean_of_batches"))
    layers = batch_norms(model)
    for name, values in statistics.items():
        layer = layers[name]
        for running, value in zip((layer.running_mean, layer.running_var), values, strict=True):
            if isinstance(running, Tensor):
                running.copy_(value)
        start: Callable[[], None] | None = getattr(layer, "_start_ranks", None)
        if start is not None:
            start()
    return model


def _mean_of_batches(
    model: nn.Module, batches: Iterable[Tensor], normaliser: Normaliser
) -> dict[str, tuple[Tensor, Tensor]]:
    sums: dict[str, Tensor] = {}
    uses: dict[str, int] = {}

    def see(name: str, moments: Moments) -> None:
        new = torch.stack([moments.mean, _unbiased(name, moments)]).double()
        sums[name] = sums[name] + new if name in sums else new
        uses[name] = uses.get(name, 0) + 1

    _run(model, batches, normaliser, see)
    return {name: (total[0] / uses[name], total[1] / uses[name]) for name, total in sums.items()}


def _unbiased(name: str, moments: Moments) -> Tensor:
    if moments.count == 1:
        raise _no_variance(name)
    return moments.var(correction=1)


def _no_variance(name: str) -> UserError:
    return UserError(
        f"layer '{name}' got one value per channel, which has no variance: give larger batches, or more of them with "
        'normaliser="running" and estimator="population".'
    )


@torch.no_grad()
def _run(
    model: nn.Module, batches: Iterable[Tensor], normaliser: Normaliser, see: Callable[[str, Moments], None]
) -> None:
    """Run `batches` through `model`, and call `see(name, moments of its input)` at each use of a batch norm."""
    if normaliser not in ("batch", "running"):
        raise unknown("normaliser", normaliser, ("batch", "running"))
    if not batch_norms(model):
        return
    samples = 0
    with _watched(model, normaliser, see):
        for x in batches:
            if not isinstance(x, Tensor):
                raise UserError(
                    f"a batch to measure batch norms with is a {type(x).__name__}: give the inputs alone, as "
                    "tensors, for example (x for x, _ in loader)."
                )
            if len(x):
                samples += len(x)
                model(x)
    if not samples:
        raise UserError("there is no sample to measure batch norms with: give at least one batch.")


@contextmanager
def _watched(model: nn.Module, normaliser: Normaliser, see: Callable[[str, Moments], None]) -> Iterator[None]:
    """Put `model` into evaluation mode with an eye on its batch norms; afterwards it is as it was."""

    def look(name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        moments = Moments.of(x, (0, *range(2, x.dim())))
        see(name, moments)
        if normaliser == "batch" and isinstance(layer.running_mean, Tensor):
            if x.numel() == x.shape[1]:
                raise _no_variance(name)
            # A layer in evaluation mode that has the batch's statistics as running ones normalises as in training,
            # whatever its type, and keeps nothing.
            dtype = layer.running_mean.dtype
            layer.running_mean, layer.running_var = moments.mean.to(dtype), moments.var().to(dtype)

    layers = batch_norms(model)
    modes = [(module, module.training) for module in model.modules()]
    statistics = [(layer, layer.running_mean, layer.running_var) for layer in layers.values()]
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    hooks: list[RemovableHandle] = []
    with torch.random.fork_rng(devices=sorted(devices)):
        try:
            model.eval()
            for name, layer in layers.items():
                hooks.append(layer.register_forward_pre_hook(partial(look, name)))
            yield
        finally:
            for handle in hooks:
                handle.remove()
            for module, training in modes:
                module.training = training
            for layer, mean, var in statistics:
                layer.running_mean, layer.running_var = mean, var
