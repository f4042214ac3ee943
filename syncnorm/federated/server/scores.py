"""Scores of models on clients' own test data, their summary, and the drift of statistics."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor, nn

from syncnorm.federated.federation import CHUNK, Federation
from syncnorm.moments import Moments
from syncnorm.samples import ACCURACY, FURTHER, sample_details
from syncnorm.surgery.adaptation.recalibrate import OF_SAMPLES, layer_statistics, statistics_entries
from syncnorm.training.evaluation import predict, score_and_loss
from syncnorm.training.metrics import own_metrics

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Score:
    """The score of a model on one client's own test data."""

    client: int
    accuracy: float
    """Of another task than classification, its main metric."""
    loss: float
    samples: int
    """Number of the client's training samples."""
    reestimated: float | None = None
    """Accuracy with running statistics re-estimated on the client's training images, without their labels."""
    moments: dict[str, Moments] = field(default_factory=dict)
    """Those statistics, as `layer_statistics` gives them."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Registered metrics, by name."""
    by_sample: Tensor | None = None
    """Each test sample's score (`Task.scores`): (n,); 1 or 0 of classification. None if the client did not say."""
    again_by_sample: Tensor | None = None
    """The same with re-estimated statistics."""


def score(federation: Federation, client: int, state: State) -> Score:
    """Score a model with these entries at a client, unchanged and with re-estimated batch norms."""
    x, y, weights = federation.population.test(client)
    outputs = predict(federation.models.with_state(state), x, CHUNK)
    y = y.to(outputs.device)
    accuracy, loss = score_and_loss(federation.run.task, outputs, y, weights)
    scores = federation.task.scores(outputs, y)
    metrics = own_metrics(federation.run, outputs, y, client, weights.to(outputs))
    own = federation.population.x[federation.population.train(client)]
    # With one sample, a linear layer's statistics have no variance.
    if not federation.layout.layers or len(own) < 2:
        return Score(client, accuracy, loss, len(own), metrics=metrics, by_sample=scores)
    # Equal parts: a last part with a single sample would have no variance in a linear layer.
    moments = layer_statistics(federation.models.with_state(state), _on(federation, own))
    again = {**state, **federation.layout.with_aliases(statistics_entries(moments))}
    outputs = predict(federation.models.with_state(again), x, CHUNK)
    reestimated, _ = score_and_loss(federation.run.task, outputs, y, weights)
    return Score(
        client,
        accuracy,
        loss,
        len(own),
        reestimated,
        moments,
        metrics,
        by_sample=scores,
        again_by_sample=federation.task.scores(outputs, y),
    )


def _on(federation: Federation, x: Tensor) -> list[Tensor]:
    """Return a client's samples in equal parts, on the device that trains."""
    return [part.to(federation.device) for part in x.tensor_split(-(-len(x) // CHUNK))]


def validate(federation: Federation, client: int, state: State) -> tuple[float, float]:
    """Return a model's main metric and loss on a client's validation samples."""
    index = federation.population.validation(client)
    x, y = federation.population.x[index], federation.population.y[index]
    return weighted(federation.models.with_state(state), x, y, uniform(len(index)), federation.run.task)


@torch.no_grad()
def weighted(
    model: nn.Module, x: Tensor, y: Tensor, weights: Tensor, task: str = "classification"
) -> tuple[float, float]:
    """Return `(main metric, loss)` of a model in evaluation mode; weights (n,) sum to 1."""
    outputs = predict(model, x, CHUNK)
    return score_and_loss(task, outputs, y.to(outputs.device), weights)


def uniform(samples: int) -> Tensor:
    """Return equal weights that sum to 1: float64 (samples,)."""
    return torch.full((samples,), 1 / samples, dtype=torch.float64)


def summary(federation: Federation, scores: Sequence[Score]) -> dict[str, float]:
    """Return the metrics of the clients that train: mean, worst, spread, weighted by samples, and by domain."""
    accuracies = [one.accuracy for one in scores]
    samples = sum(one.samples for one in scores)
    found = {
        "accuracy": fmean(accuracies),
        "client_accuracy_worst": min(accuracies),
        "client_accuracy_std": stdev(accuracies) if len(accuracies) > 1 else 0.0,
        "client_accuracy_weighted": sum(one.samples * one.accuracy for one in scores) / samples,
        "loss": fmean(one.loss for one in scores),
    }
    again = [one.reestimated for one in scores if one.reestimated is not None]
    if again:
        found |= {"reestimated_accuracy": fmean(again), "reestimated_accuracy_worst": min(again)}
    if len(federation.population.domains) > 1:
        found |= _by_domain(federation, scores)
    others = {name: fmean(one.metrics[name] for one in scores) for name in scores[0].metrics}
    return {federation.task.named(name): value for name, value in found.items()} | others


def scores_by_sample(federation: Federation, scores: Sequence[Score]) -> dict[str, Any]:
    """Return the details on the test samples that the mean accuracy over clients rests on, and, as `FURTHER`, on
    those of the worst client and of re-estimated statistics.

    The worst client's samples are those of the client that is worst in this run, as if it had been chosen before.
    """
    worst = min(scores, key=lambda one: one.accuracy)
    chosen: dict[str, list[tuple[int, Tensor | None]]] = {
        "client_accuracy_worst": [(worst.client, worst.by_sample)],
    }
    again = [one for one in scores if one.reestimated is not None]
    if again:
        worst = min(again, key=lambda one: one.reestimated or 0.0)
        chosen["reestimated_accuracy"] = [(one.client, one.again_by_sample) for one in again]
        chosen["reestimated_accuracy_worst"] = [(worst.client, worst.again_by_sample)]
    named = {federation.task.named(name): some for name, some in chosen.items()}
    further = {name: found for name, some in named.items() if (found := _behind(federation, some))}
    main = _behind(federation, [(one.client, one.by_sample) for one in scores])
    return main | ({FURTHER: further} if further else {})


def _behind(federation: Federation, scores: Sequence[tuple[int, Tensor | None]]) -> dict[str, Any]:
    """Return the details on the test samples behind a mean over clients, given each client's scores.

    With n samples that have a weight at one of K clients, sample i has the weight n / K * sum_k w_ki and the score
    n / K * sum_k w_ki * score_ki, so that the mean of the scores is the metric. Empty if a client did not say its
    samples' scores.
    """
    population, pool = federation.population, federation.population.pool
    weight, score = (torch.zeros(len(pool.test_y), dtype=torch.float64) for _ in range(2))
    for client, by_sample in scores:
        if by_sample is None:
            return {}
        place, own = population.test_places(client), population.test_weights(client).cpu()
        weight.index_add_(0, place, own)
        score.index_add_(0, place, own * by_sample.cpu())
    tested = weight.nonzero()[:, 0]
    share = len(tested) / len(scores)
    origin = None if pool.origin is None else pool.origin.cpu()[tested]
    main = federation.task.metric
    labels = pool.test_y.cpu()[tested] if main == ACCURACY else None
    return sample_details(share * score[tested], labels, share * weight[tested], origin, main)


def _by_domain(federation: Federation, scores: Iterable[Score]) -> dict[str, float]:
    domains: dict[str, list[float]] = {}
    for one in scores:
        domains.setdefault(federation.population.domain(one.client), []).append(one.accuracy)
    return {f"accuracy_{name}": fmean(values) for name, values in domains.items()}


def drift(scores: Sequence[Score]) -> dict[str, object]:
    """Return the distance of each client's statistics from the pooled ones, as plain data with one row per layer.

    This is the Wasserstein-2 distance between diagonal Gaussians, per channel and in units of the pooled standard
    deviation s. With the client's mean m_k and standard deviation s_k of the layer's inputs, under the model that
    evaluates the client, it is

        sqrt(mean over channels of ((m_k - m)^2 + (s_k - s)^2) / s^2).
    """
    layers = [name for name in scores[0].moments if not name.endswith(OF_SAMPLES)]
    values = []
    for layer in layers:
        parts = [one.moments[layer] for one in scores]
        pooled = Moments.pool(parts)
        mean, deviation = pooled.mean, pooled.var().sqrt()
        scale = torch.where(deviation > 0, deviation, 1.0)
        far = [((p.mean - mean) / scale).square() + ((p.var().sqrt() - deviation) / scale).square() for p in parts]
        values.append([one.mean().sqrt().item() for one in far])
    return {"layers": layers, "clients": [one.client for one in scores], "values": values}


def evaluated_by(federation: Federation) -> str:
    """Return which statistics the norm layers used for a run's accuracy."""
    policy, layers = federation.policy, federation.layout.layers
    if not layers:
        return "none"
    if not federation.layout.has_statistics:
        return "batch (the test images at hand)"
    if federation.policy.data == "all":
        return "own (one client with all data)"
    if policy.statistics == "local":
        return "own (each client)"
    if policy.statistics_source in ("before", "after"):
        return "gathered by a pass (all clients)"
    if policy.training == "frozen":
        return "averaged, then frozen (clients)"
    moving = ", moving average" if policy.statistics_source == "seen" else ""
    return f"{'pooled' if policy.statistics == 'pooled' else 'averaged'}{moving} (clients)"
