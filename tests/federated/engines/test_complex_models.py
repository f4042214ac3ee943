"""Models with complex, infinite and unsigned entries are trained like any other."""

from typing import Any

import pytest

from syncnorm.config import Clients, Data, Optim, Run
from syncnorm.federated import simulate


@pytest.mark.parametrize(
    "method",
    [
        {},
        {"method": "fedap"},
        {"algorithm": "fedprox", "algorithm_options": {"mu": 1.0}},
        {"algorithm": "fedadam"},
        {"algorithm": "scaffold"},
    ],
)
def test_both_engines_train_a_complex_model_alike(method: dict[str, Any]) -> None:
    losses = []
    for engine in ("loop", "cohort"):
        world = Clients(count=4, rounds=2, engine=engine, **method)
        data, optim = Data("digits", train_limit=200), Optim(momentum=0.0)
        run = Run(data=data, model="complex_model:make", world=world, optim=optim, precision="float64")
        metrics = simulate(run).metrics
        assert metrics["clients_left_out"] == 0
        losses.append(metrics["train_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
