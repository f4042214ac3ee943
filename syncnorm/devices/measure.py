"""Evaluation of a model trained on devices, with rank 0's or pooled statistics, at the end and during training."""

import copy

import torch
from torch import nn

from syncnorm.config import Run, evaluated_at, layout
from syncnorm.data import Dataset
from syncnorm.devices.prepare import devices, goes_by_device
from syncnorm.devices.rank_statistics import statistics_by_rank, use_statistics
from syncnorm.devices.virtual_ranks import rank_0
from syncnorm.norms import SyncBatchNorm
from syncnorm.surgery.convert import layers_with_statistics
from syncnorm.tasks import task_named
from syncnorm.training.classifier import Classifier
from syncnorm.training.evaluation import evaluate, predict, score_and_loss
from syncnorm.training.metrics import own_metrics


class DevicesClassifier(Classifier):
    """A classifier that is evaluated every `evaluate_every` epochs, in the same way as at the end of the run."""

    def __init__(self, run: Run, model: nn.Module, data: Dataset) -> None:
        super().__init__(model, optim=run.optim, task=run.task)
        self._run, self._data = run, data
        if run.evaluate_every:
            self.history |= {self.task.metric: [], "accuracy_at": []}

    def on_train_epoch_end(self) -> None:
        """Record the epoch's mean loss, and the main metric of a copy if it is due."""
        super().on_train_epoch_end()
        if evaluated_at(self._run, self.epochs_done, self._run.optim.epochs):
            metrics, _ = measure(self._run, rank_0(copy.deepcopy(self.model)), self._data)
            name = self.task.metric
            self.history[name].append(metrics[name])
            self.history["accuracy_at"].append(float(self.epochs_done))


def measure(run: Run, model: nn.Module, data: Dataset) -> tuple[dict[str, float], str]:
    """Return the metrics of a trained model on the test set, and which statistics gave the main one.

    If ranks have their own running statistics, both rank 0's and the pooled ones are evaluated.
    """
    metrics: dict[str, float] = {}
    main = task_named(run.task).metric
    statistics = statistics_by_rank(model)
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
    return metrics, evaluated_by(run, model, chosen if statistics else "rank0")


def evaluated_by(run: Run, model: nn.Module, whose: str) -> str:
    """Return in words which running statistics evaluated `model`: `whose` is "rank0" or "pooled"."""
    layers = layers_with_statistics(model)
    if not layers:
        return "none"
    ranks, _ = layout(devices(run))
    if ranks > 1 and goes_by_device(run.norm.name):
        return {"rank0": "own (rank 0)", "pooled": "pooled (all ranks)"}[whose]
    return "shared (all ranks)" if any(isinstance(layer, SyncBatchNorm) for layer in layers) else "own (one device)"
