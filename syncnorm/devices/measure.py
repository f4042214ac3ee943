"""Evaluation of a model trained on devices, with rank 0's or pooled statistics, at the end and during training."""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from syncnorm.config import Run, evaluated_at, layout, validated_at
from syncnorm.data import Dataset
from syncnorm.devices.prepare import devices
from syncnorm.norms import SyncBatchNorm, norm_spec
from syncnorm.norms.core.ranks.alone import alone
from syncnorm.norms.core.ranks.collectives import rank_and_size
from syncnorm.samples import ACCURACY, sample_details
from syncnorm.surgery.conversion.convert import layers_with_statistics
from syncnorm.surgery.layers.replace import copied
from syncnorm.tasks import task_named
from syncnorm.training.evaluation import evaluate, predict, score_and_loss
from syncnorm.training.lightning.classifier import Classifier
from syncnorm.training.metrics import own_metrics
from syncnorm.training.ranks.layers import goes_by_rank
from syncnorm.training.ranks.rank_statistics import Statistics, statistics_by_rank, use_statistics
from syncnorm.training.ranks.virtual_ranks import rank_0
from syncnorm.training.selection import Best
from syncnorm.waiting import waiting


class DevicesClassifier(Classifier):
    """A classifier that is evaluated every `evaluate_every` epochs, in the same way as at the end of the run.

    best: the model after the epoch with the best validation accuracy, if the run selects by it.
    """

    def __init__(self, run: Run, model: nn.Module, data: Dataset) -> None:
        super().__init__(model, optim=run.optim, task=run.task, precision=run.precision)
        self._run, self._data = run, data
        self.best = Best()
        if run.evaluate_every:
            self.history |= {self.task.metric: [], "accuracy_at": []}
        if validated_at(run, 1, 1):
            self.history[self.task.named("validation_accuracy")] = []

    def on_train_epoch_end(self) -> None:
        """Record the epoch's mean loss, and the main metric of a copy if it is due."""
        super().on_train_epoch_end()
        if validated_at(self._run, self.epochs_done, self._run.optim.epochs):
            name = self.task.named("validation_accuracy")
            score = validate(self._run, rank_0(copied(self.model)), self._data)[name]
            self.history[name].append(score)
            if self._run.select == "best":
                self.best.offer(self.epochs_done, score, self.model)
        if evaluated_at(self._run, self.epochs_done, self._run.optim.epochs):
            metrics, *_ = measure(self._run, rank_0(copied(self.model)), self._data)
            name = self.task.metric
            self.history[name].append(metrics[name])
            self.history["accuracy_at"].append(float(self.epochs_done))

    def remember(self) -> dict[str, Any]:
        """Return the history and the best model so far, as plain data and tensors, for `recall`."""
        return {**super().remember(), "best": self.best.remember()}

    def recall(self, state: dict[str, Any]) -> None:
        """Restore the state that `remember` returned."""
        super().recall(state)
        self.best.recall(state["best"])


def validate(run: Run, model: nn.Module, data: Dataset) -> dict[str, float]:
    """Return the validation metrics of a model, with the statistics that `measure` uses for `accuracy`.

    On real ranks, every rank must call this, and gets what rank 0 measures.
    """
    statistics = statistics_by_rank(model)
    if statistics:
        use_statistics(model, statistics, devices(run).buffers)
    with alone():
        scored = evaluate(model, data.validation_x, data.validation_y, task=run.task)
    found = torch.tensor(scored, dtype=torch.float64)
    if rank_and_size(None)[1] > 1:
        found = found.to(next(model.parameters()).device if dist.get_backend() == "nccl" else "cpu")
        with waiting():
            dist.broadcast(found, src=0)
    score, loss = found.tolist()
    return {task_named(run.task).named("validation_accuracy"): score, "validation_loss": loss}


def measure(run: Run, model: nn.Module, data: Dataset) -> tuple[dict[str, float], str, dict[str, Any]]:
    """Return a trained model's metrics on the test set, which statistics gave the main one, and each sample's score.

    If ranks have their own running statistics, both rank 0's and the pooled ones are evaluated.
    """
    statistics = statistics_by_rank(model)
    with alone():  # every rank has the whole test set
        return _measure(run, model, data, statistics)


def _measure(
    run: Run, model: nn.Module, data: Dataset, statistics: Statistics
) -> tuple[dict[str, float], str, dict[str, Any]]:
    metrics: dict[str, float] = {}
    main = task_named(run.task).metric
    chosen = devices(run).buffers
    if statistics:
        for whose in ("rank0", "pooled"):
            use_statistics(model, statistics, whose)
            metrics[f"{main}_{whose}"], _ = evaluate(model, data.test_x, data.test_y, task=run.task)
        use_statistics(model, statistics, chosen)
    outputs = predict(model, data.test_x)
    targets = data.test_y.to(outputs.device)
    metrics[main], metrics["loss"] = score_and_loss(run.task, outputs, targets)
    metrics |= own_metrics(run, outputs, targets)
    squares = [p.detach().double().square().sum() for p in model.parameters()]
    metrics["parameter_norm"] = torch.stack(squares).sum().sqrt().item()
    scores = task_named(run.task).scores(outputs, targets).cpu()
    labels = targets.cpu() if main == ACCURACY else None
    details = sample_details(scores, labels, origin=data.origin, metric=main)
    return metrics, evaluated_by(run, model, chosen if statistics else "rank0"), details


def evaluated_by(run: Run, model: nn.Module, whose: str) -> str:
    """Return in words which running statistics evaluated `model`: `whose` is "rank0" or "pooled"."""
    layers = layers_with_statistics(model)
    if not layers:
        return "none"
    ranks, _ = layout(devices(run))
    if ranks > 1 and goes_by_rank(run.norm):
        return {"rank0": "own (rank 0)", "pooled": "pooled (all ranks)"}[whose]
    spec = norm_spec(run.norm.name)
    shared = spec.shares(run.norm.options) or any(isinstance(layer, SyncBatchNorm) for layer in layers)
    return "shared (all ranks)" if shared else "own (one device)"
