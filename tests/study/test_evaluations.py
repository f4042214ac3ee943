"""Several evaluations of the same runs are lines, compared within runs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up import Fill, fake_row

from syncnorm.config import Run
from syncnorm.errors import UserError
from syncnorm.samples import FURTHER, sample_details
from syncnorm.study import Evaluations, Study
from syncnorm.study.plan.spec import expand
from syncnorm.study.plot import as_plain
from syncnorm.study.report.plots import from_plain
from syncnorm.study.report.plots.check import check_plots
from syncnorm.study.report.plots.curve import CurveView
from syncnorm.study.report.report import write_report
from syncnorm.study.rows import read
from syncnorm.study.run.store import Store

PLOT = Evaluations("per_device_batch", ("accuracy", "accuracy_pooled"), "skew")


@pytest.fixture
def two_ways(study: Study) -> Study:
    vary = {"norm": ["bn"], "per_device_batch": [2, 8], "skew": [0.0, 100.0]}
    return replace(study, vary=vary, also=(), agreements=(), figures=(PLOT,))


def scores(run: Run, metric: str) -> np.ndarray:
    rng = np.random.default_rng([run.seed, run.world.per_device_batch, int(run.world.skew), metric == "accuracy"])
    return rng.random(200) < (0.5 if metric == "accuracy" else 0.8)


def fill_in(study: Study, folder: Path) -> CurveView:
    with Store.open(folder, study) as store:
        for run in expand(study):
            found = {name: scores(run, name) for name in PLOT.metrics}
            row = fake_row(study.name, run, **{name: float(values.mean()) for name, values in found.items()})
            labels = np.arange(200) % 10
            further = {"accuracy_pooled": sample_details(found["accuracy_pooled"], labels)}
            store.append({**row, "details": {**sample_details(found["accuracy"], labels), FURTHER: further}})
    view = study.figures[0].collect(read(folder))
    assert isinstance(view, CurveView)
    return view


def test_metrics_are_lines_and_differences_are_within_runs(two_ways: Study, tmp_path: Path) -> None:
    points = fill_in(two_ways, tmp_path).points
    assert points.lines == ["accuracy", "accuracy pooled"]
    assert (points.panels, points.xs) == ([0.0, 100.0], [2, 8])
    runs = [run for run in expand(two_ways) if (run.world.per_device_batch, run.world.skew) == (2, 100.0)]
    for line, metric in zip(points.lines, PLOT.metrics, strict=True):
        assert points.values[100.0, line, 2] == {run.seed: scores(run, metric).mean() for run in runs}
    found = points.comparisons[100.0, "accuracy pooled", 2]
    within = [scores(run, "accuracy_pooled").mean() - scores(run, "accuracy").mean() for run in runs]
    assert found.difference.mean == pytest.approx(np.mean(within))
    assert found.over_both is not None, "both have their test samples"


def test_its_page_has_figure_tables_and_claims(two_ways: Study, tmp_path: Path) -> None:
    fill_in(two_ways, tmp_path)
    page = write_report(tmp_path).read_text()
    assert "Every trained model is evaluated in each way." in page
    assert "accuracy pooled against accuracy, label-sorted data 0 %, samples per device 2" in page
    assert (tmp_path / "figures" / "1-accuracy-per_device_batch-evaluation-skew.png").exists()


def test_it_is_stored_and_checked_like_any_plot(two_ways: Study, fill: Fill) -> None:
    assert from_plain(as_plain(PLOT)) == PLOT
    empty = PLOT.collect(read(fill(two_ways, keep=lambda run: False)))
    assert empty.empty
    wrong = replace(two_ways, figures=(replace(PLOT, metrics=("accuracy", "accuracy_poold")),))
    with pytest.raises(UserError, match="accuracy_poold"):
        check_plots(wrong, expand(wrong))
