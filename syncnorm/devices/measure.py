"""Evaluation of a model trained on devices, with rank 0's or pooled statistics, at the end and during training."""

import copy
from typing import Any

import torch
from torch import nn

from syncnorm.config import Run, evaluated_at, layout
from syncnorm.data import Dataset
from syncnorm.devices.prepare import devices, goes_by_device
from syncnorm.devices.rank_statistics import statistics_by_rank, use_statistics
from syncnorm.devices.virtual_ranks import rank_0
from syncnorm.norms import SyncBatchNorm
from syncnorm.samples import sample_details
from syncnorm.surgery.convert import layers_with_statistics
from syncnorm.training.classifier import Classifier
from syncnorm.training.evaluation import accuracy_and_loss, evaluate, predict
from syncnorm.training.metrics import own_metrics


class DevicesClassifier(Classifier):
    """A classifier that is evaluated every `evaluate_every` epochs, in the same way as at the end of the run."""

    def __init__(self, run: Run, model: nn.Module, data: Dataset) -> None:
        super().__init__(model, optim=run.optim)
        self._run, self._data = run, data
        if run.evaluate_every:
            self.history |= {"accuracy": [], "accuracy_at": []}

    def on_train_epoch_end(self) -> None:
        """Record the epoch's mean loss, and the accuracy of a copy if it is due."""
        super().on_train_epoch_end()
        if evaluated_at(self._run, self.epochs_done, self._run.optim.epochs):
            metrics, *_ = measure(self._run, rank_0(copy.deepcopy(self.model)), self._data)
            self.history["accuracy"].append(metrics["accuracy"])
            self.history["accuracy_at"].append(float(self.epochs_done))


def measure(run: Run, model: nn.Module, data: Dataset) -> tuple[dict[str, float], str, dict[str, Any]]:
    """Return a trained model's metrics on the test set, which statistics gave `accuracy`, and each sample's score.

    If ranks have their own running statistics, both rank 0's and the pooled ones are evaluated.
    """
    metrics: dict[str, float] = {}
    statistics = statistics_by_rank(model)
    chosen = devices(run).buffers
    if statistics:
        for whose in ("rank0", "pooled"):
            use_statistics(model, statistics, whose)
            metrics[f"accuracy_{whose}"], _ = evaluate(model, data.test_x, data.test_y)
        use_statistics(model, statistics, chosen)
    logits = predict(model, data.test_x)
    labels = data.test_y.to(logits.device)
    metrics["accuracy"], metrics["loss"] = accuracy_and_loss(logits, labels)
    metrics |= own_metrics(logits, labels)
    squares = [p.detach().double().square().sum() for p in model.parameters()]
    metrics["parameter_norm"] = torch.stack(squares).sum().sqrt().item()
    right = (logits.argmax(1) == labels).cpu()
    details = sample_details(right, labels.cpu(), origin=data.origin)
    return metrics, evaluated_by(run, model, chosen if statistics else "rank0"), details


def evaluated_by(run: Run, model: nn.Module, whose: str) -> str:
    """Return in words which running statistics evaluated `model`: `whose` is "rank0" or "pooled"."""
    layers = layers_with_statistics(model)
    if not layers:
        return "none"
    ranks, _ = layout(devices(run))
    if ranks > 1 and goes_by_device(run.norm.name):
        return {"rank0": "own (rank 0)", "pooled": "pooled (all ranks)"}[whose]
    return "shared (all ranks)" if any(isinstance(layer, SyncBatchNorm) for layer in layers) else "own (one device)"
