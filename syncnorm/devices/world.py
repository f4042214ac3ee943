"""One run of the devices world, from its configuration to its result.

from syncnorm.config import Devices, Norm, Run
from syncnorm.devices import fit
print(fit(Run(norm=Norm("bn"), world=Devices(ranks=8, per_device_batch=4, skew=100))).metrics)
"""

import time
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from syncnorm.baselines import Problem
from syncnorm.config import Devices, Execution, Norm, Result, Run, describe, layout, marked, run_id, validated_at
from syncnorm.data import Dataset
from syncnorm.data.plain import plain_problem
from syncnorm.data.sources.load import MEMORY
from syncnorm.devices.measure import measure, validate
from syncnorm.devices.prepare import Prepared, devices, load_data, norm_layer, prepare
from syncnorm.devices.stacked import trained_with_others
from syncnorm.devices.training import PROFILES, Trained, trained
from syncnorm.environment import environment
from syncnorm.environment import rank as launched_rank
from syncnorm.norms import norm_spec
from syncnorm.surgery.layers.replace import copied
from syncnorm.tasks import task_named
from syncnorm.training.building import device_of_rank
from syncnorm.training.kept import LastTraining
from syncnorm.training.lightning.trainer import mean_over_ranks, optimiser_steps
from syncnorm.training.metrics import other_metrics
from syncnorm.training.precision import PRECISIONS
from syncnorm.training.profiles.layers import described_layers
from syncnorm.training.profiles.small_groups import warn_of_small_groups
from syncnorm.training.ranks.exchange import Ranks
from syncnorm.training.ranks.launch import agreed, apart, check_started, join_ranks
from syncnorm.training.ranks.work import of_all
from syncnorm.training.saved import check_saving, save_model
from syncnorm.training.selection import by_validation


@apart
def fit(run: Run, execution: Execution | None = None) -> Result:
    """Train and evaluate one run; the same configuration gives the same result on the same machine.

    With `world.engine` "virtual", all ranks are in this process. With "torchrun", every rank calls this in a torchrun
    launch with as many processes as the run has ranks; all return the same result, in which `ranks` says what each
    did. They first compare versions, source and data.

    Runs that differ only in `world.buffers` share one training if they follow each other in one process; `seconds`
    then covers the evaluation only. (A run that is evaluated while it trains shares with none.)

    Runs of `execution.together` are trained in one computation with this one, and kept until they are asked for: the
    result's environment says how many at once ("stack"), or why not. `seconds` covers a run's share of them.

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
    place, execution = f"{device} {rank}", execution or Execution()
    waiting = _KEPT.waiting(run, place)
    if waiting and waiting.run == run:
        prepared = waiting.prepared
    else:
        prepared = agreed(ranks, run, lambda: prepare(run, device), lambda made: made.model)
    began = time.perf_counter()
    kept, fresh = _KEPT.among(run, place, lambda: _trained(run, prepared, rank, device, execution))
    started += time.perf_counter() - began - (kept.seconds if fresh else 0.0)
    model = _own_copy(kept)
    result = _measured(run, prepared, kept, model, ranks)
    result = marked(replace(result, seconds=time.perf_counter() - started))
    if execution.model and not rank:
        save_model(execution.model, run, result, model, prepared.data.shape, prepared.data.classes)
    return result


def _trained(
    run: Run, prepared: Prepared, rank: int | None, device: torch.device, execution: Execution
) -> list[tuple[Run, Trained]]:
    """Train a run, and those with it that the execution names; return them all."""
    if execution.together and rank is None:
        return trained_with_others(run, prepared, device, execution)
    return [(run, trained(run, prepared, rank, device, execution))]


def _measured(run: Run, prepared: Prepared, kept: Trained, model: nn.Module, ranks: Ranks) -> Result:
    """Return the result of a trained run, but for its seconds; `model` is its own to change."""
    classifier = kept.classifier
    metrics, evaluated_by, details = measure(run, model, prepared.data)
    if run.data.validation:
        metrics |= validate(run, model, prepared.data)
    if run.select == "best":
        metrics["epoch"] = float(classifier.best.epoch)
    if prepared.values_per_channel:
        metrics["values_per_channel"] = float(prepared.values_per_channel)
    train_loss = mean_over_ranks(classifier.history["train_loss"])
    return Result(
        run_id=run_id(run),
        config=describe(run),
        metrics={**metrics, "train_loss": train_loss[-1], "steps": float(optimiser_steps(run, kept.batches))},
        evaluated_by=evaluated_by,
        seconds=0.0,
        environment={**environment(), **({"stack": kept.stack} if kept.stack else {})},
        history={**classifier.history, "train_loss": train_loss},
        details=details | ({"profiles": kept.profiles, "layers": described_layers(model)} if kept.profiles else {}),
        ranks=of_all(ranks, classifier.work),
    )


_KEPT: LastTraining[Trained] = LastTraining()


def _own_copy(trained: Trained) -> nn.Module:
    """Return a copy of a trained model: its statistics are chosen in place, and another run may share the training.

    A model that cannot be copied is shared with none.
    """
    model = trained.classifier.model
    try:
        return copied(model)
    except (RuntimeError, TypeError):
        _KEPT.drop(trained)
        return model


def _check_world(run: Run) -> int | None:
    """Return this process's rank under torchrun, None for virtual ranks; a wrong world size raises `UserError`."""
    ranks, _ = layout(devices(run))
    if devices(run).engine == "virtual":
        return None
    check_started(ranks, "set engine to virtual")
    return launched_rank()


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
