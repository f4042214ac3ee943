"""`syncnorm merge`: results of one study from several machines in one folder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from drive import small
from made_up import fake_row

from syncnorm.cli import main
from syncnorm.errors import UserError
from syncnorm.study import Study, run_study
from syncnorm.study.plan.spec import expand
from syncnorm.study.rows import read
from syncnorm.study.run.merge import apart, merge
from syncnorm.study.run.runner import check_study
from syncnorm.study.run.store import Store
from syncnorm.worlds import SAMPLES


def written(folder: Path, study: Study, seeds: set[int], change: Any = lambda row: None) -> Path:
    """Write a results folder with the runs of some seeds, each row changed by `change`."""
    with Store.open(folder, study, plan=check_study(study, None, 0.0)) as store:
        for run in expand(study):
            if run.seed in seeds:
                row = fake_row(study.name, run)
                change(row)
                store.append(row)
    return folder


def test_two_machines_make_one_folder_that_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = small()
    first, second = written(tmp_path / "a", study, {0, 1}), written(tmp_path / "b", study, {1})
    (second / "models" / "x").mkdir(parents=True)
    other = written(tmp_path / "c", replace(study, seeds=1, first_seed=7), {7}, environment("cpu", "Another"))
    arguments = [str(first), str(second), str(other), "--out", str(tmp_path / "all")]

    monkeypatch.setattr("sys.argv", ["syncnorm", "merge", *arguments])
    assert main() == 0
    said = capsys.readouterr().out
    assert f"{first}: 8 rows taken" in said
    assert f"{other}: 4 rows taken" in said
    assert "4 runs in several folders, which agree within 1e-06" in said
    assert "cpu differs: " in said
    assert f"Another in {other}" in said
    results = read(tmp_path / "all")
    assert len(results.finished) == 12
    assert {row["config"]["seed"] for row in results.finished} == {0, 1, 7}
    assert [row for row in results.rows.values() if row["run_id"] in read(first).rows] == [*read(first).rows.values()]
    assert (tmp_path / "all" / "report.html").exists()
    run_study(study, tmp_path / "all", jobs=1, wandb="off", trainer="fake_fit")
    assert {row["config"]["seed"] for row in read(tmp_path / "all").finished} == {0, 1, 2}, "what the study has"


def environment(name: str, value: str) -> Any:
    return lambda row: row.update(environment={**row["environment"], name: value})


def metric(name: str, by: float) -> Any:
    return lambda row: row["metrics"].update({name: row["metrics"][name] + by})


def test_runs_that_do_not_agree_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    study, out = small(), tmp_path / "all"
    first = written(tmp_path / "a", study, {0, 1})
    near = written(tmp_path / "near", study, {1, 2}, metric("accuracy", 1e-7))
    far = written(tmp_path / "far", study, {1, 2}, metric("accuracy", 0.01))
    with pytest.raises(UserError, match=r"4 of 4 runs .* do not agree within 1e-06: accuracy of"):
        merge([first, far], out)
    assert not out.exists()
    assert len(merge([first, near], out).notes) == 3
    assert len(read(out).finished) == 12
    assert len(merge([first, far], tmp_path / "wide", tolerance=0.02).notes) == 3
    row = next(iter(read(tmp_path / "wide").rows.values()))
    assert row == read(first).rows[row["run_id"]], "the first folder's row is taken"


def test_a_finished_run_comes_before_a_failed_one(tmp_path: Path) -> None:
    study = small()
    first, second = written(tmp_path / "a", study, {0}, failed), written(tmp_path / "b", study, {0, 1})
    merge([first, second], tmp_path / "all")
    assert len(read(tmp_path / "all").finished) == 8
    assert not read(tmp_path / "all").failed


def failed(row: Any) -> None:
    del row["metrics"]
    row["error"] = "no such thing"


def test_rows_of_other_source_data_or_studies_are_refused(tmp_path: Path) -> None:
    study, out = small(), tmp_path / "all"
    first = written(tmp_path / "a", study, {0}, fingerprint("model mine", "1"))
    source = written(tmp_path / "b", study, {1}, fingerprint("model mine", "2"))
    data = written(tmp_path / "c", study, {0}, fingerprint(SAMPLES, "3"))
    old = written(tmp_path / "d", study, {0}, fingerprint(SAMPLES, "4"))
    another = written(tmp_path / "e", replace(study, name="another"), {0})
    plots = written(tmp_path / "f", replace(study, figures=()), {0})
    for folders, said in (
        ([first, source], r"model mine differ between .*a .1. and .*b .2.: rows of two versions"),
        ([data, old], "the samples of the same data differ"),
        ([first, another], "hold two studies, 'small' and 'another'"),
        ([first, plots], "two versions of the study's file"),
        ([first, first], "there twice"),
        ([first, tmp_path / "nothing"], "has no study.json"),
    ):
        with pytest.raises(UserError, match=said):
            merge(folders, out)
        assert not out.exists()
    with pytest.raises(UserError, match="is there already"):
        merge([first, data], data)


def fingerprint(what: str, value: str) -> Any:
    return lambda row: row.update(fingerprints={what: value})


def test_how_far_two_numbers_are_apart() -> None:
    assert apart(0.5, 0.25) == 0.25
    assert apart(2000.0, 1000.0) == 0.5
    assert apart(None, None) == 0.0
    assert apart(None, 1.0) == apart(1.0, None) == float("inf")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a"], "two results folders or more"),
        (["a", "b"], "where the merged results go"),
        (["a", "b", "--uot", "c"], "--out"),
    ],
)
def test_a_mistake_is_a_sentence(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["syncnorm", "merge", *arguments])
    assert main() == 2
    assert said in capsys.readouterr().err
