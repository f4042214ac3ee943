"""What may be called found: Holm's correction, the rule and each reason that it gives, and the report's table."""

import csv
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up import Fill, fake_row
from made_up_tuned import tuned
from scipy import stats

from syncnorm.config import Run
from syncnorm.samples import sample_details
from syncnorm.study import Columns, Curve, Study
from syncnorm.study.plan.spec import expand
from syncnorm.study.report.analysis.evidence import evidence
from syncnorm.study.report.analysis.points import gather
from syncnorm.study.report.claims import claims_table
from syncnorm.study.report.inference.comparisons import Line, compared, holm
from syncnorm.study.report.inference.verdict import verdict, verdicts
from syncnorm.study.report.report import write_report
from syncnorm.study.rows import read
from syncnorm.study.run.store import Store


def test_holms_correction_is_the_closed_test_of_bonferroni() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        p = rng.random(5) ** 3
        subsets = [set(some) for size in range(1, 6) for some in combinations(range(5), size)]
        closed = [
            max(min(1.0, len(some) * min(p[i] for i in some)) for some in subsets if k in some) for k in range(5)
        ]
        np.testing.assert_allclose(holm(p.tolist()), closed)
    assert holm([]) == []


def test_a_comparison_is_the_paired_t_test_with_its_correlation() -> None:
    a, b = {0: 0.9, 1: 0.8, 2: 0.85, 3: 0.7}, {0: 0.7, 1: 0.75, 2: 0.7, 9: 0.1}
    found = compared({"a": (Line(a), Line(b)), "none": (Line({5: 1.0}), Line(b)), "one": (Line({0: 1.0}), Line(b))})
    assert set(found) == {"a", "one"}
    ours, theirs = [0.9, 0.8, 0.85], [0.7, 0.75, 0.7]
    one = found["a"]
    assert one.p == pytest.approx(stats.ttest_rel(ours, theirs).pvalue)
    assert one.adjusted == one.p, "a single comparison has a p-value"
    assert one.correlation == pytest.approx(stats.pearsonr(ours, theirs).statistic)
    assert one.narrowed is (one.correlation > 0)
    assert (found["one"].p, found["one"].survives) == (None, False)


def test_equal_differences_without_spread_have_no_p_value_but_for_zero() -> None:
    a = {seed: 0.5 for seed in range(5)}
    found = compared({1: (Line(a), Line(a)), 2: (Line(a), Line({seed: 0.25 for seed in range(5)}))})
    assert (found[1].p, found[2].p) == (1.0, None)


GOOD: dict[str, Any] = {
    "reference": "bn",
    "higher_is_better": True,
    "mean": 0.95,
    "reference_mean": 0.9,
    "difference_n": 10,
    "difference_mean": 0.05,
    "difference_low": 0.03,
    "difference_high": 0.07,
    "difference_both_low": 0.02,
    "difference_both_high": 0.08,
    "p_holm": 0.001,
    "comparisons": 8,
    "diverged": 0,
    "reference_diverged": 0,
    "at_chance": 0,
    "reference_at_chance": 0,
    "tuned": True,
    "reference_tuned": True,
    "budget": 16,
    "reference_budget": 16,
    "edge": "",
    "reference_edge": "",
    "baseline": 0.93,
}
WORSE = {
    **GOOD,
    "mean": 0.9,
    "reference_mean": 0.95,
    "difference_mean": -0.05,
    "difference_low": -0.07,
    "difference_high": -0.03,
    "difference_both_low": -0.08,
    "difference_both_high": -0.02,
}


def test_a_difference_that_meets_every_condition_is_found_in_either_direction() -> None:
    assert verdict(GOOD).found
    assert (verdict(GOOD).better, verdict(WORSE).better) == ("line", "reference")
    assert verdict(WORSE).word == "found"
    loss = {**WORSE, "higher_is_better": False, "baseline": None}
    assert (verdict(loss).found, verdict(loss).better) == (True, "line")
    assert verdict({**GOOD, "baseline": None}).found, "a study without a baseline"


REASONS = [
    ({"tuned": False}, "not tuned"),
    ({"reference_tuned": None}, "it is not recorded whether both lines are tuned"),
    ({"budget": 8}, "unequal budgets of tuning: 8 and 16 trials"),
    ({"budget": None}, "the budgets of tuning are not recorded"),
    ({"p_holm": 0.06}, "p = 0.06 after Holm's correction for 8 comparisons"),
    ({"p_holm": None}, "no p-value: one seed, or no spread"),
    ({"difference_low": -0.01}, "the interval over seeds holds zero"),
    ({"difference_both_low": -0.01}, "the interval over seeds and test samples holds zero"),
    ({"difference_both_low": None}, "no interval over seeds and test samples"),
    ({"difference_n": 4}, "4 seeds in common, 5 are needed"),
    ({"reference_diverged": 1}, "1 run of the reference diverged, and in no mean"),
    ({"diverged": 2}, "2 runs of the line diverged, and in no mean"),
    ({"diverged": None}, "it is not recorded whether runs of the line diverged"),
    ({"at_chance": 2}, "2 runs of the line at chance"),
    ({"reference_at_chance": None}, "it is not recorded whether the reference is better than a guess"),
    ({"reference_edge": "lr 0.003"}, "the reference's choice lies at the edge of its range: lr 0.003"),
    ({"reference_edge": None}, "it is not recorded whether a choice of the reference lies at the edge of its range"),
    ({"baseline": 0.96}, "the better line is below the pixel baseline (96.0 %)"),
]


@pytest.mark.parametrize(("change", "reason"), REASONS, ids=[reason for _, reason in REASONS])
def test_every_condition_that_fails_is_the_only_reason(change: dict[str, Any], reason: str) -> None:
    said = verdict({**GOOD, **change})
    assert said.reasons == (reason,)
    assert said.word == "not resolved"


def test_an_edge_that_does_not_favour_the_claim_is_none() -> None:
    assert verdict({**GOOD, "edge": "lr 1"}).found, "beyond the edge the better line could only gain"
    assert not verdict({**WORSE, "edge": "lr 1"}).found
    neutral = {**GOOD, "higher_is_better": None, "edge": "lr 1"}
    assert not verdict(neutral).found
    assert verdict({**neutral, "edge": ""}).better == ""


def test_a_worse_line_at_chance_is_said_with_the_claim() -> None:
    said = verdict({**GOOD, "reference_at_chance": 3})
    assert said.found
    assert said.notes == ("3 runs of the worse line at chance",)


def test_a_record_that_says_nothing_has_every_reason() -> None:
    said = verdict({"reference": "bn"})
    assert len(said.reasons) == 9
    assert verdicts([{"reference": None}, {}]) == []


@pytest.fixture
def pair(study: Study) -> Study:
    vary = {"norm": ["bn", "gn"], "per_device_batch": [4]}
    return replace(study, vary=vary, also=(), agreements=(), figures=(Curve("per_device_batch", "norm"),))


def test_evidence_is_read_from_the_study_and_its_rows(pair: Study, tmp_path: Path) -> None:
    results = tuned(pair, tmp_path)
    points = gather(pair.figures[0], results)  # type: ignore[arg-type]
    (record,) = evidence(points, results, {(None, 4): 0.7})
    assert (record["tuned"], record["reference_tuned"]) == (True, True)
    assert (record["budget"], record["reference_budget"]) == (6, 6)
    assert (record["edge"], record["reference_edge"]) == ("", "")
    assert record["baseline"] == 0.7
    assert verdict(record).reasons == ()
    (low,) = evidence(points, results, {(None, 4): 0.99})
    assert verdict(low).reasons == ("the better line is below the pixel baseline (99.0 %)",)
    lines = [{**one, "trials": one["trials"][:2]} for one in results.about.tuning["lines"]]
    edge = replace(results, about=replace(results.about, tuning={**results.about.tuning, "lines": lines}))
    (record,) = evidence(gather(pair.figures[0], edge), edge)  # type: ignore[arg-type]
    assert verdict(record).reasons == ("the reference's choice lies at the edge of its range: lr 0.05",)


def test_without_tuning_nothing_is_found_and_the_table_says_why(pair: Study, fill: Fill) -> None:
    folder = fill(replace(pair, figures=(*pair.figures, Columns("norm", ("accuracy", "test_loss")))))
    page = write_report(folder).read_text()
    assert "<h2>Claims</h2>" in page
    assert "None of 3 differences are found." in page
    records = list(csv.DictReader((folder / "tables" / "verdicts.csv").open()))
    assert [record["plot"] for record in records] == ["1", "2", "2"]
    assert {record["verdict"] for record in records} == {"not resolved"}
    assert records[0]["reasons"].startswith("not tuned; ")
    assert "no interval over seeds and test samples" in records[0]["reasons"]
    text = (folder / "tables" / "verdicts.md").read_text()
    assert "| gn against bn, samples per device 4 |" in text, "what is not found names no winner"


def test_a_table_counts_its_comparisons_and_marks_those_that_survive(pair: Study, tmp_path: Path) -> None:
    chart = pair.figures[0]
    results = tuned(pair, tmp_path)
    means, differences = chart.collect(results).tables()
    (cell,) = [line[1] for line in differences.blocks[0][1]]
    assert cell.text.endswith("†")
    assert "†: not zero after Holm's correction for 1 comparison (adjusted p < 0.05; p over seeds and test" in (
        differences.caption
    )
    assert "Correlation with bn over seeds: " in differences.caption
    assert "Of accuracies, the median ± is " in means.caption
    line, other = means.records[1], means.records[0]
    assert other["reference"] is None
    assert line["p_covers"] == "seeds and test samples"
    for prefix in ("", "test_", "both_", "difference_", "difference_test_", "difference_both_"):
        assert line[f"{prefix}low"] < line[f"{prefix}high"], prefix
    assert line["test_low"] < line["mean"] < line["test_high"]


def test_no_difference_is_marked_where_there_is_none(pair: Study, tmp_path: Path) -> None:
    _, differences = pair.figures[0].collect(tuned(pair, tmp_path, gap=0.0)).tables()
    assert not any("†" in cell.text for _, lines in differences.blocks for line in lines for cell in line)
    assert ": none." in differences.caption


def test_a_claim_that_is_found_names_the_better_line(pair: Study, tmp_path: Path) -> None:
    results = tuned(pair, tmp_path)
    found = claims_table(results)
    assert found is not None
    assert "1 of 1 differences is found." in found.caption
    words, _, said, why = found.blocks[0][1][0]
    assert (words.text, said.text, said.bold, why.text) == (
        "gn better than bn, samples per device 4", "found", True, ""
    )  # fmt: skip
    assert (found.records[0]["verdict"], found.records[0]["better"]) == ("found", "line")


def test_lines_that_do_not_compete_are_not_compared(pair: Study, tmp_path: Path) -> None:
    chart = replace(pair.figures[0], rivals=False)  # type: ignore[type-var]
    results = tuned(replace(pair, figures=(chart,)), tmp_path)
    (means,) = chart.collect(results).tables()
    assert not any(cell.bold for _, lines in means.blocks for line in lines for cell in line)
    assert "Bold" not in means.caption
    assert claims_table(results) is None


def lucky(run: Run) -> bool:
    return run.norm.name == "gn" and run.seed < 2


def test_runs_at_chance_stay_in_the_mean_and_are_marked(pair: Study, tmp_path: Path) -> None:
    labels = np.arange(300) % 10
    with Store.open(tmp_path, pair) as store:
        for run in expand(pair):
            right = np.arange(300) < (42 if lucky(run) else 250 + run.seed)
            row = fake_row(pair.name, run, accuracy=float(right.mean()))
            store.append({**row, "details": sample_details(right, labels)})
    means, differences = pair.figures[0].collect(read(tmp_path)).tables()
    cells = {line[0].text: line[1] for line in means.blocks[0][1]}
    assert cells["gn"].note == "at chance (2 of 5)"
    assert cells["bn"].note == ""
    assert not any(cell.bold for cell in cells.values())
    expected = np.mean([42, 42, 252, 253, 254]) / 3
    assert cells["gn"].text.startswith(f"{expected:.1f} ± ")
    assert "At chance, no better than a guess, and in the means: 2 runs." in means.caption
    assert differences.blocks[0][1][0][1].note == "at chance (2 of 5)"
    assert [record["at_chance"] for record in means.records] == [0, 2]
