"""Plots other than curves, and axes of several fields, over a made-up study of clients."""

import json
import os
import re
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from made_up_clients import ARM, CLIENTS, DOMAINS, LAYERS, client_metrics, client_row, clients_study
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from syncnorm.config import Clients, Run
from syncnorm.study.plan.spec import Study, expand
from syncnorm.study.plot import Plot, View, as_plain
from syncnorm.study.report.analysis.across import layer_words
from syncnorm.study.report.analysis.points import ChartView, Points, gather
from syncnorm.study.report.analysis.tables import differences, means
from syncnorm.study.report.console import layers_found
from syncnorm.study.report.drawing.figures import footnote
from syncnorm.study.report.drawing.panels import positions
from syncnorm.study.report.drawing.style import STYLE
from syncnorm.study.report.inference.statistics import summarise
from syncnorm.study.report.partitions import partitions
from syncnorm.study.report.plots import Columns, Curve, Drift, History, Trade, from_plain
from syncnorm.study.report.plots.drift import DriftView
from syncnorm.study.report.report import write_report
from syncnorm.study.report.runs import run_records
from syncnorm.study.rows import read
from syncnorm.study.run.store import Store

LINES = ["fedavg", "fedbn", "silobn", "fedavg + gn", "fedavg + fedprox"]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write the rows of a study of clients into a results folder."""

    def fill(study: Study, keep: Any = lambda run: True, **changes: Any) -> Path:
        with monkeypatch.context() as patch, Store.open(tmp_path / "out", study) as store:
            patch.setattr(os, "fsync", lambda descriptor: None)
            for run in filter(keep, expand(study)):
                store.append(client_row(study.name, run, **changes))
        return tmp_path / "out"

    return fill


def showing(*plots: Plot) -> Study:
    return replace(clients_study(), figures=plots)


def view_of(write: Any, plot: Plot, **options: Any) -> ChartView:
    view = plot.collect(read(write(showing(plot), **options)))
    assert isinstance(view, ChartView)
    return view


def points_of(write: Any, plot: Plot, **options: Any) -> Points:
    return view_of(write, plot, **options).points


def drawn(view: View) -> Figure:
    with mpl.rc_context(STYLE):
        figure = view.figure()
    assert figure is not None
    return figure


def runs(**fields: Any) -> list[Run]:
    """Return the study's runs with these fields of the world, of batch norm if not said otherwise."""
    norm, algorithm = fields.pop("norm", "bn"), fields.pop("algorithm", "fedavg")
    return [
        run
        for run in expand(clients_study())
        if isinstance(run.world, Clients)
        and (run.norm.name, run.world.algorithm) == (norm, algorithm)
        and all(getattr(run.world, name) == value for name, value in fields.items())
    ]


@pytest.mark.parametrize("plot", clients_study().figures, ids=lambda one: type(one).__name__.lower())
def test_a_plot_comes_back_from_json(plot: Plot) -> None:
    assert from_plain(json.loads(json.dumps(as_plain(plot)))) == plot


def test_what_was_stored_before_there_were_kinds_is_a_curve() -> None:
    assert from_plain({"x": "skew", "line": "norm", "where": {}}) == Curve("skew", "norm")


def test_several_fields_are_one_line_named_by_what_differs_from_the_base(write: Any) -> None:
    points = points_of(write, Curve("alpha", ARM))
    assert points.lines == LINES
    assert points.line_label == "method"
    assert points.name == "accuracy-alpha-method_norm_algorithm"
    assert points.values[None, "fedavg + gn", 0.05] == {
        run.seed: client_metrics(run)["accuracy"] for run in runs(norm="gn", alpha=0.05)
    }
    assert means(points).records[0]["method+norm+algorithm"] == "fedavg"


def test_numbers_are_named_the_bases_too(write: Any) -> None:
    points = points_of(write, Curve("norm", ("method", "alpha"), where={"algorithm": "fedavg"}))
    assert points.lines[:3] == [f"fedavg + Dirichlet alpha {alpha}" for alpha in ("0.05", "0.3", "1")]


def test_values_that_do_not_say_what_they_are_all_have_their_names(write: Any) -> None:
    table = Columns("method", ("accuracy",), panel=("alpha", "lr"), where={"norm": "bn", "algorithm": "fedavg"})
    study = showing(table)
    rates = {"method": ["fedavg", "fedbn"], "alpha": [0.05, 0.3], "lr": [0.0125, study.base.optim.lr]}
    study = replace(study, vary=rates, also=(), seeds=1)
    means, _ = table.collect(read(write(study))).tables()
    base = f"{study.base.optim.lr:g}"
    assert [heading for heading, _ in means.blocks] == [
        f"Dirichlet alpha {alpha}, learning rate {rate}" for alpha in ("0.05", "0.3") for rate in ("0.0125", base)
    ]
    points = gather(Curve("method", ("alpha", "lr")), read(write(study, keep=lambda run: False)))
    assert points.line_label == "Dirichlet alpha and learning rate"


def test_several_fields_may_be_panels_and_x_too(write: Any) -> None:
    view = view_of(write, Curve(ARM, "alpha", panel=("norm", "algorithm")))
    points = view.points
    assert points.xs == LINES
    assert points.panels == ["bn", "gn", "bn + fedprox"]
    axes = drawn(view).axes
    assert [ax.get_title(loc="left") for ax in axes] == points.panels
    assert axes[0].get_xlabel() == "method"


def test_a_history_is_the_metric_of_every_round(write: Any) -> None:
    view = view_of(write, History(ARM, "validation_accuracy", where={"alpha": 0.3}))
    points = view.points
    assert points.xs == list(range(1, 41))
    here = [client_row("s", run)["history"]["validation_accuracy"][9] for run in runs(method="fedbn", alpha=0.3)]
    assert points.summary(None, "fedbn", 10) == summarise(here)
    assert points.title == "Validation accuracy, mean over clients (%) by round and method, at Dirichlet alpha 0.3"
    (ax,) = drawn(view).axes
    line = next(one for one in ax.get_lines() if one.get_label() == "fedbn")
    assert np.asarray(line.get_ydata())[9] == pytest.approx(100 * np.mean(here))
    (table,) = view.tables()
    assert table.header == ["1", "7", "12", "18", "23", "29", "34", "40"]
    assert len(table.records) == 40 * len(LINES)
    assert table.records[0]["round"] == 1


def test_a_history_in_training_is_evaluated_by_nobody(write: Any) -> None:
    points = points_of(write, History("method", where={"alpha": 0.3, "norm": "bn"}))
    assert footnote(points).endswith("Measured in training. Not tuned.")


def test_a_trade_is_a_point_a_line_with_intervals_both_ways(write: Any) -> None:
    view = view_of(write, Trade(ARM, where={"alpha": 0.3}))
    metrics = [client_metrics(run) for run in runs(method="fedbn", alpha=0.3)]
    sent, accuracy = (summarise([one[name] for one in metrics]) for name in ("bytes_total", "accuracy"))
    (ax,) = drawn(view).axes
    marker = next(one for one in ax.get_lines() if one.get_label() == "fedbn")
    assert marker.get_xydata()[0].tolist() == pytest.approx([sent.mean / 1e6, 100 * accuracy.mean])
    bars = [np.asarray(path.vertices) for one in ax.collections for path in one.get_paths()]  # type: ignore[attr-defined]
    ends = sorted(np.ptp(bar, axis=0).max() for bar in bars)
    assert sent.half_width is not None
    assert accuracy.half_width is not None
    for half in (sent.half_width / 1e6, 100 * accuracy.half_width):
        assert min(abs(end - 2 * half) for end in ends) < 1e-9
    assert ax.get_xlabel() == "Data sent both ways (MB)"
    (table,) = view.tables()
    assert table.header == ["data sent both ways (MB)", "accuracy, mean over clients (%)"]
    assert {record["metric"] for record in table.records} == {"bytes_total", "accuracy"}


def test_columns_have_a_metric_each(write: Any) -> None:
    view = view_of(write, Columns(ARM, (*(f"accuracy_{name}" for name in DOMAINS), "accuracy"), panel="alpha"))
    table, difference = view.tables()
    assert table.span == "accuracy (%)"
    assert table.header == [*DOMAINS, "mean over clients"]
    assert difference.span == "accuracy (percentage points)"
    (block,) = [lines for heading, lines in table.blocks if heading == "Dirichlet alpha 0.3"]
    assert [line[0].text for line in block] == LINES
    summary = summarise([100 * client_metrics(run)["accuracy_digits"] for run in runs(method="fedbn", alpha=0.3)])
    assert block[1][1].text == f"{summary.mean:.1f} ± {summary.half_width:.1f}"
    assert [line[0].text for line in table.blocks[0][1]] == LINES[:4], "a line that a panel has no run of is left out"


def test_columns_of_several_units_say_them_and_a_missing_metric_is_a_dash(write: Any) -> None:
    chart = Columns("norm", ("bytes_up", "reestimated_accuracy"), where={"method": "fedavg", "algorithm": "fedavg"})
    points = points_of(write, replace(chart, where={**chart.where, "alpha": 0.3}))
    table = means(points)
    assert table.header == [
        "data sent to the server (MB)",
        "accuracy with each client's statistics re-estimated, mean over clients (%)",
    ]
    assert differences(points).header[1].endswith("mean over clients (percentage points)")
    assert [line[2].text for line in table.blocks[0][1]][1] == "—"
    assert "3 finished runs do not have all of these metrics" in table.caption


def maps(write: Any, plot: Drift, **options: Any) -> DriftView:
    return plot.collect(read(write(showing(plot), **options)))


WHERE = {"alpha": 0.3, "algorithm": "fedavg", "norm": "bn"}


def test_a_drift_is_the_mean_over_seeds_of_every_layer_and_client(write: Any) -> None:
    found = maps(write, Drift("method", where=WHERE))
    assert (found.panels, found.layers, found.clients) == (
        ["fedavg", "fedbn", "silobn"],
        LAYERS,
        list(range(CLIENTS)),
    )
    per_seed = [client_row("s", run)["details"]["drift"]["values"] for run in runs(method="fedbn", alpha=0.3)]
    np.testing.assert_allclose(found.mean("fedbn"), np.mean(per_seed, axis=0))
    *maps_drawn, bar = drawn(found).axes
    assert [ax.get_title(loc="left") for ax in maps_drawn] == found.panels
    meshes = [one for ax in maps_drawn for one in ax.collections if isinstance(one, QuadMesh)]
    assert {mesh.get_clim() for mesh in meshes} == {meshes[0].get_clim()}, "one scale"
    assert bar.get_xlabel() == "distance from the pooled statistics, in pooled standard deviations"
    (table,) = found.tables()
    mean = summarise([float(np.mean(values[0])) for values in per_seed])
    assert table.blocks[0][1][0][2].text == f"{mean.mean:.3f} ± {mean.half_width:.3f}"
    assert len(table.records) == 3 * len(LAYERS) * CLIENTS


def described(count: int) -> dict[str, dict[str, object]]:
    """Return details["layers"] of the first layers: batch norms that grow wider."""
    return {
        name: {"type": "batch norm", "depth": place, "channels": 16 * place}
        for place, name in enumerate(LAYERS[:count], start=1)
    }


def test_layers_are_named_by_what_they_are_where_rows_say_it(write: Any) -> None:
    found = maps(write, Drift("method", where=WHERE), layers=described(3))  # the fourth is not, as in old rows
    (table,) = found.tables()
    assert [cells[0].text for cells in table.blocks[0][1]] == [
        "1st batch norm, 16 channels (features.1)",
        "2nd batch norm, 32 channels (features.5)",
        "3rd batch norm, 48 channels (features.9)",
        "head.norm",
    ]
    assert table.records[0]["layer"] == "features.1"
    labels = [label.get_text() for label in drawn(found).axes[0].get_yticklabels()]
    assert labels == [
        "1st batch norm, 16 channels",
        "2nd batch norm, 32 channels",
        "3rd batch norm, 48 channels",
        LAYERS[3],
    ]


def test_of_layers_that_differ_only_what_they_share_is_said() -> None:
    one = {"type": "batch norm", "depth": 2, "channels": 32}
    rows = [{"details": {"layers": {"norm": one, "conv": one}}}]
    rows += [
        {"details": {"layers": {"norm": {**one, "type": "group norm"}, "conv": {"type": "convolution", "depth": 1}}}}
    ]
    assert layer_words(rows) == {"norm": "2nd norm, 32 channels", "conv": "layer"}
    assert layer_words([{"metrics": {}}]) == {}


def test_runs_that_differ_otherwise_are_never_averaged_into_one_map(write: Any) -> None:
    found = maps(write, Drift(where={"method": "fedavg", "norm": "bn", "alpha": 0.3}))
    assert found.panels == ["algorithm fedavg", "algorithm fedprox"]
    assert found.seeds == 3


def test_a_drift_without_rows_or_values_is_drawn(write: Any) -> None:
    nothing = maps(write, Drift("method", where=WHERE), keep=lambda run: False)
    assert nothing.tables() == []
    assert drawn(nothing).texts[-1].get_text().startswith("No run that has finished")


def test_a_value_that_was_not_finite_is_a_gap(write: Any) -> None:
    drift = {"layers": ["one"], "values": [[None, 0.5]]}
    found = maps(write, Drift(where=WHERE), keep=lambda run: run.world.method == "fedbn", drift=drift)
    assert found.clients == [1]


def test_who_holds_what_is_shown_once_a_way_of_dealing(write: Any) -> None:
    folder = write(clients_study())
    found = partitions(read(folder))
    assert [words.rpartition("Dirichlet ")[2] for words, _ in found] == [
        f"alpha {alpha}, seed 0" for alpha in ("0.05", "0.3", "1", "100")
    ]
    page = write_report(folder).read_text()
    assert page.count("<h2>Who holds what</h2>") == 1
    assert {path.stem for path in (folder / "figures").glob("partition*")} == {f"partition{n}" for n in (1, 2, 3, 4)}


def test_a_card_that_lists_no_client_is_not_drawn(write: Any) -> None:
    results = read(write(showing(), partition={"count": 5000, "summary": {}}))
    assert partitions(results) == []


def test_the_page_shows_every_plot_and_its_files_are_there(write: Any) -> None:
    folder = write(clients_study())
    page = write_report(folder).read_text()
    headings = re.findall(r"<h2>((?:Figure|Table) \d)", page)
    assert headings == ["Figure 1", "Figure 2", "Figure 3", "Table 4", "Table 5", "Figure 6"]
    assert page.count("<figure") == 4 + 4
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    links = [link for link in re.findall(r'href="([^"#]+)"', page)]
    assert all((folder / link).is_file() for link in links)
    assert write_report(folder).read_text() == page


def test_a_study_without_rows_has_a_page(write: Any) -> None:
    folder = write(clients_study(), keep=lambda run: False)
    assert write_report(folder).read_text().count("<figure") == 4


def test_details_stay_out_of_the_flat_file_of_rows(write: Any) -> None:
    records = run_records(read(write(clients_study())))
    assert not any("details" in name or "history" in name for name in records[0])


def test_x_that_spans_more_than_a_factor_of_30_is_spread_by_logarithm() -> None:
    alphas = positions([0.1, 1.0, 10.0])
    assert alphas[1] - alphas[0] == pytest.approx(alphas[2] - alphas[1])
    assert positions([0.1, 0.3, 1.0]) == [0.1, 0.3, 1.0]
    assert positions([0.0, 1.0, 100.0]) == [0.0, 1.0, 100.0]


def test_words_of_the_clients_world(write: Any) -> None:
    study = showing(Curve("participation", "skew"), Curve("skew", "count"))
    study = replace(study, vary={"participation": [0.1, 1.0], "skew": ["iid", "quantity"]}, also=(), seeds=1)
    folder = write(replace(study, vary={**study.vary, "method": ["fedbn"]}))
    first, second = (gather(curve, read(folder)) for curve in study.figures)  # type: ignore[arg-type]
    assert first.x_label == "clients per round (%)"
    assert [first.x_text(x) for x in first.xs] == ["10", "100"]
    assert first.line_label == "partition"
    assert second.x_label == "partition"
    assert second.line_label == "clients"
    for points, x in product((first, second), (None,)):
        assert points.metric(x).title == "Accuracy, mean over clients (%)"


def test_the_terminal_says_how_many_batch_norms_were_found() -> None:
    def row(norm: str, layers: float) -> dict[str, object]:
        return {"config": {"model": "net", "norm": {"name": norm}}, "metrics": {"batch_norms": layers}}

    rows = [row("bn", 3.0), row("gn", 0.0), row("bn", 3.0)]
    said = layers_found(SimpleNamespace(finished=rows))  # type: ignore[arg-type]
    assert said == "batch norms, found by type: net with bn 3, net with gn 0"
    assert layers_found(SimpleNamespace(finished=[])) == ""  # type: ignore[arg-type]
