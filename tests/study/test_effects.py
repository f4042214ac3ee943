"""What moves a difference: the analysis of variance, and its plot over a made-up study."""

import os
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from made_up import fake_row
from scipy import stats

from syncnorm.config import Devices, Run, run_id
from syncnorm.errors import UserError
from syncnorm.study import Effects, Study
from syncnorm.study.plan.spec import expand
from syncnorm.study.report.drawing.style import STYLE
from syncnorm.study.report.inference.effects import variance_terms
from syncnorm.study.report.plots.check import check_plots
from syncnorm.study.report.plots.effects import EffectsView
from syncnorm.study.rows import read
from syncnorm.study.run.store import Store

FACTORS = ("per_device_batch", "skew")
PLOT = Effects(low={"norm": "bn"}, high={"norm": "gn"}, factors=FACTORS)


def study(plot: Effects = PLOT, **changes: Any) -> Study:
    vary = {"norm": ["bn", "gn"], "per_device_batch": [1, 4, 16], "skew": [0, 100]}
    return Study("made-up", "?", base=Run(world=Devices(global_batch=32)), vary=vary, figures=(plot,), **changes)


@pytest.fixture
def view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EffectsView:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    with Store.open(tmp_path / "out", study()) as store:
        for run in expand(study()):
            store.append(fake_row("made-up", run))
    found = PLOT.collect(read(tmp_path / "out"))
    assert isinstance(found, EffectsView)
    return found


def test_a_balanced_design_has_the_sums_of_squares_of_the_textbook() -> None:
    rng = np.random.default_rng(0)
    a, b, n = 3, 4, 5
    y = rng.normal(size=(a, b, n)) + np.arange(a)[:, None, None] + np.outer([1, -1, 0], [1, 0, 0, -1])[:, :, None]
    spots = [(i, j, k) for i in range(a) for j in range(b) for k in range(n)]
    terms = {
        term.names: term
        for term in variance_terms([float(y[s]) for s in spots], [s[:2] for s in spots], [s[2] for s in spots], "ab")
    }
    grand, rows, columns, blocks = y.mean(), y.mean((1, 2)), y.mean((0, 2)), y.mean((0, 1))
    expected = {
        ("a",): (b * n * ((rows - grand) ** 2).sum(), a - 1),
        ("b",): (a * n * ((columns - grand) ** 2).sum(), b - 1),
        ("a", "b"): (n * ((y.mean(2) - rows[:, None] - columns + grand) ** 2).sum(), (a - 1) * (b - 1)),
        ("seed",): (a * b * ((blocks - grand) ** 2).sum(), n - 1),
    }
    total = ((y - grand) ** 2).sum()
    left = total - sum(squares for squares, _ in expected.values())
    df = y.size - 1 - sum(count for _, count in expected.values())
    assert set(terms) == {*expected, ("residual",)}
    assert terms["residual",].squares == pytest.approx(left, rel=1e-10)
    assert terms["residual",].df == df
    for name, (squares, count) in expected.items():
        assert terms[name].squares == pytest.approx(squares, rel=1e-10)
        assert terms[name].share == pytest.approx(squares / total, rel=1e-10)
        assert terms[name].df == count
        assert terms[name].p == pytest.approx(stats.f.sf(squares / count / (left / df), count, df), rel=1e-8)


def test_an_unbalanced_design_gives_nothing_to_a_factor_without_effect() -> None:
    spots = [(i, j, k) for i in range(3) for j in range(2) for k in range(4) if (i + j + k) % 3 or i == 1]
    terms = variance_terms([10.0 * i + k for i, _, k in spots], [s[:2] for s in spots], [s[2] for s in spots], "ab")
    found = {term.names: term.squares for term in terms}
    assert found["a",] > 100
    assert found["b",] == pytest.approx(0, abs=1e-18)
    assert found["a", "b"] == pytest.approx(0, abs=1e-18)


def test_a_single_response_and_constant_factors_have_no_terms() -> None:
    assert variance_terms([1.0, 1.0], [(0,), (0,)], [0, 0], "a")[0].names == ("residual",)


def test_levels_are_means_over_settings_and_then_over_seeds(view: EffectsView, tmp_path: Path) -> None:
    rows = {row["run_id"]: row["metrics"]["accuracy"] for row in read(tmp_path / "out").finished}
    by = {(r.norm.name, r.world.per_device_batch, r.world.skew, r.seed): rows[run_id(r)] for r in expand(study())}
    one = [np.mean([by["gn", 1, skew, seed] - by["bn", 1, skew, seed] for skew in (0, 100)]) for seed in range(5)]
    summary = view.at(0, "1")
    assert summary is not None
    assert summary.mean == pytest.approx(np.mean(one), rel=1e-12)
    assert summary.half_width == pytest.approx(stats.t.ppf(0.975, 4) * np.std(one, ddof=1) / 5**0.5, rel=1e-12)
    levels, settings, variance = view.tables()
    assert [record["level"] for record in levels.records] == ["1", "4", "16", "0", "100"]
    assert len(settings.records) == 6
    assert sum(record["share"] for record in variance.records) == pytest.approx(1)
    with mpl.rc_context(STYLE):
        assert view.figure().axes[0].get_xlabel().startswith("norm gn")


@pytest.mark.parametrize(
    ("plot", "says"),
    [
        (Effects({"norm": "bn"}, {"norm": "gn"}, ("skew",)), "several runs of 0, seed 0"),
        (Effects({"norm": "bn"}, {"norm": "gn"}, ()), "needs factors"),
        (Effects({"norm": "bn"}, {"norm": "gn"}, (*FACTORS, "buffers")), "'buffers' of a plot of effects has one"),
    ],
)
def test_a_plot_that_cannot_be_filled_is_refused_before_training(plot: Effects, says: str) -> None:
    with pytest.raises(UserError, match=says):
        check_plots(study(plot), expand(study(plot)))
