"""Set the running statistics of a model's batch norms to the exact statistics of given batches.

model = syncnorm.recalibrate(model, batches)                    # PreciseBN; on a new domain's batches, AdaBN
moments = syncnorm.layer_moments(model, batches, "running")     # the same, to merge, without changing the model
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from syncnorm.errors import UserError, unknown
from syncnorm.moments import Moments
from syncnorm.norms.batch.eval_norm import EvalNorm
from syncnorm.norms.core.ranks.collectives import rank_and_size
from syncnorm.norms.core.ranks.groups import Group, as_group
from syncnorm.surgery.adaptation.measure import (
    Measured,
    Normaliser,
    Run,
    Take,
    measure,
    measure_over_ranks,
    no_variance,
)
from syncnorm.surgery.conversion.convert import batch_norms
from syncnorm.surgery.layers.preconditions import call as called
from syncnorm.surgery.layers.preconditions import warn_of_foreign_norms

Estimator = Literal["population", "mean_of_batches"]
OF_SAMPLES = ":samples"
"""What follows a layer's name in `layer_statistics` where the moments are those of its samples."""


def layer_moments(
    model: nn.Module,
    batches: Iterable[Tensor],
    normaliser: Normaliser = "batch",
    *,
    call: Run | None = None,
    over_ranks: bool = False,
    process_group: Group = None,
) -> dict[str, Moments]:
    """Return the exact moments of each batch norm's inputs over all `batches`, by the layer's name.

    Estimator: `Moments.of` all inputs of a layer together, over samples and positions, for any batch sizes; a layer
    that the model uses several times gets the moments of all uses. `merge` the moments of several calls, for example
    of one call per client.

    The model runs in evaluation mode (no dropout), but its batch norms of every type normalise with

        "batch"     the mean and biased variance of the current batch, as in training. Inputs of deeper layers depend
                    on how the samples are batched: use the batch size of training.
        "running"   their current running statistics. Inputs of deeper layers then come from the model as it is, not
                    from one with new statistics in its earlier layers.

    A layer without running statistics uses the batch's own in either case. Parameters, buffers, modes and PyTorch's
    random state do not change. A compiled model runs eagerly, a DDP model without DDP.

    The moments cover this process alone unless `over_ranks` is set: then every rank calls this with its own batches,
    of any number and size (even none), and gets the moments of all ranks' batches, in float64 on the CPU and
    bit-identical on all ranks. Ranks exchange them once. With "batch", each rank normalises its batches separately,
    as in training with unsynchronised batch norm.

    Args:
        model: any model; without `call`, one that takes a batch as its only argument.
        batches: inputs (N, ...) on the model's device, or with `call` batches of any kind; those without samples are
            ignored. An iterator is consumed: `itertools.islice(loader, 100)` limits it, and `tqdm(...)` shows it.
        normaliser: as above.
        call: how the model runs a batch, e.g. `lambda model, batch: model(batch["image"].cuda(), batch["mask"])`.
        over_ranks: merge over the ranks of torch.distributed, if it is initialised.
        process_group: those ranks; None is all of them. (A DeviceMesh of one dimension means its ranks.)

    Returns:
        {} for a model without batch norm; layers that the forward does not reach are left out.

    Raises:
        UserError: no batches (on any rank), a batch that is not a tensor, an unknown normaliser, or, with "batch", a
            batch with one value per channel, which has no variance; a model that is scripted or quantised. Over
            ranks: an error on any rank (every rank raises a UserError that names the rank), and models whose batch
            norms differ. With a single process, the model's own errors pass unchanged.
    """
    run = nn.Module.__call__ if call is None else call
    work = partial(measure, model, batches, normaliser, _TAKES["population"], run, tensors=call is None)
    return _together(work, over_ranks, process_group).moments


def layer_statistics(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, Moments]:
    """Return what `recalibrate` measures, to be merged and turned into a state by `statistics_entries`.

    The moments of `layer_moments`, and for each layer that keeps more than mean and variance (EvalNorm) those of its
    samples (`EvalNorm.moments_of_samples`), under its name and OF_SAMPLES.
    """
    found = measure(model, batches, "batch", _TAKES["population"], nn.Module.__call__, tensors=True)
    return found.moments | {f"{name}{OF_SAMPLES}": samples for name, samples in found.samples.items()}


def statistics_entries(moments: Mapping[str, Moments]) -> dict[str, Tensor]:
    """Return moments by layer, as of `layer_statistics`, as entries of a state, variances unbiased."""
    found: dict[str, Tensor] = {}
    for name, seen in moments.items():
        layer = name.removesuffix(OF_SAMPLES)
        parts = {"running_mean": seen.mean, "running_var": seen.var(correction=1)}
        if layer != name:
            parts = EvalNorm.entries_of(seen)
        found |= {f"{layer}.{part}" if layer else part: value for part, value in parts.items()}
    return found


def recalibrate(
    model: nn.Module,
    batches: Iterable[Tensor],
    normaliser: Normaliser = "batch",
    estimator: Estimator = "population",
    *,
    call: Run | None = None,
    over_ranks: bool = True,
    process_group: Group = None,
) -> nn.Module:
    """Set the running statistics of every batch norm of `model` to those of `batches`, in place, and return it.

    Under torchrun, once torch.distributed is initialised, every rank calls this with its own batches and gets the
    statistics of all ranks' batches, bit-identical on all ranks (see `layer_moments`). Ranks may have different
    numbers of batches, even none. With `over_ranks=False` each rank uses its own batches only.

    Estimators:

        "population"        mean and unbiased variance M2 / (n - 1) of all n values that entered the layer: exact for
                            the given inputs, for any batching.
        "mean_of_batches"   the plain mean over batches of each batch's mean and of its unbiased variance, as
                            `torch.optim.swa_utils.update_bn` takes it. It leaves out the variance of the batches'
                            means: if values in a batch are correlated (positions of one image, samples of one client,
                            sorted data), n / (n - 1) does not compensate for it, and the variance is too small, more
                            so for smaller batches. A short last batch counts as much as a full one.

    `call(model, batch)` runs a batch that is more than one tensor (see `layer_moments`). Under `torch.autocast` the
    model runs in mixed precision, and the moments are taken of what the layers then get.

    `EvalNorm` keeps two variances more, within and between samples. They are estimated likewise: over all samples, or
    as the mean over the batches of two samples and more.

    For both, inputs of deeper layers depend on `normaliser` (see `layer_moments`), and dropout is off. Frozen layers
    get new statistics too: this is the way to change them. Layers without running statistics, layers that the forward
    does not reach, and batch counters do not change.

    Raises:
        UserError: as `layer_moments`; a batch on which the model fails; an unknown estimator; one value per channel,
            in total or in a batch; statistics that are not finite. The model is then unchanged.

    Sources: PreciseBN (Wu & Johnson, arXiv 2105.07576); AdaBN (Li et al., arXiv 1603.04779).
    """

    def run(model: nn.Module, batch: Any) -> Any:
        forward = model if call is None else partial(call, model)
        return called(forward, batch, what="a batch to measure batch norms with")

    def work() -> Measured:
        if estimator not in list(_TAKES):
            raise unknown("estimator", str(estimator), _TAKES)
        return measure(model, batches, normaliser, _TAKES[estimator], run, tensors=call is None)

    found = _together(work, over_ranks, process_group)
    warn_of_foreign_norms(model, "its statistics stay as they are")
    _set(batch_norms(model), found, estimator)
    return model


def _set(layers: dict[str, nn.Module], found: Measured, estimator: Estimator) -> None:
    """Set the running statistics of layers to the moments found; if one is not finite, none changes."""
    changes: list[tuple[Tensor, Tensor]] = []
    for name, moments in found.moments.items():
        mean, var = _unbiased(name, moments) if estimator == "population" else moments.mean.chunk(2)
        for running, value in ((layers[name].running_mean, mean), (layers[name].running_var, var)):
            if isinstance(running, Tensor):
                changes.append((running, _finite(name, value.to(running))))
        layer = layers[name]
        if isinstance(layer, EvalNorm):
            for running, value in _spreads(layer, found.samples.get(name), estimator):
                changes.append((running, _finite(name, value.to(running))))
    with torch.inference_mode():  # a model built in inference mode can change only there; others can too
        for running, value in changes:
            running.copy_(value)
    for name in found.moments:
        start: Callable[[], None] | None = getattr(layers[name], "_start_ranks", None)
        if start is not None:
            start()


def _together(work: Callable[[], Measured], over_ranks: bool, group: Group) -> Measured:
    """Return what `work` measures, here or over all ranks."""
    ranks = as_group(group, "the batch norms cannot be measured") if over_ranks else None
    several = over_ranks and rank_and_size(ranks)[1] > 1
    measured = measure_over_ranks(work, ranks) if several else work()
    if measured.channels and not measured.batches:
        raise UserError("there is no sample to measure batch norms with: give at least one batch.")
    return measured


def _all_values(name: str, moments: Moments) -> Moments:
    return moments


def _one_batch(name: str, moments: Moments) -> Moments:
    """Return a batch's mean and unbiased variance, concatenated to (2 C,), as one value of a sample of batches."""
    value = torch.cat(_unbiased(name, moments)).double()
    return Moments(torch.ones_like(moments.count), value, torch.zeros_like(value))


def _all_samples(samples: Moments) -> Moments:
    return samples


def _samples_of_one_batch(samples: Moments) -> Moments | None:
    """Return a batch's variances within and between samples, (2 C,), as one value; of one sample, nothing."""
    if samples.count < 2:
        return None
    value = torch.cat(EvalNorm.within_and_between(samples)).double()
    return Moments(torch.ones_like(samples.count), value, torch.zeros_like(value))


_TAKES: dict[str, Take] = {
    "population": Take(_all_values, _all_samples),
    "mean_of_batches": Take(_one_batch, _samples_of_one_batch),
}


def _spreads(layer: EvalNorm, samples: Moments | None, estimator: Estimator) -> list[tuple[Tensor, Tensor]]:
    """Return the buffers of an EvalNorm's own statistics and their values; nothing is known from one sample."""
    if samples is None:
        found = {name: torch.zeros_like(getattr(layer, name)) for name in layer.SPREADS}
    elif estimator == "population":
        found = layer.entries_of(samples)
    else:
        found = dict(zip(layer.SPREADS, (*samples.mean.chunk(2), torch.ones_like(layer.spreads_seen)), strict=True))
    found["spreads_seen"] = torch.where(found["spreads_seen"] > 0, layer.spreads_seen.clamp(min=1), 0)
    return [(getattr(layer, name), value) for name, value in found.items()]


def _unbiased(name: str, moments: Moments) -> tuple[Tensor, Tensor]:
    if moments.count == 1:
        raise no_variance(name)
    return moments.mean, moments.var(correction=1)


def _finite(name: str, value: Tensor) -> Tensor:
    if not value.isfinite().all():
        raise UserError(
            f"layer '{name}' got inputs whose mean or variance is not a finite {value.dtype} number, so no running "
            "statistics change: look for NaN or overflow in the batches or in the layers before it."
        )
    return value
