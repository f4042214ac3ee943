"""Runs that differ in a field alone, shown as their mean."""

from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest
from made_up import Fill, fake_metrics

from syncnorm.study.plan.spec import Study, expand
from syncnorm.study.plot import as_plain
from syncnorm.study.report.analysis.points import gather
from syncnorm.study.report.plots import Columns, Curve, History, from_plain
from syncnorm.study.rows import read

SKEWS = ("skew",)
VIRTUAL = {"engine": "virtual"}
CHARTS = (
    Curve(x="per_device_batch", line="norm", mean_over=SKEWS, where=VIRTUAL),
    Columns(line="norm", panel="per_device_batch", metrics=("accuracy",), mean_over=SKEWS, where=VIRTUAL),
    History(line="norm", panel="per_device_batch", mean_over=SKEWS, where=VIRTUAL),
)


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: type(chart).__name__)
def test_a_seeds_value_is_the_mean_of_its_runs(chart: Curve | Columns | History, study: Study, fill: Fill) -> None:
    points = gather(chart, read(fill(replace(study, figures=(chart,)))))
    assert points.lines == ["bn", "sync_bn", "gn", "ln", "none"]
    assert points.cases == 3
    assert "mean over 3 runs (label-sorted data)" in points.evaluation()
    if isinstance(chart, History):
        assert points.values[8, "bn", 2][0] == 0.5
        return
    place = (None, "bn", 8) if isinstance(chart, Curve) else (8, "bn", "accuracy")
    runs = [run for run in expand(study) if run.norm.name == "bn" and run.world.per_device_batch == 8]
    for seed in range(5):
        mine = [fake_metrics(run)["accuracy"] for run in runs if run.seed == seed and run.world.engine == "virtual"]
        assert len(mine) == 3
        assert points.values[place][seed] == pytest.approx(mean(mine))


def test_a_seed_counts_when_all_of_its_runs_have_finished(study: Study, fill: Fill, tmp_path: Path) -> None:
    folder = fill(replace(study, figures=CHARTS[:1]), keep=lambda run: run.seed != 2 or run.world.skew != 50)
    points = gather(CHARTS[0], read(folder))
    assert sorted(points.values[None, "bn", 8]) == [0, 1, 3, 4]


def test_it_is_kept_with_the_study() -> None:
    for chart in CHARTS:
        assert from_plain(as_plain(chart)) == chart
