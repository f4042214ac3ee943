"""The same apps on Flower's own simulation, processes and all, and on CohortGrid: the same models."""

import os

import pytest
import torch
from flower_apps import home_client_app, make_model
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Result

from syncnorm.federated.flower.grid import CohortGrid
from syncnorm.federated.flower.strategy import NormFedAvg

POLICIES = ("fedavg_pooled", "fedbn")


class AllPolicies(ServerApp):
    """Runs a strategy a policy, one after the other, so that Ray starts once."""

    def __init__(self) -> None:
        super().__init__()
        self.results: dict[str, Result] = {}

        @self.main()
        def main(grid: Grid, context: Context) -> None:
            for policy in POLICIES:
                self.results[policy] = NormFedAvg(make_model(), policy).start(
                    grid=grid,
                    initial_arrays=ArrayRecord(make_model().state_dict()),
                    num_rounds=3,
                    train_config=ConfigRecord({"policy": policy}),
                    evaluate_config=ConfigRecord({"policy": policy}),
                )


@pytest.mark.dist
def test_rays_processes_and_this_one_make_the_same_models(monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.simulation import run_simulation

    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    here, there = AllPolicies(), AllPolicies()
    CohortGrid(home_client_app(None), 6).run_app(here)
    run_simulation(there, home_client_app(None), 6, backend_config={"client_resources": {"num_cpus": 1}})
    for policy in POLICIES:
        ours, rays = here.results[policy], there.results[policy]
        state = ours.arrays.to_torch_state_dict()
        assert not torch.equal(state["0.weight"], make_model().state_dict()["0.weight"])
        torch.testing.assert_close(dict(rays.arrays.to_torch_state_dict()), dict(state), rtol=1e-10, atol=1e-10)
        for round_ in (1, 2, 3):
            for name in ("train_metrics_clientapp", "evaluate_metrics_clientapp"):
                assert dict(getattr(rays, name)[round_]) == pytest.approx(
                    dict(getattr(ours, name)[round_]), abs=1e-10
                )
