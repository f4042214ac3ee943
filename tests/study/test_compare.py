"""`syncnorm compare`: two results folders of one study, which of their means differ, and which findings turn."""

import csv
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from made_up import Fill
from made_up_tuned import tuned
from scipy import stats

from syncnorm.cli import main
from syncnorm.errors import UserError
from syncnorm.study import Curve, Study
from syncnorm.study.report.inference.shift import shifts
from syncnorm.study.report.side_by_side import Side, side_by_side
from syncnorm.study.table import Table


@pytest.fixture
def pair(study: Study) -> Study:
    vary = {"norm": ["bn", "gn"], "per_device_batch": [4]}
    return replace(study, vary=vary, also=(), agreements=(), figures=(Curve("per_device_batch", "norm"),))


def by_name(tables: list[Table]) -> dict[str, Table]:
    return {table.name: table for table in tables}


def cells(table: Table) -> list[list[str]]:
    return [[cell.text for cell in line] for _, lines in table.blocks for line in lines]


def test_a_shift_is_paired_over_the_same_seeds_and_welchs_over_others() -> None:
    a, b, other = {0: 0.9, 1: 0.8, 2: 0.7}, {0: 0.85, 1: 0.7, 2: 0.68}, {3: 0.5, 4: 0.55, 5: 0.4}
    found = shifts({"same": (a, b), "other": (a, other), "none": ({}, a)})
    assert set(found) == {"same", "other"}
    same, apart = found["same"], found["other"]
    assert (same.paired, apart.paired) == (True, False)
    assert same.p == pytest.approx(stats.ttest_rel([*b.values()], [*a.values()]).pvalue)
    assert apart.p == pytest.approx(stats.ttest_ind([*a.values()], [*other.values()], equal_var=False).pvalue)
    low, high = stats.ttest_ind([*other.values()], [*a.values()], equal_var=False).confidence_interval()
    assert apart.value == pytest.approx((low + high) / 2)
    assert apart.half_width == pytest.approx((high - low) / 2)
    assert apart.adjusted == pytest.approx(min(1.0, 2 * min(same.p or 1, apart.p or 1)))


def test_a_shift_without_spread_is_real_unless_it_is_zero() -> None:
    one = {seed: 0.5 for seed in range(4)}
    moved = {seed: 0.25 for seed in range(4)}
    found = shifts({"moved": (one, moved), "same": (one, one), "single": ({0: 1.0}, {9: 0.0})})
    assert [found[name].real for name in ("moved", "same", "single")] == [True, False, False]


def test_a_folder_agrees_with_itself(pair: Study, tmp_path: Path) -> None:
    results = tuned(pair, tmp_path)
    tables = by_name(side_by_side(Side("here", results), Side("there", results)))
    assert cells(tables["same-runs"])[0][1:3] == ["10", "0"]
    assert tables["means-apart"].caption.startswith("None of 2 means")
    assert cells(tables["findings"])[0][-1] == "found in both"
    assert "Of 1 difference found in here, in there: 1 found in both." in tables["findings"].caption


def test_another_machine_may_differ_and_findings_hold(pair: Study, tmp_path: Path) -> None:
    here, there = tuned(pair, tmp_path / "a"), tuned(pair, tmp_path / "b", luck=1)
    tables = by_name(side_by_side(Side("here", here), Side("there", there)))
    (record,) = tables["same-runs"].records
    assert (record["runs"], record["apart"]) == (10, 10)
    assert record["largest"] > 0
    assert cells(tables["findings"])[0][-1] == "found in both"


def test_a_finding_that_turns_is_said(pair: Study, tmp_path: Path) -> None:
    here, there = tuned(pair, tmp_path / "a"), tuned(pair, tmp_path / "b", gap=-0.2)
    tables = by_name(side_by_side(Side("here", here), Side("there", there)))
    assert cells(tables["findings"])[0][-1] == "found with the opposite sign"
    assert [line[0] for line in cells(tables["means-apart"])] == ["gn, samples per device 4"]


def test_a_finding_that_is_lost_is_said(pair: Study, tmp_path: Path) -> None:
    here, there = tuned(pair, tmp_path / "a"), tuned(pair, tmp_path / "b", gap=0.001)
    tables = by_name(side_by_side(Side("here", here), Side("there", there)))
    assert cells(tables["findings"])[0][-1].endswith("sign, not resolved")
    back = by_name(side_by_side(Side("there", there), Side("here", here)))
    assert "1 is found in here alone." in back["findings"].caption


def test_the_command_prints_and_writes_the_tables(
    fill: Fill, pair: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = fill(pair)
    second = shutil.copytree(first, tmp_path / "second")
    out = tmp_path / "tables"
    assert _command(monkeypatch, first, second, "--out", out) == 0
    printed = capsys.readouterr().out
    assert "5 seeds are in both." in printed
    assert "None of 2 means" in printed
    (record, other) = csv.DictReader((out / "means-apart.csv").open())
    assert (record["line"], other["line"], record["paired"], record["difference"]) == ("bn", "gn", "True", "0.0")


def test_mistakes_get_a_sentence(
    fill: Fill, pair: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fill(pair)
    assert _command(monkeypatch, folder) == 2
    assert "write the two results folders first" in capsys.readouterr().err
    assert _command(monkeypatch, folder, tmp_path / "nowhere") == 2
    assert "has no study.json" in capsys.readouterr().err
    results = tuned(pair, tmp_path / "a")
    other = tuned(replace(pair, vary={"norm": ["ln"], "per_device_batch": [2]}), tmp_path / "b")
    with pytest.raises(UserError, match="no finished line in common"):
        side_by_side(Side("here", results), Side("there", other))


def _command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["syncnorm", "compare", *map(str, arguments)])
    return main()
