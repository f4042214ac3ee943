"""Every policy gives over Flower's own simulation what it gives in this process (FedTAN exchanges inside a step)."""

from dataclasses import replace
from math import isfinite

import pytest

from syncnorm.config import Clients, Data, Optim, Run
from syncnorm.federated import POLICIES, simulate


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize(
    ("method", "algorithm"),
    [*((method, "fedavg") for method in sorted(POLICIES.keys() - {"fedtan"})), ("fedbn", "scaffold")],
)
def test_ray_and_this_process_agree(method: str, algorithm: str) -> None:
    world = Clients(count=4, rounds=3, method=method, algorithm=algorithm, participation=0.75)
    world = replace(world, skew="dirichlet_by_class", alpha=0.5)
    run = Run(
        data=Data("digits", size=8, train_limit=200, test_limit=80),
        world=world,
        optim=Optim(lr=0.02, momentum=0.0),
        precision="float64",
    )
    results = [simulate(replace(run, world=replace(world, engine=engine))) for engine in ("loop", "cohort", "flower")]
    here = results[0].metrics
    for other in results[1:]:
        assert other.metrics.keys() == here.keys()
        for name, value in here.items():
            assert isfinite(value)
            assert other.metrics[name] == pytest.approx(value, rel=1e-10, abs=1e-10), name
        assert other.history["train_loss"] == pytest.approx(results[0].history["train_loss"], rel=1e-10)
