"""Interquartile means and probabilities of improvement over many settings, beside numpy written out."""

import math
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from made_up import Fill, fake_row
from scipy import stats

from syncnorm.study import Improvement, Study
from syncnorm.study.plan.spec import expand
from syncnorm.study.plot import as_plain
from syncnorm.study.report.inference.improvement import aggregate
from syncnorm.study.report.plots import from_plain
from syncnorm.study.report.plots.improvement import ImprovementView
from syncnorm.study.report.report import write_report
from syncnorm.study.rows import read
from syncnorm.study.run.store import Store

CHART = Improvement("norm", ("per_device_batch", "skew"))


def runs(rng: np.random.Generator, level: float, settings: int = 6, seeds: int = 5) -> dict[int, dict[int, float]]:
    return {at: {seed: level + 0.1 * at + rng.normal() for seed in range(seeds)} for at in range(settings)}


def test_the_aggregates_are_the_formulas_written_out() -> None:
    rng = np.random.default_rng(0)
    line, other = runs(rng, 1.0), runs(rng, 0.0)
    found = aggregate(line, other)
    assert found is not None
    values = np.sort([value for seeds in line.values() for value in seeds.values()])
    cut = int(len(values) / 4)
    assert found.mean.value == pytest.approx(values[cut : len(values) - cut].mean())
    won = [np.mean([a > b for a, b in product(line[at].values(), other[at].values())]) for at in line]
    assert found.improvement.value == pytest.approx(np.mean(won))
    u = [stats.mannwhitneyu([*line[at].values()], [*other[at].values()]).statistic / 25 for at in line]
    assert found.improvement.value == pytest.approx(np.mean(u))
    assert found.difference.value == pytest.approx(found.mean.value - found.reference.value)
    fewer = aggregate(line, other, higher_is_better=False)
    assert fewer is not None
    assert fewer.improvement.value == pytest.approx(1 - found.improvement.value)
    for one in (found.mean, found.difference, found.improvement):
        assert one.interval is not None
        assert one.interval[0] < one.value < one.interval[1]


def test_ties_are_half_and_a_line_against_itself_is_even() -> None:
    one = runs(np.random.default_rng(1), 0.0)
    found = aggregate(one, one)
    assert found is not None
    assert found.improvement.value == 0.5
    assert found.difference.interval == (0.0, 0.0), "line and reference get the same draw"
    alike = aggregate({0: {0: 1.0, 1: 1.0}}, {0: {0: 1.0, 1: 1.0}})
    assert alike is not None
    assert alike.improvement.interval == (0.5, 0.5)


def test_only_settings_and_seeds_that_both_have_count() -> None:
    line = {"a": {0: 0.9, 1: 0.8}, "b": {0: 0.1}, "c": {5: 0.3}}
    found = aggregate(line, {"a": {0: 0.5, 1: 0.5, 2: 1.0}, "c": {0: 0.3}})
    assert found is not None
    assert (found.settings, found.mean.n) == (1, 2)
    assert (found.mean.value, found.improvement.value) == (pytest.approx(0.85), 1.0)
    assert aggregate(line, {}) is None
    single = aggregate({"a": {0: 0.9}}, {"a": {0: 0.5}})
    assert single is not None
    assert single.mean.interval is None


def test_the_interval_of_few_seeds_covers_a_known_mean() -> None:
    rng, hits = np.random.default_rng(2), 0
    for _ in range(400):
        shared = rng.normal(size=5)
        line = {at: {seed: at + shared[seed] + 0.3 * rng.normal() for seed in range(5)} for at in range(4)}
        found = aggregate(line, line)
        assert found is not None
        assert found.mean.interval is not None
        hits += found.mean.interval[0] <= 1.5 <= found.mean.interval[1]
    assert 0.90 <= hits / 400 <= 0.97, "as the docstring says, though seeds go through all settings alike"


@pytest.fixture
def many(study: Study) -> Study:
    return replace(study, also=(), agreements=(), seeds=3, figures=(CHART,))


def test_a_study_shows_every_line_over_all_its_settings(many: Study, fill: Fill) -> None:
    folder = fill(many)
    view = CHART.collect(read(folder))
    assert view.aggregates["gn"].settings == 6 * 3
    (table,) = view.tables()
    lines = {line[0].text: line[1:] for line in table.blocks[0][1]}
    assert list(lines) == ["bn", "sync_bn", "gn", "ln", "none"]
    assert lines["bn"][2].text == ""
    assert lines["sync_bn"][1].text.startswith("+")
    assert "over bn" in view.figure().axes[1].get_title(loc="left")
    assert "(samples per device and label-sorted data) are not drawn again" in table.caption
    assert (write_report(folder).parent / "figures" / "1-improvement-accuracy-norm.png").exists()
    assert {record["reference"] for record in table.records} == {"bn"}
    other = replace(CHART, reference="gn").collect(read(folder))
    assert other.reference == "gn"
    assert other.aggregates["gn"].improvement.value == 0.5


def test_a_loss_is_better_where_it_is_lower(many: Study, tmp_path: Path) -> None:
    study = replace(many, vary={"norm": ["bn", "gn"], "per_device_batch": [2, 4], "skew": [0.0]})
    with Store.open(tmp_path, study) as store:
        for run in expand(study):
            loss = 0.1 if run.norm.name == "gn" else 0.5
            store.append(fake_row(study.name, run, accuracy=0.5, test_loss=loss + run.seed / 100))
    view = replace(CHART, metric="test_loss").collect(read(tmp_path))
    assert view.aggregates["gn"].improvement.value == 1.0


def test_it_is_stored_and_drawn_before_any_run(many: Study, fill: Fill) -> None:
    assert from_plain(as_plain(CHART)) == CHART
    view = CHART.collect(read(fill(many, keep=lambda run: False)))
    assert isinstance(view, ImprovementView)
    assert view.aggregates == {}
    assert view.tables()[0].records == []
    assert view.figure() is not None
    assert not math.isnan(view.figure().get_figwidth())
