"""One run of the devices world, from its configuration to its result.

from syncnorm.config import Devices, Norm, Run
from syncnorm.devices import fit
print(fit(Run(norm=Norm("bn"), world=Devices(ranks=8, per_device_batch=4, skew=100))).metrics)
"""

import time
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from syncnorm.baselines import Problem
from syncnorm.config import Devices, Execution, Norm, Result, Run, describe, layout, marked, run_id, validated_at
from syncnorm.data import Dataset
from syncnorm.data.plain import plain_problem
from syncnorm.data.sources.load import MEMORY
from syncnorm.devices.batches import RankBatches
from syncnorm.devices.measure import DevicesClassifier, measure, validate
from syncnorm.devices.prepare import (
    Prepared,
    devices,
    has_virtual_ranks,
    load_data,
    norm_layer,
    prepare,
)
from syncnorm.environment import environment
from syncnorm.environment import rank as launched_rank
from syncnorm.norms import norm_spec
from syncnorm.seeds import derive
from syncnorm.surgery.layers.replace import copied
from syncnorm.tasks import task_named
from syncnorm.training.building import device_of_rank
from syncnorm.training.kept import LastTraining
from syncnorm.training.lightning.trainer import mean_over_ranks, optimiser_steps, placement, run_trainer
from syncnorm.training.metrics import other_metrics
from syncnorm.training.precision import PRECISIONS
from syncnorm.training.profiles.effective_samples import batch_moments, effective_profiles
from syncnorm.training.profiles.gradients import gradient_profile
from syncnorm.training.profiles.layers import described_layers
from syncnorm.training.profiles.small_groups import warn_of_small_groups
from syncnorm.training.ranks.exchange import Ranks
from syncnorm.training.ranks.launch import agreed, apart, check_started, join_ranks
from syncnorm.training.ranks.layers import shares
from syncnorm.training.ranks.virtual_ranks import on_virtual_ranks, rank_0
from syncnorm.training.ranks.work import of_all
from syncnorm.training.saved import check_saving, save_model
from syncnorm.training.selection import by_validation

PROFILED = 64
"""Number of training steps over which effective samples are measured."""
PROFILES = ("gradient_norm_initial", "gradient_norm_final", "effective_samples", "values_per_channel")


@apart
def fit(run: Run, execution: Execution | None = None) -> Result:
    """Train and evaluate one run; the same configuration gives the same result on the same machine.

    With `world.engine` "virtual", all ranks are in this process. With "torchrun", every rank calls this in a torchrun
    launch with as many processes as the run has ranks; all return the same result, in which `ranks` says what each
    did. They first compare versions, source and data.

    Runs that differ only in `world.buffers` share one training if they follow each other in one process; `seconds`
    then covers the evaluation only. (A run that is evaluated while it trains shares with none.)

    With virtual ranks, details["profiles"] has "gradient_norm_initial" and "gradient_norm_final": the
    `gradient_profile` of the first training batch, before and after training; and "effective_samples" and
    "values_per_channel" of the trained model's norm layers over training batches (`effective_profiles`).
    details["layers"] says what these layers are (`described_layers`).

    The metric `values_per_channel` is the fewest values (samples x positions) that share statistics in training, over
    all batch norms of the model; runs whose norm does not see the batch have none.

    With `data.validation`, the metrics include `validation_accuracy` and `validation_loss` of the resulting model,
    measured as on the test set. With `run.select` "best", that model is the one after the epoch with the best
    validation accuracy, `epoch`.

    Raises:
        UserError: for anything in `run` that does not work, before training starts.
    """
    started = time.perf_counter()
    check_saving(execution)
    rank = _check_world(run)
    ranks, device = Ranks() if rank is None else join_ranks(), device_of_rank()
    prepared = agreed(ranks, run, lambda: prepare(run, device), lambda made: made.model)
    trained, fresh = _KEPT.of(run, f"{device} {rank}", lambda: _trained(run, prepared, rank, device, execution))
    classifier, batches, profiles = trained
    model = _own_copy(classifier.model)
    metrics, evaluated_by, details = measure(run, model, prepared.data)
    if run.data.validation:
        metrics |= validate(run, model, prepared.data)
    if run.select == "best":
        metrics["epoch"] = float(classifier.best.epoch)
    if prepared.values_per_channel:
        metrics["values_per_channel"] = float(prepared.values_per_channel)
    train_loss = mean_over_ranks(classifier.history["train_loss"])
    result = Result(
        run_id=run_id(run),
        config=describe(run),
        metrics={**metrics, "train_loss": train_loss[-1], "steps": float(optimiser_steps(run, batches))},
        evaluated_by=evaluated_by,
        seconds=(classifier.seconds_before if fresh else 0.0) + time.perf_counter() - started,
        environment=environment(),
        history={**classifier.history, "train_loss": train_loss},
        details=details | ({"profiles": profiles, "layers": described_layers(model)} if profiles else {}),
        ranks=of_all(ranks, classifier.work),
    )
    result = marked(result)
    if execution and execution.model and not rank:
        save_model(execution.model, run, result, model, prepared.data.shape, prepared.data.classes)
    return result


Profile = dict[str, list[Any]]
_KEPT: LastTraining[tuple[DevicesClassifier, RankBatches, dict[str, Profile]]] = LastTraining()


def _own_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a trained model: its statistics are chosen in place, and another run may share the training.

    A model that cannot be copied is shared with none.
    """
    try:
        return copied(model)
    except (RuntimeError, TypeError):
        _KEPT.forget()
        return model


def _trained(
    run: Run, prepared: Prepared, rank: int | None, device: torch.device, execution: Execution | None
) -> tuple[DevicesClassifier, RankBatches, dict[str, Profile]]:
    """Train a prepared run; return the module, its batches, and its profiles by layer."""
    first = _first_batch(run, prepared, device) if rank is None else None
    torch.manual_seed(derive("profile", run.seed))  # layers may draw random numbers
    initial = first and gradient_profile(prepared.model, *first, run.task)
    classifier, batches = train(run, prepared, rank, execution)
    final = first and gradient_profile(classifier.model.to(device), *first, run.task)
    classifier.model.to(device)
    profiles = {}
    if initial and final:
        profiles = {"gradient_norm_initial": initial, "gradient_norm_final": final}
        profiles |= _effective_profiles(run, prepared, classifier.model)
    return classifier, batches, profiles


def _check_world(run: Run) -> int | None:
    """Return this process's rank under torchrun, None for virtual ranks; a wrong world size raises `UserError`."""
    ranks, _ = layout(devices(run))
    if devices(run).engine == "virtual":
        return None
    check_started(ranks, "set engine to virtual")
    return launched_rank()


def train(
    run: Run, prepared: Prepared, rank: int | None, execution: Execution | None = None
) -> tuple[DevicesClassifier, RankBatches]:
    """Train a prepared run as real rank `rank`, or as all virtual ranks (None); return the trained module.

    Its model is that of the last epoch, or, if the run asks for it, that of the best.
    """
    ranks, _ = layout(devices(run))
    torch.manual_seed(derive("training", run.seed, rank or 0))
    several = has_virtual_ranks(run)
    model = on_virtual_ranks(prepared.model, run.norm.name, ranks) if several else prepared.model
    classifier = DevicesClassifier(run, model, prepared.data)
    batches = _batches(run, prepared, rank)
    run_trainer(run, classifier, batches, execution or Execution(), **placement(devices(run).engine))
    classifier.best.restore(classifier.model)
    classifier.model = rank_0(classifier.model)
    return classifier, batches


def _first_batch(run: Run, prepared: Prepared, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the first training batch (only rank 0's share if each rank has a copy of the model)."""
    x, y = (part.to(device) for part in next(_batches(run, prepared, rank=None).deal(epoch=0, first=0)))
    ranks = len(prepared.shards) if has_virtual_ranks(run) else 1
    return x[::ranks], y[::ranks]


def _effective_profiles(run: Run, prepared: Prepared, model: nn.Module) -> dict[str, Any]:
    """Return the profiles of effective samples, over the batches of the first epoch, at most `PROFILED` of them.

    A batch is that of one device, or of all if the norm's statistics go over all.
    """
    dealt = islice(_batches(run, prepared, rank=None).deal(epoch=0, first=0), PROFILED)
    device = next(model.parameters()).device
    parts = 1 if shares(run.norm) else len(prepared.shards)
    return effective_profiles(batch_moments(model, (x.to(device) for x, _ in dealt), parts))


def _batches(run: Run, prepared: Prepared, rank: int | None) -> RankBatches:
    _, per_device_batch = layout(devices(run))
    return RankBatches(
        prepared.data, prepared.shards, per_device_batch, run.seed, run.data.augment, rank, run.data.workers
    )


class DevicesWorld:
    """The devices world (`syncnorm.worlds.World`)."""

    def fit(self, run: Run, execution: Execution) -> Result:
        """Train and evaluate a run."""
        return fit(run, execution)

    def check(self, run: Run) -> None:
        """Raise the `UserError` that the run would raise, without training it."""
        prepared = prepare(run, torch.device("cpu"))
        warn_of_small_groups(run, prepared.model, prepared.data.train_x)

    def forget(self) -> None:
        """Drop the data sets and the training that this process caches."""
        load_data.cache_clear()
        _KEPT.forget()
        MEMORY.clear()

    def data(self, run: Run) -> Dataset:
        """Return a run's data."""
        return load_data(run.data, run.seed, torch.device("cpu"), PRECISIONS[run.precision].data, run.task)

    def pixels(self, run: Run) -> Problem:
        """Return all devices' training samples together, and the test set."""
        data = self.data(run)
        uniform = torch.ones(len(data.test_y))
        return plain_problem(data.train_x, data.train_y, data.test_x, data.test_y, uniform)

    def metrics(self, run: Run) -> list[str]:
        """Return the names of the metrics that a run may have."""
        main = task_named(run.task).metric
        own = [main, "loss", f"{main}_rank0", f"{main}_pooled"]
        if norm_spec(run.norm.name).sees_batch:
            own.append("values_per_channel")
        return [*own, "parameter_norm", "train_loss", "steps", *other_metrics(run), *by_validation(run)]

    def histories(self, run: Run) -> list[str]:
        """Return the names of the histories that a run will have."""
        chosen = [task_named(run.task).named("validation_accuracy")] if validated_at(run, 1, 1) else []
        return ["train_loss", *chosen]

    def profiles(self, run: Run) -> list[str]:
        """Return the names of the profiles that a run will have: only runs on virtual ranks have them."""
        return list(PROFILES) if devices(run).engine == "virtual" else []

    def norm_layer(self, norm: Norm, world: Devices) -> tuple[str, dict[str, Any]]:
        """Return the layer that computes `norm`."""
        return norm_layer(norm, world)


WORLD = DevicesWorld()
