"""A metric of one's own is checked when it is registered, and never takes the place of another."""

import math
from dataclasses import replace
from typing import Any

import pytest

import syncnorm
from syncnorm import worlds
from syncnorm.config import Clients, Data, Devices, Domains, Optim, Run
from syncnorm.errors import UserError

RUNS = [
    Run(data=Data("digits"), world=Devices()),
    Run(data=Data("digits"), world=Clients()),
    Run(world=Domains(("digits", "digits-noisy"))),
]


pytestmark = pytest.mark.usefixtures("registries")


def constant(logits: Any, labels: Any) -> float:
    return 0.5


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.world.kind)
@pytest.mark.parametrize("name", ["accuracy", "loss"])
def test_a_name_of_ours_is_refused_before_a_run_is_trained(run: Run, name: str) -> None:
    syncnorm.register_metric(name)(constant)
    for start in (worlds.check, syncnorm.fit):
        with pytest.raises(UserError, match=f"metric '{name}' is registered, and runs have one of that name"):
            start(run)


@pytest.mark.parametrize("run", [RUNS[0], RUNS[2]], ids=lambda run: run.world.kind)
def test_a_run_that_diverges_is_no_mistake_of_a_metrics(run: Run) -> None:
    syncnorm.register_metric("largest")(lambda logits, labels: logits.max())
    few = replace(run.data, size=8, train_limit=64, test_limit=20)
    result = syncnorm.fit(replace(run, data=few, optim=Optim(lr=1e30, epochs=1, warmup=0.0)))
    assert math.isnan(result.metrics["largest"])
    assert result.details["diverged"] is True


@pytest.mark.parametrize("metric", [lambda logits: 0.0, lambda logits, labels, classes: 0.0])
def test_a_function_of_other_arguments_is_refused(metric: Any) -> None:
    with pytest.raises(UserError, match=r"metric 'odd' must be a function \(logits, labels\)"):
        syncnorm.register_metric("odd")(metric)


def test_a_metric_may_ask_for_more() -> None:
    def asks(logits: Any, labels: Any, k: int = 2, *, client: int | None, weights: Any) -> float:
        return 0.5

    assert syncnorm.register_metric("asks")(asks) is asks


@pytest.mark.parametrize("decorator", [syncnorm.register_metric, syncnorm.register_algorithm])
def test_a_decorator_without_a_name_is_refused(decorator: Any) -> None:
    with pytest.raises(UserError, match=r"needs a name: write @syncnorm\.register_"):
        decorator(constant)
