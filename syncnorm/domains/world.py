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

import numpy as np
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
from syncnorm.domains.adaptation import TargetBatches, logits_of, statistics_of
from syncnorm.domains.batches import Batch, DomainBatches
from syncnorm.domains.prepare import Prepared, domains, load_domains, prepare
from syncnorm.environment import environment
from syncnorm.norms import domain
from syncnorm.norms.make import options_in_world
from syncnorm.samples import ACCURACY, sample_details
from syncnorm.seeds import derive
from syncnorm.surgery.layers.replace import copied
from syncnorm.tasks import task_named
from syncnorm.training import Classifier
from syncnorm.training.evaluation import score_and_loss
from syncnorm.training.kept import LastTraining
from syncnorm.training.lightning.trainer import optimiser_steps, run_trainer
from syncnorm.training.metrics import other_metrics, own_metrics
from syncnorm.training.profiles.small_groups import warn_of_small_groups
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


_KEPT: LastTraining[Trained] = LastTraining()


def fit(run: Run, execution: Execution | None = None) -> Result:
    """Train one model on a run's seen domains, and test it on all domains.

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
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prepared = prepare(run, device)
    trained, fresh = _KEPT.of(run, str(device), lambda: train(training_of(run), prepared, device, execution))
    before = trained.seconds_before if fresh else 0.0
    metrics, details = _test(run, prepared, trained.model)
    result = Result(
        run_id=run_id(run),
        config=describe(run),
        metrics={
            **metrics,
            **_validation(run, prepared, trained.model),
            **({"epoch": float(trained.epoch)} if run.select == "best" else {}),
            "train_loss": trained.history["train_loss"][-1],
            "steps": float(trained.steps),
        },
        evaluated_by=statistics_of(world.adapt, trained.model),
        seconds=before + time.perf_counter() - started,
        environment=environment(),
        history=trained.history,
        details=details,
    )
    result = marked(result)
    if execution and execution.model:
        shape, classes = tuple(prepared.pool.x.shape[1:]), len(prepared.pool.class_names)
        save_model(execution.model, run, result, trained.model, shape, classes)
    return result


def _test(run: Run, prepared: Prepared, model: nn.Module) -> tuple[dict[str, float], dict[str, Any]]:
    """Return the metrics of a trained model on every domain, their means over the domains that count, and the scores
    of these domains' samples."""
    task, by_domain = task_named(run.task), dict[str, list[float]]()
    main, scores = task.metric, []
    for index in range(len(prepared.pool.names)):
        outputs, y = predicted(run, prepared, model, index, domains(run).adapt)
        score, loss = score_and_loss(run.task, outputs, y)
        for name, value in {main: score, "loss": loss, **own_metrics(run, outputs, y)}.items():
            by_domain.setdefault(name, []).append(value)
        scores.append(task.scores(outputs, y).cpu())
    tested = prepared.unseen or prepared.seen
    means = {name: fmean(values[index] for index in tested) for name, values in by_domain.items()}
    named = {
        f"{name}_{domain}": value
        for name, values in by_domain.items()
        if name != "loss"
        for domain, value in zip(prepared.pool.names, values, strict=True)
    }
    seen = fmean(by_domain[main][index] for index in prepared.seen)
    metrics = {main: means.pop(main), f"{main}_seen": seen, **named, **means}
    return metrics, _samples(run, prepared, [(index, scores[index]) for index in tested])


def _samples(run: Run, prepared: Prepared, scores: list[tuple[int, Tensor]]) -> dict[str, Any]:
    """Return the details on the test samples of domains, given their scores in the order of the test.

    All domains count alike in the main metric, so each sample has the weight 1 / its domain's size.
    """
    pool, main = prepared.pool, task_named(run.task).metric
    place = torch.cat([_tested(run, pool.names[index], pool.tests(index), pool.test_strata) for index, _ in scores])
    weight = torch.cat([torch.full((len(one),), 1 / len(one), dtype=torch.float64) for _, one in scores])
    weight = weight / weight.mean()
    score = weight * torch.cat([one for _, one in scores])
    labels = pool.test_y.cpu()[place] if main == ACCURACY else None
    origin = None if pool.origin is None else pool.origin[place]
    return sample_details(score, labels, weight, origin, main)


class DomainClassifier(Classifier):
    """A classifier whose batches include each sample's domain; it is tested after epochs, without adaptation."""

    def __init__(self, run: Run, prepared: Prepared) -> None:
        super().__init__(prepared.model, optim=run.optim, task=run.task, precision=run.precision)
        self._run, self._prepared = run, prepared
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
        if self._run.evaluate_every:
            if not evaluated_at(self._run, self.epochs_done, self._run.optim.epochs):
                return
            self.history["accuracy_at"].append(float(self.epochs_done))
        for name, group in self._groups.items():
            scores = [measure(self._run, self._prepared, self.model, index, "none")[0] for index in group]
            self.history[name].append(fmean(scores))
        if self._run.data.validation:
            name = self.task.named("validation_accuracy")
            score = _validation(self._run, self._prepared, self.model, "none")[name]
            self.history[name].append(score)
            if self._run.select == "best":
                self.best.offer(self.epochs_done, score, self.model)

    def remember(self) -> dict[str, Any]:
        """Return the history and the best model so far, as plain data and tensors, for `recall`."""
        return {**super().remember(), "best": self.best.remember()}

    def recall(self, state: dict[str, Any]) -> None:
        """Restore the state that `remember` returned."""
        super().recall(state)
        self.best.recall(state["best"])


def train(run: Run, prepared: Prepared, device: torch.device, execution: Execution | None = None) -> Trained:
    """Train the prepared model, and return it with its history."""
    torch.manual_seed(derive("training", run.seed, 0))
    classifier = DomainClassifier(run, prepared)
    kind, workers = run.data.augment, run.data.workers
    batches = DomainBatches(prepared.pool, prepared.seen, domains(run), run.seed, kind, workers)
    run_trainer(run, classifier, batches, execution or Execution(), accelerator=device.type, devices=1)
    classifier.best.restore(classifier.model)
    steps, before = optimiser_steps(run, batches), classifier.seconds_before
    return Trained(classifier.model.to(device), classifier.history, steps, before, classifier.best.epoch)


def _validation(run: Run, prepared: Prepared, model: nn.Module, adapt: str | None = None) -> dict[str, float]:
    """Return the validation metrics: means over seen domains, under an adaptation (None: the run's)."""
    if not run.data.validation:
        return {}
    adapt = domains(run).adapt if adapt is None else adapt
    scores = [
        score_and_loss(run.task, *predicted(run, prepared, model, index, adapt, validation=True))
        for index in prepared.seen
    ]
    accuracies, losses = zip(*scores, strict=True)
    return {task_named(run.task).named("validation_accuracy"): fmean(accuracies), "validation_loss": fmean(losses)}


def measure(run: Run, prepared: Prepared, model: nn.Module, index: int, adapt: str) -> tuple[float, float]:
    """Return `(main metric, loss)` of `model` on the test set of a domain, under an adaptation."""
    return score_and_loss(run.task, *predicted(run, prepared, model, index, adapt))


def predicted(
    run: Run, prepared: Prepared, model: nn.Module, index: int, adapt: str, validation: bool = False
) -> tuple[Tensor, Tensor]:
    """Return outputs (n, ...) and targets (n, ...) of the test (or validation) set of a domain, under an adaptation.

    The model does not change: a copy is adapted.
    """
    world, pool = domains(run), prepared.pool
    name, tests = pool.names[index], pool.validations(index) if validation else pool.tests(index)
    x, y = (pool.validation_x, pool.validation_y) if validation else (pool.test_x, pool.test_y)
    training = slice(pool.starts[index], pool.starts[index + 1])
    strata = pool.validation_strata if validation else pool.test_strata
    order = _tested(run, pool.names[index], tests, strata)
    unlabelled = _order(world, pool.strata[training].cpu(), derive("stream order", run.seed, name)) + training.start
    held, device = pool.x.device, next(model.parameters()).device
    test = TargetBatches(
        batches=x[order.to(held)].to(device).split(world.test_batch),  # type: ignore[no-untyped-call]
        unlabelled=pool.x[unlabelled[: world.adapt_samples].to(held)].to(device),
        known=prepared.seen.index(index) if index in prepared.seen else None,
        chunk=world.test_batch,
        options=world.adapt_options if adapt == world.adapt else {},
    )
    return logits_of(adapt, copied(model), test), y[order.to(held)].to(device)


def _tested(run: Run, name: str, tests: slice, labels: Tensor) -> Tensor:
    """Return the samples `tests` of domain `name` in the order of its test: int64 (n,) places in the pool."""
    places: Tensor = _order(domains(run), labels[tests].cpu(), derive("test order", run.seed, name)) + tests.start
    return places


def _order(world: Domains, labels: Tensor, seed: int) -> Tensor:
    """Return the order of samples: random, or then sorted by label."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(labels)))
    return order[labels[order].argsort(stable=True)] if world.test_order == "sorted" else order


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
        """Return the layer that computes `norm`, with the number of training domains and the batch size filled in."""
        seen = len(world.domains) - len(world.unseen)
        return norm.name, options_in_world(norm.name, norm.options, {"domains": seen, "batch": world.batch})


WORLD = DomainsWorld()
