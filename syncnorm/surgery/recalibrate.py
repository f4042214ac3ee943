"""Set the running statistics of a model's batch norms to the exact statistics of given batches.

model = syncnorm.recalibrate(model, batches)                    # PreciseBN; on a new domain's batches, AdaBN
moments = syncnorm.layer_moments(model, batches, "running")     # the same without touching the model, to be merged
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from syncnorm.errors import UserError, unknown
from syncnorm.moments import Moments
from syncnorm.norms.core.collectives import rank_and_size
from syncnorm.surgery.convert import batch_norms
from syncnorm.surgery.measure import Measured, Normaliser, Take, measure, measure_over_ranks, no_variance
from syncnorm.surgery.preconditions import call, warn_of_foreign_norms

Estimator = Literal["population", "mean_of_batches"]


def layer_moments(
    model: nn.Module,
    batches: Iterable[Tensor],
    normaliser: Normaliser = "batch",
    *,
    over_ranks: bool = False,
    process_group: ProcessGroup | None = None,
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
    buffers, modes, and torch's random numbers. A compiled model runs as it was written, one in DDP without DDP.

    The moments are this process's alone, unless `over_ranks`: then every rank calls this with batches of its own, as
    many and as large as it has, none included, and gets the moments of all ranks' batches, in float64 on the CPU and
    bit for bit the same on each. Ranks exchange them once. With "batch" each rank's batches normalise by themselves,
    as in training with batch norm that is not synchronised.

    Args:
        model: any model that takes a batch as its only argument.
        batches: inputs (N, ...) on the model's device; one without samples counts nothing. An iterator is used up.
        normaliser: as above.
        over_ranks: merge over the ranks of torch.distributed, where it is initialised.
        process_group: those ranks; None is all of them.

    Returns:
        {} for a model without batch norm; layers that the forward does not reach are left out.

    Raises:
        UserError: no batches (on no rank), a batch that is no tensor, an unknown normaliser, or, with "batch", a
            batch with one value per channel, whose variance does not exist. A model that is scripted or quantised.
            Over ranks, whatever any of them raises (a UserError on every rank that names it), and models with other
            batch norms. What the model itself raises passes unchanged where this process is alone.
    """
    return _together(partial(measure, model, batches, normaliser, _all_values), over_ranks, process_group)


def recalibrate(
    model: nn.Module,
    batches: Iterable[Tensor],
    normaliser: Normaliser = "batch",
    estimator: Estimator = "population",
    *,
    over_ranks: bool = True,
    process_group: ProcessGroup | None = None,
) -> nn.Module:
    """Set the running statistics of every batch norm of `model` to those of `batches`, in place, and return it.

    Under torchrun, once torch.distributed is initialised, every rank calls this with batches of its own, and gets
    the statistics of all ranks' batches, bit for bit the same on each (see `layer_moments`): one rank's share may be
    larger than another's, or none. `over_ranks=False` keeps a rank to itself.

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
        UserError: as `layer_moments`; a batch that the model fails on; an unknown estimator; one value per channel,
            in all or in a batch; statistics that are not finite. The model is untouched.

    Sources: PreciseBN (Wu & Johnson, arXiv 2105.07576); AdaBN (Li et al., arXiv 1603.04779).
    """

    def work() -> Measured:
        if estimator not in list(_TAKES):
            raise unknown("estimator", str(estimator), _TAKES)
        run = partial(call, what="a batch to measure batch norms with")
        return measure(model, batches, normaliser, _TAKES[estimator], run)

    found = _together(work, over_ranks, process_group)
    warn_of_foreign_norms(model, "its statistics stay as they are")
    layers = batch_norms(model)
    changes: list[tuple[Tensor, Tensor]] = []
    for name, moments in found.items():
        mean, var = _unbiased(name, moments) if estimator == "population" else moments.mean.chunk(2)
        for running, value in ((layers[name].running_mean, mean), (layers[name].running_var, var)):
            if isinstance(running, Tensor):
                changes.append((running, _finite(name, value.to(running))))
    with torch.inference_mode():  # in which alone a model that was built in it can change, and any other can too
        for running, value in changes:
            running.copy_(value)
    for name in found:
        start: Callable[[], None] | None = getattr(layers[name], "_start_ranks", None)
        if start is not None:
            start()
    return model


def _together(work: Callable[[], Measured], over_ranks: bool, group: ProcessGroup | None) -> dict[str, Moments]:
    """Return what `work` measures, here or over all ranks."""
    several = over_ranks and rank_and_size(group)[1] > 1
    measured = measure_over_ranks(work, group) if several else work()
    if measured.channels and not measured.samples:
        raise UserError("there is no sample to measure batch norms with: give at least one batch.")
    return measured.moments


def _all_values(name: str, moments: Moments) -> Moments:
    return moments


def _one_batch(name: str, moments: Moments) -> Moments:
    """Return a batch's mean and unbiased variance, (2 C,) side by side, as one value of a sample of batches."""
    value = torch.cat(_unbiased(name, moments)).double()
    return Moments(torch.ones_like(moments.count), value, torch.zeros_like(value))


_TAKES: dict[str, Take] = {"population": _all_values, "mean_of_batches": _one_batch}


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
