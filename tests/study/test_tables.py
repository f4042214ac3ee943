import csv
import json
import re
from dataclasses import replace
from io import StringIO
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from made_up import Fill, fake_metrics, fake_row
from scipy import stats

from syncnorm.config import Devices, Run, run_id
from syncnorm.study.plan.spec import Study, expand
from syncnorm.study.report.analysis.agreement import agreement_table
from syncnorm.study.report.analysis.points import Points, gather
from syncnorm.study.report.analysis.tables import differences, means
from syncnorm.study.report.plots import Curve
from syncnorm.study.report.runs import failures, run_records
from syncnorm.study.report.table_formats import html, latex, long_csv, markdown, write_tables
from syncnorm.study.rows import read
from syncnorm.study.run.store import Store
from syncnorm.study.table import MINUS, Cell, Table


def points_of(study: Study, folder: Path) -> Points:
    return gather(study.figures[0], read(folder))


def with_accuracies(
    study: Study, folder: Path, accuracies: dict[str, list[float]], metric: str = "accuracy"
) -> Points:
    """Return the points of a one-column study with these metrics by norm and seed."""
    study = replace(
        study, vary={"norm": list(accuracies)}, also=(), figures=(Curve("per_device_batch", "norm", metric=metric),)
    )
    with Store.open(folder, study) as store:
        for run in expand(study):
            if run.seed < len(accuracies[run.norm.name]):
                store.append(fake_row(study.name, run, **{metric: accuracies[run.norm.name][run.seed]}))
    return points_of(study, folder)


def column(table: Table) -> dict[str, Cell]:
    return {line[0].text: line[1] for _, lines in table.blocks for line in lines}


def test_every_cell_is_the_t_interval_of_its_seeds(study: Study, fill: Fill) -> None:
    table = means(points_of(study, fill(study)))
    assert [heading for heading, _ in table.blocks] == [f"label-sorted data {skew} %" for skew in (0, 50, 100)]
    assert table.header == ["1", "2", "4", "8", "16", "32"]
    runs = expand(study)
    for (skew, (_, lines)), norm in product(zip((0, 50, 100), table.blocks, strict=True), range(5)):
        name, *cells = lines[norm]
        for batch, cell in zip((1, 2, 4, 8, 16, 32), cells, strict=True):
            here = [
                100 * fake_metrics(run)["accuracy"]
                for run in runs
                if (run.norm.name, run.world.per_device_batch, run.world.skew) == (name.text, batch, skew)
                and run.world.engine == "virtual"
            ]
            half = stats.t.ppf(0.975, len(here) - 1) * stats.sem(here)
            assert cell.text == f"{np.mean(here):.1f} ± {half:.1f}"
    assert "n = 5 seeds." in table.caption
    assert "own (rank 0) for bn" in table.caption


def test_bold_needs_an_interval_apart_from_all_others(study: Study, tmp_path: Path) -> None:
    apart = {"bn": [0.5, 0.51, 0.52], "gn": [0.9, 0.91, 0.92], "ln": [0.6, 0.61, 0.62]}
    table = means(with_accuracies(study, tmp_path / "apart", apart))
    assert [name for name, cell in column(table).items() if cell.bold] == ["gn"]
    assert "**91.0 ± 2.5**" in markdown(table)
    assert r"\textbf{91.0 $\pm$ 2.5}" in latex(table)
    assert "<b>91.0 ± 2.5</b>" in html(table)
    for name, accuracies in {
        "overlap": {**apart, "ln": [0.85, 0.9, 0.95]},
        "one seed": {**apart, "ln": [0.6]},
        "own seed": {**apart, "gn": [0.9]},
        "not yet": {**apart, "ln": []},
        "alone": {"gn": [0.9, 0.91, 0.92]},
    }.items():
        found = column(means(with_accuracies(study, tmp_path / name, accuracies)))
        assert not any(cell.bold for cell in found.values()), name


def test_the_lowest_loss_is_the_best(study: Study, tmp_path: Path) -> None:
    losses = {"bn": [1.5, 1.51, 1.52], "gn": [0.9, 0.91, 0.92]}
    points = with_accuracies(study, tmp_path, losses, "test_loss")
    assert column(means(points))["gn"] == Cell("0.910 ± 0.025", bold=True)
    assert "Positive is worse than bn" in differences(points).caption


def test_what_is_neither_good_nor_bad_is_shown_as_stored_and_never_bold(study: Study, tmp_path: Path) -> None:
    points = with_accuracies(study, tmp_path, {"bn": [1.5, 1.51, 1.52], "gn": [0.9, 0.91, 0.92]}, "parameter_norm")
    assert column(means(points))["gn"] == Cell("0.910 ± 0.025")
    assert column(means(points))["bn"] == Cell("1.510 ± 0.025")
    assert means(points).title == "Parameter norm by samples per device and norm"
    assert differences(points).title == "Parameter norm, difference to bn"


def test_one_seed_has_a_mean_and_no_interval(study: Study, tmp_path: Path) -> None:
    table = means(with_accuracies(study, tmp_path, {"bn": [0.5, 0.6, 0.7], "gn": [0.9], "ln": []}))
    cells = column(table)
    assert cells["gn"] == Cell("90.0", note="n = 1")
    assert cells["ln"] == Cell("—")
    assert "one seed gives no interval" in table.caption
    (record,) = [record for record in table.records if record["norm"] == "gn"]
    assert (record["n"], record["std"], record["half_width"], record["low"]) == (1, None, None, None)


def test_differences_are_paired_by_seed_and_say_their_n(study: Study, tmp_path: Path) -> None:
    accuracies = {"bn": [0.5, 0.7, 0.6], "gn": [0.6, 0.81, 0.69], "ln": [0.5, 0.6]}
    table = differences(with_accuracies(study, tmp_path, accuracies))
    half = stats.t.ppf(0.975, 2) * stats.sem([10, 11, 9])
    assert column(table)["gn"] == Cell(f"+10.0 ± {half:.1f}†")
    assert column(table)["ln"].text.startswith(f"{MINUS}5.0 ± ")
    assert column(table)["ln"].note == "n = 2"
    assert "bn" not in column(table)
    assert "percentage points" in table.title


def test_a_difference_that_rounds_to_zero_has_no_minus(study: Study, tmp_path: Path) -> None:
    table = differences(with_accuracies(study, tmp_path, {"bn": [0.5, 0.5], "gn": [0.49999, 0.49999]}))
    assert column(table)["gn"].text == "+0.0 ± 0.0"


def test_csv_has_every_statistic_in_full_precision(study: Study, fill: Fill) -> None:
    points = points_of(study, fill(study))
    records = list(csv.DictReader(StringIO(long_csv(means(points).records))))
    assert len(records) == 3 * 5 * 6
    record = next(r for r in records if (r["norm"], r["skew"], r["per_device_batch"]) == ("gn", "100.0", "2"))
    summary, difference = points.summary(100.0, "gn", 2), points.difference(100.0, "gn", 2, "bn")
    assert summary is not None
    assert difference is not None
    assert float(record["mean"]) == summary.mean
    assert float(record["std"]) == summary.std
    assert (float(record["low"]), float(record["high"])) == summary.interval
    assert float(record["difference_mean"]) == difference.mean
    assert float(record["difference_half_width"]) == difference.half_width
    assert (record["n"], record["seeds"], record["reference"]) == ("5", "0 1 2 3 4", "bn")
    assert record["evaluated_by"] == "none"


def test_failures_and_all_rows_are_listed(study: Study, fill: Fill) -> None:
    def fail(run: Run) -> bool:
        return run.norm.name == "none" and run.seed == 0 and run.world.skew == 0.0

    results = read(fill(study, fail=fail))
    failed = [run for run in expand(study) if fail(run)]
    table = failures(results.failed)
    assert [line[0].text for line in table.blocks[0][1]] == [run_id(run) for run in failed]
    assert table.blocks[0][1][0][2].text == "Loss is not finite."
    assert "devices 32, samples per device 1" in table.blocks[0][1][0][1].text
    records = run_records(results)
    assert len(records) == len(expand(study))
    assert {r["run_id"] for r in records if r["error"]} == {run_id(run) for run in failed}
    first = next(r for r in records if not r["error"])
    assert first["metrics.accuracy"] == results.finished[0]["metrics"]["accuracy"]
    assert first["config.world.per_device_batch"] == 1


def test_agreements_say_what_was_compared_and_the_verdict(study: Study, fill: Fill) -> None:
    folder = fill(study)
    table = agreement_table(read(folder))
    assert [cell.text for cell in table.blocks[0][1][0]] == [
        "engine: virtual and torchrun", "accuracy", "4", "0", "1e-06", "agree"
    ]  # fmt: skip
    lines = (folder / "runs.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    row = next(row for row in rows if row["config"]["world"]["engine"] == "torchrun")
    row["metrics"]["accuracy"] += 0.25
    (folder / "runs.jsonl").write_text("\n".join([*map(json.dumps, rows), ""]))
    table = agreement_table(read(folder))
    assert [cell.text for cell in table.blocks[0][1][0]][3:] == ["2.5e-01", "1e-06", "differ"]
    assert table.records[0]["run_b"] == row["run_id"]
    assert [cell.text for cell in table.blocks[0][1][1]][-1] == "agree"


HOSTILE = rf"a_b & 50% $x^2$ {{#}} ~\ <i>|*` ± {MINUS} —"


@pytest.fixture
def hostile() -> Table:
    return Table("name", HOSTILE, HOSTILE, HOSTILE, "", [HOSTILE], [(HOSTILE, [[Cell(HOSTILE), Cell(HOSTILE)]])])


def test_latex_escapes_what_latex_reads(hostile: Table) -> None:
    text = latex(hostile)
    inside = re.sub(r"^(%.*|\\.*)$", "", text.split(r"\begin{tabular}")[1], flags=re.MULTILINE)
    assert r"a\_b \& 50\% \$x\textasciicircum{}2\$ \{\#\} \textasciitilde{}\textbackslash{}" in text
    assert r"\textless{}i\textgreater{}|*` $\pm$ $-$ ---" in text
    assert not re.search(r"(?<!\\)[&%#_]", inside.replace(" & ", " "))


def test_markdown_and_html_show_the_text_as_it_is(hostile: Table) -> None:
    rows = [line for line in markdown(hostile).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3}
    assert r"\<i\>" in rows[0]
    assert "<i>" not in html(hostile)
    assert html(hostile).count("&lt;i&gt;") == 5


def test_latex_columns_agree_in_every_line(study: Study, fill: Fill) -> None:
    text = latex(means(points_of(study, fill(study))))
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    for line in [line for line in body.splitlines() if line.endswith(r"\\")]:
        spans = sum(int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d+)\}", line))
        assert line.count(" & ") + spans == 6
    assert text.count("{") == text.count("}")


def test_tables_are_written_in_three_formats(study: Study, fill: Fill, tmp_path: Path) -> None:
    points = points_of(study, fill(study))
    write_tables([means(points), differences(points)], [{"run_id": "a"}], tmp_path / "tables")
    stem = "accuracy-per_device_batch-norm-skew"
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {
        f"{stem}.md", f"{stem}.tex", f"{stem}.csv", f"{stem}-differences.md", f"{stem}-differences.tex", "runs.csv"
    }  # fmt: skip
    assert (tmp_path / "tables" / "runs.csv").read_text() == "run_id\na\n"


def test_an_empty_study_has_tables_of_dashes(study: Study, fill: Fill) -> None:
    study = replace(study, base=Run(world=Devices(global_batch=32)), seeds=2)
    points = points_of(study, fill(study, keep=lambda run: False))
    table = means(points)
    assert {cell.text for _, lines in table.blocks for line in lines for cell in line[1:]} == {"—"}
    assert "no run has finished" in table.caption
    assert table.records == []
