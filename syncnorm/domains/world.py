"""One run of the domains world, from its configuration to its result.

from syncnorm.config import Domains, Norm, Run
from syncnorm.domains import fit
world = Domains(("digits", "digits-inverted", "digits-noisy"), unseen=("digits-noisy",), adapt="adabn")
print(fit(Run(norm=Norm("bn"), world=world)).metrics)
"""

import copy
import time
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syncnorm.config import (
    Adaptation,
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
from syncnorm.data.domain_pool import load_pool
from syncnorm.domains.adaptation import Test, logits_of, statistics_of
from syncnorm.domains.batches import Batch, DomainBatches
from syncnorm.domains.prepare import Prepared, domains, prepare
from syncnorm.environment import environment
from syncnorm.norms import domain
from syncnorm.seeds import derive
from syncnorm.training import Classifier
from syncnorm.training.saved import check_saving, save_model
from syncnorm.training.trainer import optimiser_steps, run_trainer


@dataclass(frozen=True)
class Trained:
    """What the training of a run gave."""

    model: nn.Module
    history: dict[str, list[float]]
    steps: int
    seconds_before: float
    """What it took before it was killed."""


_KEPT: dict[str, Trained] = {}
"""The last training, by its key: runs that differ in their test alone share it."""


def fit(run: Run, execution: Execution | None = None) -> Result:
    """Train one model on the domains that a run has seen, and test it on all of them.

    Runs that differ in what is done at test time alone have the same trained model: where they follow each other in
    one process, it is trained once, and `seconds` are those of the test alone.

    Raises:
        UserError: for anything in `run` that does not work, before training starts.
    """
    started = time.perf_counter()
    check_saving(execution)
    world = domains(run)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prepared = prepare(run, device)
    key = f"{run_id(training_of(run))} {run.data.path} {device}"
    before = 0.0
    if key not in _KEPT:
        _KEPT.clear()
        _KEPT[key] = train(training_of(run), prepared, device, execution)
        before = _KEPT[key].seconds_before
    trained = _KEPT[key]
    metrics, losses = {}, {}
    for index, name in enumerate(prepared.pool.names):
        metrics[f"accuracy_{name}"], losses[name] = measure(run, prepared, trained.model, index, world.adapt)
    seen = fmean(metrics[f"accuracy_{prepared.pool.names[index]}"] for index in prepared.seen)
    tested = prepared.unseen or prepared.seen
    result = Result(
        run_id=run_id(run),
        config=describe(run),
        metrics={
            "accuracy": fmean(metrics[f"accuracy_{prepared.pool.names[index]}"] for index in tested),
            "accuracy_seen": seen,
            **metrics,
            "loss": fmean(losses[prepared.pool.names[index]] for index in tested),
            "train_loss": trained.history["train_loss"][-1],
            "steps": float(trained.steps),
        },
        evaluated_by=statistics_of(world.adapt, trained.model),
        seconds=before + time.perf_counter() - started,
        environment=environment(),
        history=trained.history,
    )
    result = marked(result)
    if execution and execution.model:
        shape, classes = tuple(prepared.pool.x.shape[1:]), len(prepared.pool.class_names)
        save_model(execution.model, run, result, trained.model, shape, classes)
    return result


class DomainClassifier(Classifier):
    """A classifier whose batches say each sample's domain; it is tested after its epochs, as it is."""

    def __init__(self, run: Run, prepared: Prepared) -> None:
        super().__init__(prepared.model, optim=run.optim)
        self._run, self._prepared = run, prepared
        self._groups = {"seen_accuracy": prepared.seen}
        if prepared.unseen:
            self._groups["unseen_accuracy"] = prepared.unseen
        self.history |= {name: [] for name in self._groups}
        if run.evaluate_every:
            self.history["accuracy_at"] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # type: ignore[override]
        """Return the loss of a batch of samples, labels and domains."""
        x, y, ids = batch
        with domain(ids):
            return super().training_step((x, y), batch_idx)

    def on_train_epoch_end(self) -> None:
        """Keep the epoch's mean loss, and the accuracy on seen and on unseen domains if it is due."""
        super().on_train_epoch_end()
        if self._run.evaluate_every:
            if not evaluated_at(self._run, self.epochs_done, self._run.optim.epochs):
                return
            self.history["accuracy_at"].append(float(self.epochs_done))
        for name, group in self._groups.items():
            scores = [measure(self._run, self._prepared, self.model, index, "none")[0] for index in group]
            self.history[name].append(fmean(scores))


def train(run: Run, prepared: Prepared, device: torch.device, execution: Execution | None = None) -> Trained:
    """Train the prepared model, and return it with what its epochs gave."""
    torch.manual_seed(derive("training", run.seed, 0))
    classifier = DomainClassifier(run, prepared)
    batches = DomainBatches(prepared.pool, prepared.seen, domains(run), run.seed, run.data.augment)
    run_trainer(run, classifier, batches, execution or Execution(), accelerator=device.type, devices=1)
    steps, before = optimiser_steps(run, batches), classifier.seconds_before
    return Trained(classifier.model.to(device), classifier.history, steps, before)


def measure(run: Run, prepared: Prepared, model: nn.Module, index: int, adapt: Adaptation) -> tuple[float, float]:
    """Return `(accuracy, cross-entropy in nats)` of `model` on the test set of a domain, under an adaptation.

    The model stays as it is: what adapts is a copy.
    """
    world, pool = domains(run), prepared.pool
    name, tests = pool.names[index], pool.tests(index)
    training = slice(pool.starts[index], pool.starts[index + 1])
    order = _order(world, pool.test_y[tests].cpu(), derive("test order", run.seed, name)) + tests.start
    unlabelled = _order(world, pool.y[training].cpu(), derive("stream order", run.seed, name)) + training.start
    device = pool.x.device
    test = Test(
        batches=pool.test_x[order.to(device)].split(world.test_batch),  # type: ignore[no-untyped-call]
        unlabelled=pool.x[unlabelled[: world.adapt_samples].to(device)],
        known=prepared.seen.index(index) if index in prepared.seen else None,
        chunk=world.test_batch,
        options=world.adapt_options if adapt == world.adapt else {},
    )
    logits = logits_of(adapt, copy.deepcopy(model), test)
    y = pool.test_y[order.to(device)]
    return (logits.argmax(1) == y).double().mean().item(), F.cross_entropy(logits, y).item()


def _order(world: Domains, labels: Tensor, seed: int) -> Tensor:
    """Return the order in which samples come: at random, or sorted by label after that."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(labels)))
    return order[labels[order].argsort(stable=True)] if world.test_order == "sorted" else order


class DomainsWorld:
    """What the engine asks of the domains world (`syncnorm.worlds.World`)."""

    def fit(self, run: Run, execution: Execution) -> Result:
        """Train and evaluate a run."""
        return fit(run, execution)

    def check(self, run: Run) -> None:
        """Raise what the run would end with, without training it."""
        prepare(run, torch.device("cpu"))

    def forget(self) -> None:
        """Drop the data sets and the trainings that this process keeps."""
        load_pool.cache_clear()
        _KEPT.clear()

    def metrics(self, run: Run) -> list[str]:
        """Return the names of the metrics that a run may have."""
        by_domain = [f"accuracy_{name}" for name in domains(run).domains]
        return ["accuracy", "accuracy_seen", *by_domain, "loss", "train_loss", "steps"]

    def norm_layer(self, norm: Norm, world: Domains) -> tuple[str, dict[str, Any]]:
        """Return the layer that plays `norm`.

        A norm that tells domains apart has as many as train, and one that asks for the batch size of training gets
        it.
        """
        seen = len(world.domains) - len(world.unseen)
        counted = {"domain_bn": {"domains": seen}, "eval_norm": {"batch": world.batch}}.get(norm.name, {})
        return norm.name, {**counted, **norm.options}


WORLD = DomainsWorld()
