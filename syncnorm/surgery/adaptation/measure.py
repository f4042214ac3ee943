"""Measure the inputs of a model's batch norms over batches, in this process or over all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from syncnorm._torch import sharding_group
from syncnorm.errors import UserError, unknown
from syncnorm.moments import Moments
from syncnorm.norms.core.batch_norm import BatchNormLayer
from syncnorm.norms.core.ranks.alone import alone
from syncnorm.norms.core.ranks.collectives import gather_objects
from syncnorm.norms.core.valid import valid_of
from syncnorm.norms.registry import spec_of
from syncnorm.surgery.adaptation.lockstep import ApartError, run_with_others, together
from syncnorm.surgery.conversion.convert import batch_norms
from syncnorm.surgery.layers.preconditions import check_model, in_a_line, uncompiled

Normaliser = Literal["batch", "running"]
Run = Callable[[nn.Module, Any], Any]
See = Callable[[str, Moments, Moments | None], None]


@dataclass(frozen=True)
class Take:
    """What an estimator takes of each input of a layer, to be merged.

    values: of the layer's name and the moments of all values.
    samples: of the `moments_of_samples` of a layer that keeps more than mean and variance; None takes nothing.
    """

    values: Callable[[str, Moments], Moments]
    samples: Callable[[Moments], Moments | None]


@dataclass(frozen=True)
class Measured:
    """What a process has measured, or why it could not.

    moments: moments of the layers that the forward has reached, by name.
    samples: what `Take.samples` found, by name.
    channels: number of channels of every batch norm of the model, by name.
    problem: one sentence; empty if all went well.
    """

    batches: int = 0
    moments: dict[str, Moments] = field(default_factory=dict)
    channels: dict[str, int] = field(default_factory=dict)
    problem: str = ""
    samples: dict[str, Moments] = field(default_factory=dict)

    def for_others(self) -> Measured:
        """Return the same with all moments in float64 on the CPU, so that all ranks merge them identically."""
        moments, samples = (
            {name: Moments(p.count.cpu(), p.mean.double().cpu(), p.m2.double().cpu()) for name, p in parts.items()}
            for parts in (self.moments, self.samples)
        )
        return Measured(self.batches, moments, self.channels, samples=samples)


def measure(
    model: nn.Module, batches: Iterable[Any], normaliser: Normaliser, take: Take, run: Run, *, tensors: bool
) -> Measured:
    """Run `batches` through `model`, and merge what `take` takes of all inputs of each batch norm.

    `run(model, batch)` runs each batch. With `tensors`, batches must be tensors, and those without samples are left
    out.
    """
    found: dict[str, Moments] = {}
    samples: dict[str, Moments] = {}

    def see(name: str, moments: Moments, of_samples: Moments | None) -> None:
        for parts, taken in (
            (found, take.values(name, moments)),
            (samples, None if of_samples is None else take.samples(of_samples)),
        ):
            if taken is not None:
                parts[name] = parts[name].merge(taken) if name in parts else taken

    count = _run(model, batches, normaliser, see, run, tensors)
    channels: dict[str, Any] = {name: layer.num_features for name, layer in batch_norms(model).items()}
    return Measured(count, found, channels, samples=samples)


def measure_over_ranks(work: Callable[[], Measured], group: ProcessGroup | None) -> Measured:
    """Do `work` on every rank, and return on each rank the measurements of all, merged in rank order.

    Raises `UserError` on every rank if any rank raises, or has other batch norms than rank 0.
    """
    cause: Exception | None = None
    try:
        mine = work().for_others()
    except ApartError:
        raise
    except Exception as error:  # the other ranks must learn of any error
        cause, mine = error, Measured(problem=in_a_line(error))
    ranks: list[Measured] = gather_objects(mine, group)
    if problems := [f"rank {rank}: {told.problem}" for rank, told in enumerate(ranks) if told.problem]:
        raise UserError(f"the batch norms cannot be measured on all ranks ({'; '.join(problems)}).") from cause
    first = ranks[0].channels
    for rank, told in enumerate(ranks):
        if told.channels != first:
            name, _ = min(first.items() ^ told.channels.items())
            raise UserError(
                f"the batch norms cannot be measured together: those of rank {rank} are not those of rank 0 "
                f"(at '{name}'), so give every rank the same model."
            )
    moments, samples = (_pooled(first, [getattr(told, kind) for told in ranks]) for kind in ("moments", "samples"))
    return Measured(sum(told.batches for told in ranks), moments, first, samples=samples)


def _pooled(names: Iterable[str], ranks: list[dict[str, Moments]]) -> dict[str, Moments]:
    parts = {name: [told[name] for told in ranks if name in told] for name in names}
    return {name: Moments.pool(found) for name, found in parts.items() if found}


def no_variance(name: str) -> UserError:
    """Build the error for a layer that has no variance to measure."""
    return UserError(
        f"layer '{name}' got one value per channel, which has no variance: give larger batches, or more of them with "
        'normaliser="running" and estimator="population".'
    )


@torch.no_grad()
def _run(
    model: nn.Module,
    batches: Iterable[Any],
    normaliser: Normaliser,
    see: See,
    run: Run,
    tensors: bool,
) -> int:
    """Run `batches` through `model`, and call `see` at each use of a batch norm; return the number of batches."""
    if normaliser not in ("batch", "running"):
        raise unknown("normaliser", str(normaliser), ("batch", "running"))
    check_model(model)
    if isinstance(batches, Tensor | dict) or not isinstance(batches, Iterable):
        raise UserError(f"the batches are a {type(batches).__name__}: give a list of them, or a loader; of one, [x].")
    if not batch_norms(model):
        return 0
    # DDP exchanges buffers before each forward, but ranks may have different numbers of batches.
    forward = model.module if isinstance(model, DistributedDataParallel) else model
    given = _checked(batches) if tensors else batches
    sharded = sharding_group(model)
    count = 0
    with _watched(model, normaliser, see) as watch, uncompiled(), alone() if sharded is None else nullcontext():
        if sharded is None:
            for batch in given:
                run(forward, batch)
                count += 1
            return count
        for batch, counts in together(given, sharded):
            watch.open = counts
            run_with_others(partial(run, forward, batch))
            count += counts
    return count


def _checked(batches: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the batches that have samples; one that is no tensor raises `UserError`."""
    for x in batches:
        if not isinstance(x, Tensor) or x.dim() == 0:
            what = "a single number" if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise UserError(
                f"a batch to measure batch norms with is {what}: give the inputs alone, as tensors, for example "
                "(x for x, _ in loader), or say with call=lambda model, batch: ... how the model is called."
            )
        if len(x):
            yield x


@dataclass
class _Watch:
    """Whether the batch that runs counts."""

    open: bool = True


@contextmanager
def _watched(model: nn.Module, normaliser: Normaliser, see: See) -> Iterator[_Watch]:
    """Put `model` into evaluation mode with hooks on its batch norms; afterwards undo both."""
    watch = _Watch()

    def look(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], options: dict[str, Tensor]) -> None:
        """Show `see` the moments of a layer's input."""
        (x,) = (*inputs, *options.values())
        if not watch.open or not x.numel():
            return  # a batch without samples says nothing, nor does one in which none counts
        valid = valid_of(x, f"'{name}'")
        if valid is not None and not valid.count:
            return
        moments = Moments.of(x, (0, *range(2, x.dim())), None if valid is None else valid.where)
        of_samples = getattr(layer, "moments_of_samples", None)
        see(name, moments, None if of_samples is None else of_samples(x))
        if normaliser == "batch" and isinstance(layer.running_mean, Tensor):
            if (x.numel() // x.shape[1] if valid is None else valid.count) == 1:
                raise no_variance(name)
            # A layer in evaluation mode, given the batch's statistics as its running ones, normalises as in training
            # and keeps nothing. (One that corrects them is in training mode, and does not track.)
            dtype = layer.running_mean.dtype
            layer.running_mean, layer.running_var = moments.mean.to(dtype), moments.var().to(dtype)

    layers = batch_norms(model)
    modes = [(module, module.training) for module in model.modules()]
    correcting: list[Any] = [layer for layer in layers.values() if normaliser == "batch" and _corrects(layer)]
    tracking = [(layer, layer.track_running_stats) for layer in correcting]
    statistics = [(layer, layer.running_mean, layer.running_var) for layer in layers.values()]
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    hooks: list[RemovableHandle] = []
    with torch.random.fork_rng(devices=sorted(devices)):
        try:
            model.eval()
            for layer in correcting:
                layer.training, layer.track_running_stats = True, False
            for name, layer in layers.items():
                hooks.append(layer.register_forward_pre_hook(partial(look, name), with_kwargs=True))
            yield watch
        finally:
            for handle in hooks:
                handle.remove()
            for module, training in modes:
                module.training = training
            for corrected, tracked in tracking:
                corrected.track_running_stats = tracked
            for layer, mean, var in statistics:
                layer.running_mean, layer.running_var = mean, var


def _corrects(layer: nn.Module) -> bool:
    """Return whether a batch norm of ours evaluates by more than its running statistics."""
    spec = spec_of(layer)
    return isinstance(layer, BatchNormLayer) and spec is not None and spec.evaluates == "corrected"
