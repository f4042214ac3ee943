"""Doubts about where rows come from are sentences of the page."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from made_up import ENVIRONMENT, Fill, fake_row

from syncnorm.config import Run
from syncnorm.study import Study
from syncnorm.study.plan.spec import expand
from syncnorm.study.report.provenance import provenance
from syncnorm.study.report.report import write_report
from syncnorm.study.rows import read
from syncnorm.study.run.store import Store


def filled(study: Study, fill: Fill, extra: Any) -> Path:
    folder = fill(study, runs=[])
    with Store.open(folder, study) as store:
        for run in expand(study):
            store.append(fake_row(study.name, run) | extra(run))
    return folder


def few(study: Study, **changes: Any) -> Study:
    return replace(study, vary={"norm": ["bn", "gn"]}, seeds=2, also=(), figures=(), **changes)


def test_rows_of_a_changed_working_tree_are_counted(study: Study, fill: Fill) -> None:
    def extra(run: Run) -> dict[str, Any]:
        commit = "81f046-dirty" if run.seed else "077d89bfeb81"
        return {"environment": {**ENVIRONMENT, "commit": commit}}

    folder = filled(few(study), fill, extra)
    said = (
        "2 of 4 finished runs were made from a working tree with uncommitted changes (81f046-dirty): no commit holds "
        "their source."
    )
    assert provenance(read(folder)) == [said]
    assert said in write_report(folder).read_text()


def test_rows_of_different_source_are_said(study: Study, fill: Fill) -> None:
    folder = filled(few(study), fill, lambda run: {"fingerprints": {"source": "ab" * 20 if run.seed else "cd" * 20}})
    (said,) = provenance(read(folder))
    assert "different versions of their source: cdcdcdcdcdcd (2 runs) and abababababab (2 runs)" in said
    assert said in write_report(folder).read_text()


def test_different_data_and_models_have_different_fingerprints_and_that_is_no_doubt(study: Study, fill: Fill) -> None:
    study = replace(few(study), vary={"model": ["small_cnn", "mlp"], "data": ["digits", "digits-photo"]})

    def extra(run: Run) -> dict[str, Any]:
        return {"fingerprints": {"data": run.data.name, "model": run.model, "source": "one"}}

    assert provenance(read(filled(study, fill, extra))) == []


def test_the_same_data_set_with_other_contents_is_said(study: Study, fill: Fill) -> None:
    folder = filled(few(study), fill, lambda run: {"fingerprints": {"data": f"{run.data.name}{run.seed}"}})
    (said,) = provenance(read(folder))
    assert "versions of their data: digits" in said


def test_rows_that_say_nothing_give_no_doubt(study: Study, fill: Fill) -> None:
    assert provenance(read(filled(few(study), fill, lambda run: {}))) == []
