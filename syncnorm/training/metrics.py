"""Metrics beside the main one, measured wherever it is, in every world: a task's further ones, and users' own."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from syncnorm.config import Run
from syncnorm.errors import UserError, where_raised
from syncnorm.registry import Registry, check_named
from syncnorm.tasks import task_named

Metric = Callable[..., float]
"""Maps outputs (N, classes) and targets (N,) to a number; it may have a parameter `client`, the client's number."""
METRICS: Registry[Metric] = Registry("metric", {})


def register_metric(name: str) -> Callable[[Metric], Metric]:
    """Register a metric: a function `(logits, labels) -> float`, which appears in every row under its name.

    It gets logits (N, classes) and labels (N,) of a test set, both on the model's device, without gradients. Of
    another task than classification it gets the outputs and targets.

    In the clients world it is measured at every client, on the client's test samples with weight above 0, and the row
    has the mean over clients; `global_NAME` is that of the global model. A function with a parameter `client` gets
    the client's number (None elsewhere), and one with `weights` gets all samples and their weights (N,), which sum to
    1. In the domains world the row has the mean over the same domains as `accuracy`, and `NAME_DOMAIN` for each
    domain.

    >>> @register_metric("top2")
    ... def top2(logits, labels):
    ...     return (logits.topk(2).indices == labels[:, None]).any(1).float().mean().item()

    Raises:
        UserError: a name that is taken, or something that does not take logits and labels; when a run starts, the
            name of one of syncnorm's own metrics; at its end, a value that is not a finite number.
    """
    check_named(name, "syncnorm.register_metric")

    def register(function: Metric) -> Metric:
        if not callable(function):
            raise UserError(f"metric '{name}' is a {type(function).__name__}: register a function (logits, labels).")
        _check_call(name, function)
        METRICS.add(name, function)
        return function

    return register


def _check_call(name: str, function: Metric) -> None:
    asked = inspect.signature(function)
    more = {key: None for key in ("client", "weights") if key in asked.parameters}
    try:
        asked.bind(None, None, **more)
    except TypeError as error:
        raise UserError(f"metric '{name}' must be a function (logits, labels): {error}.") from None


def other_metrics(run: Run) -> list[str]:
    """Return the names of a run's metrics beside the main one: its task's further ones, and the registered ones."""
    return [*task_named(run.task).also, *METRICS]


@torch.no_grad()
def own_metrics(
    run: Run, outputs: Tensor, targets: Tensor, client: int | None = None, weights: Tensor | None = None
) -> dict[str, float]:
    """Return the `other_metrics` of outputs (N, ...) and targets (N, ...), by name; weights (N,) are a client's.

    They are nan where an output is not finite: the run diverged, which is no mistake of a metric's.
    """
    if not outputs.isfinite().all():
        return dict.fromkeys(other_metrics(run), math.nan)
    kept = slice(None) if weights is None else weights > 0
    found = dict(task_named(run.task).more(outputs[kept], targets[kept]))
    return found | {name: _measured(name, METRICS[name], outputs, targets, client, weights) for name in METRICS}


def _measured(
    name: str, metric: Metric, logits: Tensor, labels: Tensor, client: int | None, weights: Tensor | None
) -> float:
    asked = inspect.signature(metric).parameters
    more: dict[str, Any] = {key: value for key, value in (("client", client), ("weights", weights)) if key in asked}
    if weights is not None and "weights" not in asked:
        logits, labels = logits[weights > 0], labels[weights > 0]
    try:
        value = metric(logits, labels, **more)
    except Exception as error:
        raise UserError(f"metric '{name}': {where_raised(error)}: {type(error).__name__}: {error}") from error
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise UserError(f"metric '{name}' returned {value!r}: it must return a number.") from None
    if not math.isfinite(number):
        raise UserError(f"metric '{name}' returned {number}: it must return a finite number.")
    return number
