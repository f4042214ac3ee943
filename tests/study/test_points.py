from dataclasses import replace
from math import nan
from pathlib import Path
from statistics import mean

import pytest
from made_up import Fill, fake_metrics, fake_row

from syncnorm.config import Devices, Norm, Run
from syncnorm.study.plan.spec import Grid, Study, expand
from syncnorm.study.report.analysis.points import gather
from syncnorm.study.report.plots import Curve
from syncnorm.study.rows import Agreement, read
from syncnorm.study.run.store import Store


def test_a_place_holds_the_metric_of_every_seed_there(study: Study, fill: Fill) -> None:
    points = gather(study.figures[0], read(fill(study)))
    assert points.panels == [0.0, 50.0, 100.0]
    assert points.lines == ["bn", "sync_bn", "gn", "ln", "none"]
    assert points.xs == [1, 2, 4, 8, 16, 32]
    runs = [run for run in expand(study) if run.world.engine == "virtual"]
    for place, values in points.values.items():
        here = [r for r in runs if (r.world.skew, r.norm.name, r.world.per_device_batch) == place]
        assert values == {run.seed: fake_metrics(run)["accuracy"] for run in here}
    assert len(points.values) == 3 * 5 * 6
    assert points.evaluation() == (
        "Evaluated with statistics: own (rank 0) for bn; pooled for sync_bn; none for gn, ln and none. Not tuned."
    )


def test_differences_pair_common_seeds(study: Study, fill: Fill) -> None:
    folder = fill(study, keep=lambda run: run.seed != {"bn": 0, "gn": 4}.get(run.norm.name))
    points = gather(study.figures[0], read(folder))
    values = {name: points.values[0.0, name, 4] for name in ("gn", "bn")}
    difference = points.difference(0.0, "gn", 4, "bn")
    assert difference is not None
    assert difference.n == 3
    assert difference.mean == pytest.approx(mean(values["gn"][s] - values["bn"][s] for s in (1, 2, 3)))


def test_order_is_the_studys_even_when_the_first_line_has_no_row_yet(study: Study, fill: Fill) -> None:
    points = gather(study.figures[0], read(fill(study, keep=lambda run: run.norm.name == "gn")))
    assert points.lines[0] == "bn"
    assert points.summary(0.0, "bn", 1) is None
    assert (0.0, "bn", 1) in points.planned


def test_two_norms_that_differ_in_an_option_are_two_lines(study: Study, fill: Fill) -> None:
    norms = ["bn", Norm("gn", {"groups": 1}), Norm("gn", {"groups": 8}), Norm("gn")]
    study = replace(study, vary={**study.vary, "norm": norms}, also=())
    points = gather(study.figures[0], read(fill(study)))
    assert points.lines == ["bn", "gn (groups 1)", "gn (groups 8)", "gn (groups default)"]
    assert {len(values) for values in points.values.values()} == {5}
    assert len(points.values) == 4 * 6 * 3


def test_runs_that_repeat_others_on_another_engine_are_no_lines_of_their_own(study: Study, fill: Fill) -> None:
    folder = fill(study)
    assert gather(study.figures[0], read(folder)).lines[:2] == ["bn", "sync_bn"]
    with Store.open(folder, replace(study, agreements=())):
        pass
    apart = gather(study.figures[0], read(folder))
    assert apart.lines[:2] == ["bn (engine virtual)", "bn (engine torchrun)"]
    by_engine = Curve("norm", "engine", where={"per_device_batch": 8, "skew": 0.0})
    with Store.open(folder, replace(study, figures=(by_engine,))):
        pass
    assert gather(by_engine, read(folder)).lines == ["virtual", "torchrun"]


def test_a_layout_that_differs_is_named_by_one_field_and_not_by_three(study: Study, fill: Fill) -> None:
    study = replace(
        study,
        base=Run(world=Devices(per_device_batch=4)),
        vary={"norm": ["bn"], "ranks": [2, 4]},
        also=(),
        figures=(Curve("skew", "norm"),),
    )
    points = gather(study.figures[0], read(fill(study)))
    assert points.lines == ["bn (samples per step 8)", "bn (samples per step 16)"]


def test_where_leaves_other_runs_out(study: Study, fill: Fill) -> None:
    curve = Curve("per_device_batch", "norm", where={"skew": 50.0})
    points = gather(curve, read(fill(replace(study, figures=(curve,)))))
    assert len(points.values) == 5 * 6
    assert points.title == "Accuracy (%) by samples per device and norm, at label-sorted data 50 %"
    assert points.name == "accuracy-per_device_batch-norm"


def test_a_run_whose_metric_is_not_finite_diverged_and_is_in_no_mean(study: Study, fill: Fill) -> None:
    runs = [run for run in expand(study) if run.norm.name == "bn" and run.world.engine == "virtual"][:3]
    folder = fill(study, runs=runs[1:])
    with Store.open(folder, study) as store:
        store.append(fake_row(study.name, runs[0], accuracy=nan))
    points = gather(study.figures[0], read(folder))
    assert points.without_value == 0
    assert list(points.diverged.values()) == [(1, 1)]
    assert points.evaluation().endswith("Diverged, and in no mean: 1 run. Not tuned.")
    assert sum(len(values) for values in points.values.values()) == 2


def test_a_field_that_a_grid_adds_counts_as_planned(study: Study, fill: Fill) -> None:
    grid = Grid({"norm": ["none"], "global_batch": [64], "per_device_batch": [64]}, 1)
    study = replace(study, vary={**study.vary, "norm": ["bn", "gn"]}, also=(grid,))
    points = gather(study.figures[0], read(fill(study)))
    assert points.lines == ["bn", "gn", "none"]
    assert points.xs[-1] == 64
    assert (0.0, "none", 64) in points.planned
    assert (0.0, "bn", 64) not in points.planned


def test_an_agreement_over_the_figures_own_field_takes_nothing_away(study: Study, fill: Fill) -> None:
    study = replace(study, agreements=(Agreement("norm"), Agreement("engine")))
    assert len(gather(study.figures[0], read(fill(study))).values) == 3 * 5 * 6


def measured(study: Study, fill: Fill, values: dict[int, float]) -> Curve:
    """Write rows whose values per channel follow from the samples per device."""
    curve = Curve("values_per_channel", "norm", "skew", measured=True)
    study = replace(study, figures=(curve,), also=(), vary={**study.vary, "per_device_batch": list(values)})
    folder = fill(study, keep=lambda run: False)
    with Store.open(folder, study) as store:
        for run in expand(study):
            found = {"values_per_channel": values[run.world.per_device_batch]} if run.norm.name != "gn" else {}
            store.append(fake_row(study.name, run, **fake_metrics(run), **found))
    return curve


def test_a_measured_x_places_each_run_at_its_metric(study: Study, fill: Fill, tmp_path: Path) -> None:
    curve = measured(study, fill, {2: 8.0, 4: 4.0, 8: 4.5})
    results = read(tmp_path / "results")
    points = gather(curve, results)
    assert points.xs == [4, 4.5, 8]
    runs = [run for run in expand(study) if run.norm.name == "bn" and run.world.engine == "virtual"]
    here = [run for run in runs if (run.world.per_device_batch, run.world.skew) == (2, 0.0)]
    assert points.values[0.0, "bn", 8] == {run.seed: fake_metrics(run)["accuracy"] for run in here}
    assert not any(line == "gn" for _, line, _ in points.values), "it has no values per channel"
    assert points.x_label == "values per channel"


def test_runs_at_the_same_measured_x_are_lines_of_their_own(study: Study, fill: Fill, tmp_path: Path) -> None:
    curve = measured(study, fill, {2: 8.0, 4: 8.0})
    lines = gather(curve, read(tmp_path / "results")).lines
    assert lines[:2] == ["bn (samples per device 2)", "bn (samples per device 4)"]
