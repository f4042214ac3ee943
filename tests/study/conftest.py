"""Fixtures of the made-up study."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from made_up import ENVIRONMENT, Fill, fake_row

from syncnorm.config import Devices, Run
from syncnorm.study.plan.spec import Grid, Study, expand
from syncnorm.study.report.plots import Curve
from syncnorm.study.rows import Agreement, failed_row
from syncnorm.study.run.store import Store


@pytest.fixture
def study() -> Study:
    return Study(
        name="batch-size",
        question="Does a small per-device batch cost accuracy, and does skew make it worse?",
        base=Run(world=Devices(global_batch=32)),
        vary={
            "norm": ["bn", "sync_bn", "gn", "ln", "none"],
            "per_device_batch": [1, 2, 4, 8, 16, 32],
            "skew": [0.0, 50.0, 100.0],
        },
        seeds=5,
        also=(Grid({"engine": ["virtual", "torchrun"], "norm": ["bn", "sync_bn"], "per_device_batch": [8]}, 2),),
        figures=(Curve(x="per_device_batch", line="norm", panel="skew"),),
        agreements=(Agreement(over="engine", tolerance=1e-6),),
    )


@pytest.fixture
def fill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fill:
    """Write a results folder: all runs of a study or those that `keep` allows; `fail` picks the failed."""

    def write(
        study: Study,
        keep: Callable[[Run], bool] = lambda run: True,
        fail: Callable[[Run], bool] = lambda run: False,
        runs: Iterable[Run] | None = None,
        **options: Any,
    ) -> Path:
        folder = tmp_path / "results"
        # Hundreds of rows that no power failure threatens: waiting for the disk would take most of the time.
        with monkeypatch.context() as patch, Store.open(folder, study, **options) as store:
            patch.setattr(os, "fsync", lambda descriptor: None)
            for run in filter(keep, expand(study) if runs is None else runs):
                if fail(run):
                    store.append(failed_row(study.name, run, "Loss is not finite.", 1.0, ENVIRONMENT))
                else:
                    store.append(fake_row(study.name, run))
        return folder

    return write
