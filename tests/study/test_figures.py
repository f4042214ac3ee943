from dataclasses import replace
from itertools import combinations
from math import isnan
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from made_up import Fill
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from syncnorm.config import Run
from syncnorm.study.plan.spec import Study
from syncnorm.study.plot import View
from syncnorm.study.report.analysis.points import ChartView, Points
from syncnorm.study.report.drawing.figures import footnote, line_styles
from syncnorm.study.report.drawing.panels import positions
from syncnorm.study.report.drawing.style import FORMATS, STYLE, write_image
from syncnorm.study.report.plots import Curve, from_plain
from syncnorm.study.rows import read


def view_of(study: Study, folder: Path) -> ChartView:
    """Return what the study's one figure shows, as it is read back."""
    results = read(folder)
    view = from_plain(results.about.figures[0]).collect(results)
    assert isinstance(view, ChartView)
    return view


def points_of(study: Study, folder: Path) -> Points:
    return view_of(study, folder).points


def drawn(view: View) -> Figure:
    with mpl.rc_context(STYLE):
        figure = view.figure()
    assert figure is not None
    return figure


def line(ax: Axes, label: str) -> Line2D:
    return next(one for one in ax.get_lines() if one.get_label() == label)


def ys(line: Line2D) -> list[float]:
    return [float(y) for y in np.asarray(line.get_ydata(), dtype=float)]


def heights(band: PolyCollection) -> list[float]:
    return [float(y) for path in band.get_paths() for y in np.asarray(path.vertices, dtype=float)[:, 1]]


def test_lines_are_the_means_in_percent_and_bands_their_intervals(study: Study, fill: Fill) -> None:
    view = view_of(study, fill(study))
    points = view.points
    axes = drawn(view).axes
    assert len(axes) == 3
    for ax, panel in zip(axes, points.panels, strict=True):
        bands = [one for one in ax.collections if isinstance(one, PolyCollection)]
        for label, band in zip(points.lines, bands, strict=True):
            summaries = [points.summary(panel, label, x) for x in points.xs]
            assert ys(line(ax, label)) == pytest.approx([100 * s.mean for s in summaries if s])
            ends = [100 * end for s in summaries if s and s.interval for end in s.interval]
            edges = heights(band)
            assert min(edges) == pytest.approx(min(ends))
            assert max(edges) == pytest.approx(max(ends))


def test_every_seed_is_a_dot(study: Study, fill: Fill) -> None:
    view = view_of(study, fill(study))
    points = view.points
    dots = [one for one in drawn(view).axes[1].get_lines() if one.get_marker() == "."]
    shown = sorted(y for one in dots for y in ys(one))
    stored = [100 * v for (panel, _, _), values in points.values.items() if panel == 50.0 for v in values.values()]
    assert shown == pytest.approx(sorted(stored))


def test_panels_share_the_y_axis_and_say_what_they_are(study: Study, fill: Fill) -> None:
    axes = drawn(view_of(study, fill(study))).axes
    assert [ax.get_title(loc="left") for ax in axes] == [f"label-sorted data {skew} %" for skew in (0, 50, 100)]
    assert len({ax.get_ylim() for ax in axes}) == 1
    assert axes[0].get_ylabel() == "Accuracy (%)"
    assert axes[0].get_xlabel() == "samples per device"
    assert [label.get_text() for label in axes[0].get_xticklabels()] == ["1", "2", "4", "8", "16", "32"]


def test_powers_of_two_are_spread_by_logarithm_other_numbers_as_they_are_and_words_in_order() -> None:
    assert positions([1, 2, 4, 32]) == [0, 1, 2, 5]
    assert positions([0.5, 1.0]) == [-1, 0]
    assert positions([0, 50, 100]) == [0, 50, 100]
    assert positions([1, 3]) == [1, 3]
    assert positions(["rank0", "pooled"]) == [0, 1]
    assert positions([False, True]) == [0, 1]
    assert positions([None, 2]) == [0, 1]


def test_coinciding_lines_do_not_hide_each_other(study: Study, fill: Fill) -> None:
    view = view_of(study, fill(study))
    points = view.points
    ax = drawn(view).axes[0]
    starts = [float(np.asarray(line(ax, label).get_xdata(), dtype=float)[0]) for label in points.lines]
    assert all(abs(a - b) > 0.05 for a, b in combinations(starts, 2))
    assert max(map(abs, starts)) < 0.2


def test_a_norm_looks_the_same_in_every_figure_and_like_no_other() -> None:
    lines = ["gn", "bn", "own", "sync_bn", "ln", "none", "gn (groups 8)", "in", "ghost_bn", "other"]
    styles = line_styles(lines)
    assert len(set(styles.values())) == len({style.color for style in styles.values()}) == len(lines)
    assert line_styles(["mine", "bn"])["bn"] == styles["bn"]
    assert line_styles(["mine", "bn"])["mine"] != styles["bn"]
    assert len(line_styles([str(index) for index in range(30)])) == 30


def test_many_lines_have_a_colour_by_their_first_field_and_a_marker_by_the_others() -> None:
    norms, ways = (
        ["bn", "sync_bn", "gn", "domain_bn"],
        ["", " + adabn", " + tent", " + mix", " + domain affine + tent"],
    )
    styles = line_styles([norm + way for norm in norms for way in ways])
    assert len(set(styles.values())) == 20
    for norm in norms:
        assert {styles[norm + way].color for way in ways} == {line_styles(norms)[norm].color}
    for way in ways:
        assert len({(styles[norm + way].marker, styles[norm + way].dashes) for norm in norms}) == 1
    without_base = line_styles([norm + way for norm in norms for way in ways if norm + way != "bn"])
    assert without_base["bn + tent"] == styles["bn + tent"]
    assert len(set(line_styles([str(index) for index in range(40)]).values())) == 40


def test_a_missing_point_leaves_a_gap_and_one_seed_has_no_band(study: Study, fill: Fill) -> None:
    def keep(run: Run) -> bool:
        return run.world.per_device_batch != 4 if run.norm.name == "bn" else run.seed == 0

    view = view_of(study, fill(study, keep=keep))
    points = view.points
    ax = drawn(view).axes[0]
    assert [isnan(y) for y in ys(line(ax, "bn"))] == [False, False, True, False, False, False]
    bands = [one for one in ax.collections if isinstance(one, PolyCollection)]
    assert [bool(band.get_paths()) for band in bands] == [True, False, False, False, False]
    assert not any(isnan(y) for y in ys(line(ax, "gn")))
    assert "n = 1 to 5 seeds" in footnote(points)


def test_the_footnote_says_n_and_who_evaluated(study: Study, fill: Fill) -> None:
    view = view_of(study, fill(study))
    points = view.points
    assert "95 % t interval, n = 5 seeds" in footnote(points)
    assert "pooled for sync_bn" in footnote(points)
    assert any(text.get_text().startswith("Mean and 95 %") for text in drawn(view).texts)


def test_one_seed_is_said_to_be_one_seed(study: Study, fill: Fill) -> None:
    assert "no interval; n = 1 seed" in footnote(points_of(study, fill(study, keep=lambda run: run.seed == 0)))


def test_categories_are_not_joined(study: Study, fill: Fill) -> None:
    study = replace(study, figures=(Curve("norm", "skew", where={"per_device_batch": 4}),))
    figure = drawn(view_of(study, fill(study)))
    (ax,) = figure.axes
    assert [label.get_text() for label in ax.get_xticklabels()] == ["bn", "sync_bn", "gn", "ln", "none"]
    assert line(ax, "50").get_linewidth() == 0
    assert not [one for one in ax.collections if isinstance(one, PolyCollection)]


def test_the_same_rows_give_the_same_bytes(study: Study, fill: Fill, tmp_path: Path) -> None:
    study = replace(study, vary={**study.vary, "norm": ["bn", "gn"]})
    folder = fill(study)
    for name in ("a", "b"):
        write_image(view_of(study, folder).figure, tmp_path / name, "figure", FORMATS)
    first = sorted((tmp_path / "a").iterdir())
    assert [path.suffix for path in first] == [".pdf", ".png", ".svg"]
    for path in first:
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize("seeds", [0, 1])
def test_few_rows_and_mathematics_in_names_can_be_drawn(study: Study, fill: Fill, tmp_path: Path, seeds: int) -> None:
    run = replace(study.base, model=r"$\frac{x}$ <b>")
    study = replace(
        study, base=run, vary={"per_device_batch": [4]}, also=(), figures=(Curve("per_device_batch", "model"),)
    )
    view = view_of(study, fill(study, keep=lambda run: run.seed < seeds))
    assert write_image(view.figure, tmp_path / "figures", "figure", ["svg"])
    assert (tmp_path / "figures" / "figure.svg").read_text().startswith("<?xml")


def test_long_names_stay_within_the_figure(study: Study, fill: Fill) -> None:
    models = [f"my_package.my_module:a_factory_with_a_long_name_{number}" for number in range(3)]
    study = replace(study, vary={"model": models, "norm": ["bn", "gn"]}, also=(), figures=(Curve("norm", "model"),))
    ways = [("model", "norm", None), ("norm", "model", None), ("skew", "norm", "model")]
    folder = fill(replace(study, figures=tuple(Curve(x, line, panel) for x, line, panel in ways)))
    results = read(folder)
    for plain in results.about.figures:
        figure = drawn(from_plain(plain).collect(results))
        figure.canvas.draw()
        page = figure.bbox
        texts = [*figure.legends[0].get_texts(), *(ax.title for ax in figure.axes)]
        texts += [label for ax in figure.axes for label in ax.get_xticklabels()]
        for text in texts:
            box = text.get_window_extent()
            assert page.x0 <= box.x0 <= box.x1 <= page.x1, text.get_text()
            assert page.y0 <= box.y0, text.get_text()


def test_a_figure_of_nothing_has_no_scale(study: Study, fill: Fill) -> None:
    figure = drawn(view_of(study, fill(study, keep=lambda run: False)))
    assert figure.axes[0].get_yticks().tolist() == []


def test_a_metric_that_no_run_gave_is_not_a_run_that_has_not_finished(study: Study, fill: Fill) -> None:
    curve = replace(study.figures[0], metric="acuracy")
    study = replace(study, figures=(curve,))
    view = view_of(study, fill(study, lambda run: run.seed == 0))
    points = view.points
    assert footnote(points) == "No run that has finished gave acuracy."
    assert drawn(view).axes[0].get_yticks().tolist() == []
