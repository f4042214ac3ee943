"""One run of the domains world, from its configuration to its result.

from syncnorm.config import Domains, Norm, Run
from syncnorm.domains import fit
world = Domains(("digits", "digits-inverted", "digits-noisy"), unseen=("digits-noisy",), adapt="adabn")
print(fit(Run(norm=Norm("bn"), world=world)).metrics)
"""

import time
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from syncnorm.baselines import Problem
from syncnorm.config import (
    Domains,
    Execution,
    Norm,
    Result,
    Run,
    describe,
    evaluated_at,
    marked,
    run_id,
    training_of,
)
from syncnorm.data.domain_pool import Pool, load_pool
from syncnorm.data.plain import plain_problem
from syncnorm.data.sources.load import MEMORY
from syncnorm.domains.batches import Batch, DomainBatches, held_by_rank
from syncnorm.domains.measure import as_tested, evaluated_by, layer_as_tested, measure, tested, validated
from syncnorm.domains.prepare import Prepared, check_world, domains, has_virtual_ranks, load_domains, prepare
from syncnorm.environment import environment
from syncnorm.norms import domain
from syncnorm.norms.spec import WorldFact
from syncnorm.seeds import derive
from syncnorm.tasks import task_named
from syncnorm.training import Classifier
from syncnorm.training.building import device_of_rank
from syncnorm.training.kept import LastTraining
from syncnorm.training.lightning.trainer import mean_over_ranks, optimiser_steps, placement, run_trainer
from syncnorm.training.metrics import other_metrics
from syncnorm.training.profiles.small_groups import warn_of_small_groups
from syncnorm.training.ranks.exchange import Ranks
from syncnorm.training.ranks.launch import agreed, apart, check_started, join_ranks
from syncnorm.training.ranks.layers import layer_on_ranks, sharing_samples
from syncnorm.training.ranks.virtual_ranks import on_virtual_ranks
from syncnorm.training.ranks.work import of_all
from syncnorm.training.saved import check_saving, save_model
from syncnorm.training.selection import Best, by_validation


@dataclass(frozen=True)
class Trained:
    """The result of a run's training."""

    model: nn.Module
    history: dict[str, list[float]]
    steps: int
    seconds_before: float
    """Training time in seconds before interruptions."""
    epoch: int
    """The epoch whose model it is, if validation chose it."""
    work: dict[str, Any]
    """What this rank did."""


_KEPT: LastTraining[Trained] = LastTraining()


@apart
def fit(run: Run, execution: Execution | None = None) -> Result:
    """Train one model on a run's seen domains, and test it on all domains.

    With `world.engine` "virtual", all ranks are in this process. With "torchrun", every rank calls this in a torchrun
    launch with as many processes as the run has ranks; all return the same result, in which `ranks` says what each
    did. They first compare versions, source and data, and share the domains' tests out. Runs with several ranks say
    in details["samples_by_rank"] how many samples of each domain a rank holds.

    Runs that differ only in test settings share one trained model: if they follow each other in one process, it is
    trained once, and `seconds` then covers the test only.

    With `data.validation`, the metrics include `validation_accuracy` and `validation_loss`: means over seen domains,
    on their validation samples, of the model as it is used, with the run's adaptation. With `run.select` "best", the
    model is the one after the epoch (`epoch`) with the best validation accuracy without adaptation, since runs with
    different adaptations share it; the history has that accuracy.

    Raises:
        UserError: for anything in `run` that does not work, before training starts.
    """
    started = time.perf_counter()
    check_saving(execution)
    world = domains(run)
    ranks = _ranks_of(world)
    device = ranks.device
    prepared = agreed(ranks, run, lambda: prepare(run, device), lambda made: made.model)
    trained, fresh = _KEPT.of(
        run,
        f"{device} {ranks}",
        lambda: train(training_of(run), prepared, device, execution, ranks),
        ranks.anywhere,
    )
    before = trained.seconds_before if fresh else 0.0
    model = as_tested(run, trained.model, ranks, world.buffers)
    metrics, details = tested(run, prepared, model, ranks)
    result = Result(
        run_id=run_id(run),
        config=describe(run),
        metrics={
            **metrics,
            **validated(run, prepared, model, ranks),
            **({"epoch": float(trained.epoch)} if run.select == "best" else {}),
            "train_loss": trained.history["train_loss"][-1],
            "steps": float(trained.steps),
        },
        evaluated_by=evaluated_by(run, model),
        seconds=before + time.perf_counter() - started,
        environment=environment(),
        history=trained.history,
        details={**details, **_held(run, prepared)},
        ranks=of_all(ranks, trained.work),
    )
    result = marked(result)
    if execution and execution.model and not ranks.rank:
        shape, classes = tuple(prepared.pool.x.shape[1:]), len(prepared.pool.class_names)
        save_model(execution.model, run, result, model, shape, classes, layer=layer_as_tested(run))
    return result


def _held(run: Run, prepared: Prepared) -> dict[str, Any]:
    """Return the details on who holds what, of a run with several ranks."""
    world = domains(run)
    if world.ranks == 1:
        return {}
    return {"samples_by_rank": held_by_rank(prepared.pool, prepared.seen, world, run.seed)}


def _ranks_of(world: Domains) -> Ranks:
    """Return the real ranks of a run, joined; of virtual ones, this process alone."""
    check_world(world)
    if world.engine == "virtual":
        return Ranks(device=device_of_rank())
    check_started(world.ranks, "set engine to virtual")
    return join_ranks()


class DomainClassifier(Classifier):
    """A classifier whose batches include each sample's domain; it is tested after epochs, without adaptation."""

    def __init__(self, run: Run, model: nn.Module, prepared: Prepared, ranks: Ranks) -> None:
        super().__init__(model, optim=run.optim, task=run.task, precision=run.precision)
        self._run, self._prepared, self._ranks = run, prepared, ranks
        self.best = Best()
        self._groups = {f"seen_{self.task.metric}": prepared.seen}
        if prepared.unseen:
            self._groups[f"unseen_{self.task.metric}"] = prepared.unseen
        self.history |= {name: [] for name in self._groups}
        if run.data.validation:
            self.history[self.task.named("validation_accuracy")] = []
        if run.evaluate_every:
            self.history["accuracy_at"] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # type: ignore[override]
        """Return the loss of a batch of samples, labels and domains."""
        x, y, ids = batch
        with domain(ids):
            return super().training_step((x, y), batch_idx)

    def on_train_epoch_end(self) -> None:
        """Record the epoch's mean loss, and the accuracy on seen and unseen domains if it is due."""
        super().on_train_epoch_end()
        run, prepared = self._run, self._prepared
        if run.evaluate_every:
            if not evaluated_at(run, self.epochs_done, run.optim.epochs):
                return
            self.history["accuracy_at"].append(float(self.epochs_done))
        model = as_tested(run, self.model, self._ranks, "rank0")
        for name, group in self._groups.items():
            scores = self._ranks.shared_out(group, lambda index: measure(run, prepared, model, index, "none")[0])
            self.history[name].append(fmean(scores))
        if run.data.validation:
            name = self.task.named("validation_accuracy")
            score = validated(run, prepared, model, self._ranks, "none")[name]
            self.history[name].append(score)
            if run.select == "best":
                self.best.offer(self.epochs_done, score, self.model)

    def remember(self) -> dict[str, Any]:
        """Return the history and the best model so far, as plain data and tensors, for `recall`."""
        return {**super().remember(), "best": self.best.remember()}

    def recall(self, state: dict[str, Any]) -> None:
        """Restore the state that `remember` returned."""
        super().recall(state)
        self.best.recall(state["best"])


def train(
    run: Run, prepared: Prepared, device: torch.device, execution: Execution | None = None, ranks: Ranks | None = None
) -> Trained:
    """Train the prepared model, as all virtual ranks or as one of real `ranks`; return it with its history."""
    world, ranks = domains(run), ranks or Ranks()
    torch.manual_seed(derive("training", run.seed, ranks.rank))
    several = has_virtual_ranks(run)
    model = on_virtual_ranks(prepared.model, run.norm.name, world.ranks) if several else prepared.model
    classifier = DomainClassifier(run, model, prepared, ranks)
    kind, workers = run.data.augment, run.data.workers
    rank = ranks.rank if world.engine == "torchrun" else None
    batches = DomainBatches(prepared.pool, prepared.seen, world, run.seed, kind, workers, rank)
    run_trainer(run, classifier, batches, execution or Execution(), **placement(world.engine))
    classifier.best.restore(classifier.model)
    steps, before = optimiser_steps(run, batches), classifier.seconds_before
    history = {**classifier.history, "train_loss": mean_over_ranks(classifier.history["train_loss"])}
    return Trained(classifier.model.to(device), history, steps, before, classifier.best.epoch, classifier.work)


class DomainsWorld:
    """The domains world (`syncnorm.worlds.World`)."""

    def fit(self, run: Run, execution: Execution) -> Result:
        """Train and evaluate a run."""
        return fit(run, execution)

    def check(self, run: Run) -> None:
        """Raise the `UserError` that the run would raise, without training it."""
        prepared = prepare(run, torch.device("cpu"))
        warn_of_small_groups(run, prepared.model, prepared.pool.x)

    def forget(self) -> None:
        """Drop the data sets and trainings that this process caches."""
        load_pool.cache_clear()
        _KEPT.forget()
        MEMORY.clear()

    def data(self, run: Run) -> Pool:
        """Return a run's data."""
        return load_domains(run, torch.device("cpu"))

    def pixels(self, run: Run) -> Problem:
        """Return the training samples of all seen domains, and the tested domains' test sets, which weigh alike."""
        world, pool = domains(run), self.data(run)
        seen = [index for index, name in enumerate(pool.names) if name not in world.unseen]
        tested = [index for index in range(len(pool.names)) if index not in seen] or seen
        train = torch.cat([torch.arange(pool.starts[index], pool.starts[index + 1]) for index in seen])
        tests = [pool.tests(index) for index in tested]
        test = torch.cat([torch.arange(place.start, place.stop) for place in tests])
        weights = torch.cat([torch.full((size,), 1 / size) for place in tests if (size := place.stop - place.start)])
        return plain_problem(pool.x[train], pool.y[train], pool.test_x[test], pool.test_y[test], weights)

    def metrics(self, run: Run) -> list[str]:
        """Return the names of the metrics that a run may have."""
        main, others = task_named(run.task).metric, other_metrics(run)
        named = [f"{metric}_{name}" for metric in (main, *others) for name in domains(run).domains]
        return [main, f"{main}_seen", *named, *others, "loss", "train_loss", "steps", *by_validation(run)]

    def histories(self, run: Run) -> list[str]:
        """Return the names of the histories that a run will have."""
        main = task_named(run.task).metric
        unseen = [f"unseen_{main}"] if domains(run).unseen else []
        return ["train_loss", f"seen_{main}", *unseen, *([f"validation_{main}"] if run.data.validation else [])]

    def profiles(self, run: Run) -> list[str]:
        """Return the names of the profiles that a run will have: none."""
        return []

    def norm_layer(self, norm: Norm, world: Domains) -> tuple[str, dict[str, Any]]:
        """Return the layer that computes `norm` on the run's ranks, with the number of training domains and of the
        samples that share statistics filled in."""
        each = world.batch // max(world.ranks, 1)
        facts: dict[WorldFact, int] = {
            "domains": len(world.domains) - len(world.unseen),
            "batch": sharing_samples(norm, world.ranks, each),
        }
        return layer_on_ranks(norm, world.ranks, world.engine, facts)


WORLD = DomainsWorld()
