"""A made-up study: bn loses accuracy at small and at label-sorted batches, the others hardly do."""

from collections.abc import Callable
from pathlib import Path
from random import Random

from syncnorm.config import Result, Run, describe, run_id
from syncnorm.study.rows import Row, finished_row

Fill = Callable[..., Path]
ENVIRONMENT = {"torch": "2.13.0", "python": "3.11", "machine": "2 x test processor"}
EVALUATED_BY = {"bn": "own (rank 0)", "sync_bn": "pooled"}


def fake_metrics(run: Run) -> dict[str, float]:
    """Return metrics that depend on everything but the engine."""
    batch, skew = run.world.per_device_batch or 32, run.world.skew / 100
    level = {"bn": 0.935, "sync_bn": 0.938, "gn": 0.915, "ln": 0.905, "none": 0.84}[run.norm.name]
    if run.norm.name == "bn":
        level -= (0.28 + 0.25 * skew) / batch**1.1 + 0.16 * skew * (1 - batch / 40)
    draw = Random(f"{run.norm.name}/{batch}/{skew}/{run.seed}")
    seed_effect = Random(run.seed).gauss(0, 0.006)
    accuracy = min(1.0, level + seed_effect + draw.gauss(0, 0.004 if run.norm.name != "bn" else 0.012))
    return {"accuracy": accuracy, "test_loss": 1.1 - accuracy}


def fake_row(study: str, run: Run, **metrics: float) -> Row:
    return finished_row(
        study,
        Result(
            run_id=run_id(run),
            config=describe(run),
            metrics=metrics or fake_metrics(run),
            evaluated_by=EVALUATED_BY.get(run.norm.name, "none"),
            seconds=3.5,
            environment=ENVIRONMENT,
            history={"train_loss": [1.0, 0.5]},
        ),
    )
