"""The same apps on Flower's own simulation, in Ray's processes, and on CohortGrid: the same models and metrics."""

import os
from dataclasses import replace
from threading import Event
from typing import Any

import pytest
import torch
from flower_apps import home_client_app, make_model
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from syncnorm.config import Clients, Data, Optim, Run
from syncnorm.federated import simulate
from syncnorm.federated.flower import apps, simulation
from syncnorm.federated.flower.grid.cohort_grid import CohortGrid
from syncnorm.federated.flower.strategy.norm_fed_avg import NormFedAvg

POLICIES = ("fedavg_pooled", "fedbn")
COUNT = 4


class BothApps(ClientApp):
    """The client of syncnorm's runs and of a user's app in one simulation, for it starts slowly."""

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message."""
        config = message.content.get("config", {})
        own = "run" in config or message.metadata.message_type == "query.partition"
        return (apps.client_app if own else home_client_app(None))(message, context)


def all_policies(grid: Grid) -> dict[str, Result]:
    """Train a user's app by a strategy a policy."""
    return {
        policy: NormFedAvg(make_model(), policy).start(
            grid=grid,
            initial_arrays=ArrayRecord(make_model().state_dict()),
            num_rounds=3,
            train_config=ConfigRecord({"policy": policy}),
            evaluate_config=ConfigRecord({"policy": policy}),
        )
        for policy in POLICIES
    }


@pytest.mark.dist
def test_rays_processes_and_this_one_come_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(
        data=Data("digits", train_limit=200, test_limit=100),
        model="mlp",
        optim=Optim(lr=0.1),
        precision="float64",
        world=Clients(count=COUNT, rounds=2, method="silobn", engine="flower"),
    )
    there: dict[str, Result] = {}

    def play(grid: Grid, text: str, ended: Event, **more: Any) -> Any:
        result = apps.play(grid, text, ended, **more)
        there.update(all_policies(grid))
        return result

    monkeypatch.setattr(simulation, "play", play)
    monkeypatch.setattr(simulation, "client_app", BothApps())
    environment = dict(os.environ)
    rays = simulate(run)
    assert dict(os.environ) == environment
    ours = simulate(replace(run, world=replace(run.world, engine="loop")))
    assert rays.metrics == pytest.approx(ours.metrics, abs=1e-12)

    for policy, result in all_policies(CohortGrid(home_client_app(None), COUNT)).items():
        state = dict(result.arrays.to_torch_state_dict())
        assert not torch.equal(state["0.weight"], make_model().state_dict()["0.weight"])
        rays_state = dict(there[policy].arrays.to_torch_state_dict())
        torch.testing.assert_close(rays_state, state, rtol=1e-10, atol=1e-10)
        for round_ in (1, 2, 3):
            for name in ("train_metrics_clientapp", "evaluate_metrics_clientapp"):
                metrics = dict(getattr(result, name)[round_])
                assert dict(getattr(there[policy], name)[round_]) == pytest.approx(metrics, abs=1e-10)
