"""Runs of devices that train in one computation, and are kept for when they are asked for."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from syncnorm.config import ALONE, Execution, Run, run_id, training_of
from syncnorm.data import Dataset
from syncnorm.devices.batches import RankBatches
from syncnorm.devices.measure import DevicesClassifier
from syncnorm.devices.prepare import Prepared, prepare
from syncnorm.devices.training import (
    Profile,
    Trained,
    batches_of,
    end,
    initial_profile,
    profiles_of,
    to_train,
    trained,
)
from syncnorm.errors import UserError
from syncnorm.training.stacked.choice import train_together, why_not
from syncnorm.training.stacked.train import Member

MOST_BYTES = 1 << 31
"""Of the samples of all runs of a stack; runs on the same data share them."""


@dataclass(frozen=True)
class _Ready(Member):
    """A run of devices before its first step."""

    classifier: DevicesClassifier
    batches: RankBatches
    prepared: Prepared
    initial: Profile | None


def trained_with_others(
    run: Run, prepared: Prepared, device: torch.device, execution: Execution
) -> list[tuple[Run, Trained]]:
    """Train a run in one computation with those that `execution.together` names after it, as far as they fit.

    Where that is not possible, or not faster if the execution asks for that, the run is trained by itself, and its
    row says why.
    """
    began = time.perf_counter()
    if not (why := why_not(run, len(execution.together))):
        found = train_together(list(ready(run, prepared, device, execution)), execution)
        if not isinstance(found, str):
            ended = [(one, _profiles(one)) for one in found]
            share = (time.perf_counter() - began) / len(found)
            return [(one.run, _trained(one, profiles, share, len(found))) for one, profiles in ended]
        why, prepared = found, prepare(run, device)  # the stack has changed the model of the former
    alone = trained(run, prepared, None, device, execution)
    return [(run, replace(alone, stack=f"{ALONE}: {why}" if why else ALONE))]


def ready(run: Run, prepared: Prepared, device: torch.device, execution: Execution) -> Iterator[_Ready]:
    """Yield the run and those after it, one for each training, as long as their samples fit into memory."""
    folders = {run_id(one): (one, folder) for one, folder in execution.together}
    order, own = list(folders), run_id(run)
    known, data = {run_id(training_of(run))}, {id(prepared.data): _bytes(prepared.data)}
    yield _member(run, prepared, device, execution.checkpoint)
    for name in order[order.index(own) + 1 :] if own in folders else []:
        other, folder = folders[name]
        if (training := run_id(training_of(other))) in known:
            continue
        known.add(training)
        try:
            its = prepare(other, device)
        except UserError:  # said when the run itself is asked for
            continue
        data[id(its.data)] = _bytes(its.data)
        if sum(data.values()) > MOST_BYTES:
            return
        yield _member(other, its, device, folder)


def _bytes(data: Dataset) -> int:
    return sum(part.nbytes for part in (data.train_x, data.validation_x, data.test_x))


def _member(run: Run, prepared: Prepared, device: torch.device, folder: Path | None) -> _Ready:
    initial = initial_profile(run, prepared, device)
    return _Ready(run, to_train(run, prepared), batches_of(run, prepared), folder, prepared, initial)


def _profiles(one: _Ready) -> dict[str, Profile]:
    end(one.classifier)
    return profiles_of(one.run, one.prepared, one.classifier, one.initial)


def _trained(one: _Ready, profiles: dict[str, Profile], share: float, runs: int) -> Trained:
    seconds = one.classifier.seconds_before + share
    return Trained(one.run, one.prepared, one.classifier, one.batches, profiles, seconds, f"{runs} runs at once")
