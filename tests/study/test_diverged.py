"""Runs whose numbers are not finite: in no mean, counted in their cell, and said on the page and the terminal."""

from dataclasses import replace
from math import nan
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from made_up import Fill, fake_metrics, fake_row
from made_up_domains import ADAPTED, PROFILE, domain_row, domains_study

from syncnorm.config import Run
from syncnorm.study import Columns, Curve, Study
from syncnorm.study.plan.spec import expand
from syncnorm.study.report.console import main_table
from syncnorm.study.report.plots.gap import GapView
from syncnorm.study.report.report import write_report
from syncnorm.study.rows import Row, diverged, read
from syncnorm.study.run.store import Store
from syncnorm.study.table import Cell, Table


@pytest.fixture
def small(study: Study) -> Study:
    vary = {"norm": ["bn", "gn"], "per_device_batch": [4]}
    return replace(study, vary=vary, seeds=3, also=(), agreements=(), figures=(Curve("per_device_batch", "norm"),))


def lost(run: Run) -> bool:
    return run.norm.name == "gn" and run.seed == 1


def filled(study: Study, fill: Fill, which: Any = lost) -> Path:
    """Write the study's rows; of runs that diverged, the accuracy is that of a guess, and the loss not finite."""
    folder = fill(study, runs=[])
    with Store.open(folder, study) as store:
        for run in expand(study):
            store.append(fake_row(study.name, run, **({"accuracy": 0.1, "test_loss": nan} if which(run) else {})))
    return folder


def cells(table: Table) -> dict[str, Cell]:
    return {line[0].text: line[1] for _, lines in table.blocks for line in lines}


def test_a_row_says_itself_whether_it_diverged() -> None:
    row: Row = {"metrics": {"accuracy": 0.1, "loss": None}}
    assert diverged(row)
    assert not diverged({"metrics": {"accuracy": 0.1, "loss": 1.0}})
    assert not diverged({**row, "details": {"diverged": False}})
    assert diverged({"metrics": {"accuracy": 0.1}, "details": {"diverged": True}})


def test_a_run_that_diverged_is_in_no_mean_and_its_cell_says_so(small: Study, fill: Fill) -> None:
    folder = filled(small, fill)
    table, difference = small.figures[0].collect(read(folder)).tables()
    others = [fake_metrics(run)["accuracy"] for run in expand(small) if run.norm.name == "gn" and not lost(run)]
    cell = cells(table)["gn"]
    assert cell.text.startswith(f"{100 * mean(others):.1f} ")
    assert cell.note == "n = 2; diverged (1 of 3)"
    assert cells(table)["bn"].note == ""
    assert cells(difference)["gn"].note == "n = 2; diverged (1 of 3)"
    assert "Diverged, and in no mean: 1 run." in table.caption


def test_where_all_diverged_there_is_no_number(small: Study, fill: Fill) -> None:
    chart = Columns("norm", ("accuracy", "test_loss"))
    results = read(filled(replace(small, figures=(chart,)), fill, lambda run: run.norm.name == "gn"))
    table, difference = chart.collect(results).tables()
    assert cells(table)["gn"] == Cell("—", note="diverged (3 of 3)")
    assert cells(difference)["gn"] == Cell("—", note="diverged (3 of 3)")
    assert {cell.text for cell in cells(table).values()} - {"—"}, "the other line has one"


def test_a_difference_to_a_line_that_diverged_names_that_line(small: Study, fill: Fill) -> None:
    results = read(filled(small, fill, lambda run: run.norm.name == "bn" and run.seed == 0))
    _, difference = small.figures[0].collect(results).tables()
    assert cells(difference)["gn"].note == "n = 2; bn diverged (1 of 3)"


def test_a_line_with_runs_that_diverged_is_never_the_best(small: Study, fill: Fill) -> None:
    def row(run: Run) -> Row:
        accuracy = {"bn": 0.5, "gn": 0.9}[run.norm.name] + run.seed / 1000
        return fake_row(small.name, run, accuracy=accuracy, loss=nan if lost(run) else 0.1)

    for sound in (False, True):
        folder = fill(replace(small, name=f"s{sound}"), runs=[])
        study = replace(small, name=f"s{sound}")
        with Store.open(folder, study) as store:
            for run in expand(study):
                store.append({**row(run), "study": study.name} | ({"details": {"diverged": False}} if sound else {}))
        assert cells(study.figures[0].collect(read(folder)).tables()[0])["gn"].bold is sound
        for path in folder.iterdir():
            path.unlink()


def test_page_and_terminal_say_how_many_diverged(small: Study, fill: Fill) -> None:
    folder = filled(small, fill)
    page = write_report(folder).read_text()
    assert '<li class="warn"><b>1</b>diverged</li>' in page
    assert "<h2>Diverged runs</h2>" in page
    (run,) = [row["run_id"] for row in read(folder).finished if diverged(row)]
    assert f"| {run} | gn, devices 8, samples per device 4" in (folder / "tables" / "diverged.md").read_text()
    assert "1 of 6 finished runs diverged: they are in no mean." in main_table(read(folder))
    assert "diverged" in (folder / "tables" / "runs.csv").read_text().splitlines()[0]


def test_a_study_without_any_says_nothing_of_it(small: Study, fill: Fill) -> None:
    folder = filled(small, fill, lambda run: False)
    assert "iverged" not in write_report(folder).read_text()
    assert "diverged" not in (folder / "tables" / "runs.csv").read_text()


def domains(tmp_path: Path, study: Study, which: Any) -> Path:
    with Store.open(tmp_path, study) as store:
        for run in expand(study):
            row = domain_row(study.name, run)
            if which(run):
                row["metrics"] = {**row["metrics"], "accuracy": 0.1, "loss": None}
            store.append(row)
    return tmp_path


def test_ends_of_a_gap_that_diverged_are_in_no_share(tmp_path: Path) -> None:
    study = replace(domains_study(ADAPTED), seeds=3)
    low = {"norm": "bn", "adapt": "none", "unseen": ("digits-fonts",)}

    def which(run: Run) -> bool:
        end = (run.norm.name, run.world.adapt, run.world.unseen) == tuple(low.values())  # type: ignore[union-attr]
        return end and run.seed == 0

    view = ADAPTED.collect(read(domains(tmp_path, study, which)))
    assert isinstance(view, GapView)
    assert {share.gap.n for share in view.shares.values()} == {2}
    assert "Diverged at the ends of the gap, and in no share: 1 runs." in view.tables()[0].caption


def test_a_profile_keeps_what_was_measured_and_says_that_runs_diverged(tmp_path: Path) -> None:
    study = replace(domains_study(PROFILE), seeds=3)
    results = read(domains(tmp_path, study, lambda run: run.norm.name == "bn" and run.seed == 0))
    (table,) = PROFILE.collect(results).tables()
    assert cells(table)["bn"].note == "diverged (1 of 3)"
    assert "Of these runs, 1 diverged in training; what they have here counts." in table.caption
