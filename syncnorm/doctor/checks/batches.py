"""Batches and devices: how many values statistics rest on, and whose."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from syncnorm.doctor.case import Case
from syncnorm.doctor.finding import Finding, Severity
from syncnorm.doctor.measures.misfit import wasserstein
from syncnorm.doctor.measures.ranks import Ranks, is_plain, measure_ranks
from syncnorm.doctor.watch.kinds import is_over_ranks
from syncnorm.doctor.watch.trace import Call
from syncnorm.doctor.words import number, percent

FEW_VALUES = 16
"""Fewer values a channel than this are few."""
FEW_SAMPLES = 8
"""Fewer samples than this are few, however many positions each has: positions of one image are alike."""
APART = 0.25
"""Standard deviations between the statistics of two uses of a layer that are too different to share."""


def few_values(case: Case) -> Iterator[Finding]:
    """A batch norm whose statistics rest on few values a channel."""
    for call, values in _batch_norm_values(case):
        if values >= FEW_VALUES:
            continue
        severity: Severity = "error" if values <= 1 else "warning"
        error = (1 / (2 * max(values - 1, 1))) ** 0.5
        where = f"{number(values)} value{'s' if values > 1 else ''} a channel on each device"
        if values <= 1:
            what = f"it gets {where}, of which there is no variance: PyTorch refuses to train"
        elif values <= 2:
            what = f"it gets {where}: normalised, these say no more than which is larger"
        else:
            what = f"it gets {where}, so its statistics are mostly noise"
        yield Finding(
            call.name,
            what,
            'give a device more samples, synchronise (syncnorm.convert(model, "sync_bn")), or take group norm '
            'with few groups (syncnorm.convert(model, "gn", groups=...))',
            severity,
            "certain",
            f"the error of its standard deviation is about {percent(error)}, if values are independent",
        )


def per_device_statistics(case: Case) -> Iterator[Finding]:
    """Batch norm of each device by itself where synchronised statistics would differ much."""
    size = case.batch_size or 1
    layers = _alone(case)
    if size >= FEW_SAMPLES:
        layers = {name: values for name, values in layers.items() if values < FEW_VALUES}
    if not layers:
        return
    measured = measure_ranks(case, list(layers), case.world_size, size)
    for name, values in layers.items():
        yield Finding(
            name,
            f"each of {case.world_size} devices normalises with its own {_samples(size)} ({number(values)} values a "
            "channel)",
            'write model = syncnorm.convert(model, "sync_bn") before DistributedDataParallel; group norm and '
            "syncnorm.accumulate are other ways",
            "warning",
            "likely" if measured is None else "measured",
            _cost(measured, name, "devices"),
        )


def accumulated_statistics(case: Case) -> Iterator[Finding]:
    """Gradient accumulation in which each part of a step has statistics of its own."""
    size = case.batch_size or 1
    layers = _alone(case)
    if size >= FEW_SAMPLES:
        layers = {name: values for name, values in layers.items() if values < FEW_VALUES}
    if not layers:
        return
    measured = measure_ranks(case, list(layers), case.accumulate, size)
    for name, values in layers.items():
        yield Finding(
            name,
            f"each of {case.accumulate} parts of a step normalises with its own {_samples(size)} ({number(values)} "
            "values a channel): accumulation enlarges the batch of the gradient, and not of the statistics",
            "use syncnorm.accumulate(model, parts, loss), whose norms see the whole step",
            "warning",
            "likely" if measured is None else "measured",
            _cost(measured, name, "parts"),
        )


def counted_twice(case: Case) -> Iterator[Finding]:
    """A batch norm that one step updates more often than the forward calls it, as activation checkpointing does."""
    seen = case.training
    for name, moves in seen.moves.items():
        uses = seen.uses.get(name, 0)
        if not uses or moves <= uses:
            continue
        momentum = getattr(case.batch_norms[name], "momentum", None)
        acts = f", so momentum {momentum:g} acts as {1 - (1 - momentum) ** (moves / uses):.2g}" if momentum else ""
        yield Finding(
            name,
            f"a step updates its statistics {moves} times, and the forward calls it "
            f"{'once' if uses == 1 else f'{uses} times'}: activation checkpointing runs it again{acts}",
            'leave norms out of the checkpointed part, or write syncnorm.convert(model, "sync_bn"), whose layers do '
            "not count the second run (also with one device)",
            "warning",
            "measured",
        )


def several_depths(case: Case) -> Iterator[Finding]:
    """One batch norm that is used at several depths, or sizes, which share one set of running statistics."""
    seen = case.training
    for name, uses in seen.uses.items():
        layer = case.batch_norms[name]
        if uses < 2 or getattr(layer, "running_mean", None) is None:
            continue
        calls = [call for call in seen.calls if call.name == name and call.listed and call.by_batch]
        pairs = list(combinations(calls, 2))
        chained = any(a.node is not None and b.source is not None and _chained(case, a, b) for a, b in pairs)
        sizes = len({call.shape[2:] for call in calls}) > 1
        distance = max((_apart(a, b) for a, b in pairs), default=0.0)
        if chained or (sizes and distance > APART):
            yield Finding(
                name,
                f"the forward uses it {uses} times, at different {'depths' if chained else 'sizes'}: all of them "
                "move, and in evaluation share, one mean and variance",
                "give each use a batch norm of its own; convolutions can stay shared",
                "warning",
                "measured",
                f"the statistics of two uses are {distance:.1f} standard deviations apart ({case.given.words})",
            )


def unreached(case: Case) -> Iterator[Finding]:
    """A synchronised norm that this input does not reach: ranks that do reach it would wait for the others."""
    for name, layer in case.batch_norms.items():
        if case.world_size > 1 and is_over_ranks(layer) and not case.training.uses.get(name):
            yield Finding(
                name,
                "it is synchronised, and the forward does not reach it on this input: ranks whose input does would "
                "wait for the others",
                "let every rank run it in every step, or leave it unsynchronised with convert(..., where=...)",
                "warning",
                "likely",
            )


def _batch_norm_values(case: Case) -> Iterator[tuple[Call, float]]:
    """Yield the norms that use the batch, each once, with the fewest values that one statistic of theirs rests on."""
    fewest: dict[str, tuple[Call, float]] = {}
    for call in case.training.of("batch"):
        if call.by_batch:
            values = case.values(call.values)
            if call.module is not None and is_over_ranks(call.module):
                values *= case.world_size
            key = call.name if call.listed else f"{call.name} {call.what}"
            if key not in fewest or values < fewest[key][1]:
                fewest[key] = (call, values)
    yield from fewest.values()


def _alone(case: Case) -> dict[str, float]:
    """Return the batch norms of PyTorch's kind that see one device's batch, with their values a channel."""
    return {
        call.name: values
        for call, values in _batch_norm_values(case)
        if call.module is not None and call.listed and is_plain(call.module) and not is_over_ranks(call.module)
    }


def _samples(size: int) -> str:
    return f"{size} sample{'s' if size > 1 else ''}"


def _cost(measured: Ranks | None, name: str, who: str) -> str:
    if measured is None:
        return ""
    parts = []
    if name in measured.means:
        parts.append(f"the means of {who} are {measured.means[name]:.2f} standard deviations off the common one")
    if measured.outputs is not None:
        parts.append(f"the model's outputs differ by {percent(measured.outputs)}")
    return f"{'; '.join(parts)} ({measured.words})" if parts else ""


def _chained(case: Case, first: Call, second: Call) -> bool:
    return case.training.graph.reaches(first.node, second.source)


def _apart(a: Call, b: Call) -> float:
    if a.moments is None or b.moments is None:
        return 0.0
    pairs = ((a.moments, b.moments), (b.moments, a.moments))
    far = [wasserstein(one.mean, one.var() + 1e-5, other.mean, other.var() + 1e-5).mean() for one, other in pairs]
    return float(min(far))
