"""The training of a run of devices, and what is measured of it beside its evaluation."""

import time
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from syncnorm.config import Execution, Run, layout
from syncnorm.devices.batches import RankBatches
from syncnorm.devices.measure import DevicesClassifier
from syncnorm.devices.prepare import Prepared, devices, has_virtual_ranks
from syncnorm.seeds import derive
from syncnorm.training.lightning.trainer import placement, run_trainer
from syncnorm.training.profiles.effective_samples import batch_moments, effective_profiles
from syncnorm.training.profiles.gradients import gradient_profile
from syncnorm.training.ranks.layers import shares
from syncnorm.training.ranks.virtual_ranks import on_virtual_ranks, rank_0

PROFILED = 64
"""Number of training steps over which effective samples are measured."""
PROFILES = ("gradient_norm_initial", "gradient_norm_final", "effective_samples", "values_per_channel")

Profile = dict[str, list[Any]]


@dataclass(frozen=True)
class Trained:
    """A run after its last epoch."""

    run: Run
    prepared: Prepared
    classifier: DevicesClassifier
    batches: RankBatches
    profiles: dict[str, Profile]
    seconds: float
    """That the training took, those before interruptions included; of runs that trained together, the run's share."""
    stack: str = ""
    """How the run trained, where others were to be trained with it."""


def trained(
    run: Run, prepared: Prepared, rank: int | None, device: torch.device, execution: Execution | None
) -> Trained:
    """Train a prepared run, as real rank `rank` or as all virtual ranks (None); return it with its profiles."""
    began = time.perf_counter()
    initial = None if rank is not None else initial_profile(run, prepared, device)
    classifier, batches = train(run, prepared, rank, execution)
    classifier.model.to(device)
    profiles = {} if rank is not None else profiles_of(run, prepared, classifier, initial)
    seconds = classifier.seconds_before + time.perf_counter() - began
    return Trained(run, prepared, classifier, batches, profiles, seconds)


def train(
    run: Run, prepared: Prepared, rank: int | None, execution: Execution | None = None
) -> tuple[DevicesClassifier, RankBatches]:
    """Train a prepared run as real rank `rank`, or as all virtual ranks (None); return the trained module.

    Its model is that of the last epoch, or, if the run asks for it, that of the best.
    """
    torch.manual_seed(derive("training", run.seed, rank or 0))
    classifier, batches = to_train(run, prepared), batches_of(run, prepared, rank)
    run_trainer(run, classifier, batches, execution or Execution(), **placement(devices(run).engine))
    end(classifier)
    return classifier, batches


def to_train(run: Run, prepared: Prepared) -> DevicesClassifier:
    """Return the module of a prepared run before its first step, with all virtual ranks in its model."""
    ranks, _ = layout(devices(run))
    several = has_virtual_ranks(run)
    model = on_virtual_ranks(prepared.model, run.norm.name, ranks) if several else prepared.model
    return DevicesClassifier(run, model, prepared.data)


def end(classifier: DevicesClassifier) -> None:
    """Give a module after its last step the model that is the run's result."""
    classifier.best.restore(classifier.model)
    classifier.model = rank_0(classifier.model)


def batches_of(run: Run, prepared: Prepared, rank: int | None = None) -> RankBatches:
    """Return the training batches of real rank `rank`, or of all ranks (None)."""
    _, per_device_batch = layout(devices(run))
    return RankBatches(
        prepared.data, prepared.shards, per_device_batch, run.seed, run.data.augment, rank, run.data.workers
    )


def initial_profile(run: Run, prepared: Prepared, device: torch.device) -> Profile | None:
    """Return the gradient profile of a prepared run before it trains, from its first batch."""
    torch.manual_seed(derive("profile", run.seed))  # layers may draw random numbers
    return gradient_profile(prepared.model, *_first_batch(run, prepared, device), run.task)


def profiles_of(
    run: Run, prepared: Prepared, classifier: DevicesClassifier, initial: Profile | None
) -> dict[str, Profile]:
    """Return the profiles of a run that has been trained; without an `initial` one there are none."""
    device = next(classifier.model.parameters(), prepared.data.train_x).device
    final = gradient_profile(classifier.model, *_first_batch(run, prepared, device), run.task)
    if not (initial and final):
        return {}
    profiles = {"gradient_norm_initial": initial, "gradient_norm_final": final}
    return profiles | _effective_profiles(run, prepared, classifier)


def _first_batch(run: Run, prepared: Prepared, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the first training batch (only rank 0's share if each rank has a copy of the model)."""
    x, y = (part.to(device) for part in next(batches_of(run, prepared).deal(epoch=0, first=0)))
    ranks = len(prepared.shards) if has_virtual_ranks(run) else 1
    return x[::ranks], y[::ranks]


def _effective_profiles(run: Run, prepared: Prepared, classifier: DevicesClassifier) -> dict[str, Any]:
    """Return the profiles of effective samples, over the batches of the first epoch, at most `PROFILED` of them.

    A batch is that of one device, or of all if the norm's statistics go over all.
    """
    dealt = islice(batches_of(run, prepared).deal(epoch=0, first=0), PROFILED)
    device = next(classifier.model.parameters()).device
    parts = 1 if shares(run.norm) else len(prepared.shards)
    return effective_profiles(batch_moments(classifier.model, (x.to(device) for x, _ in dealt), parts))
