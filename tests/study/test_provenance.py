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
    prints = {0: {"model net": "ab" * 20, "norm mine": "one"}, 1: {"model net": "cd" * 20, "norm mine": "one"}}
    folder = filled(few(study), fill, lambda run: {"fingerprints": prints[run.seed]})
    said = (
        "Different versions of model net made these runs: abababababab (2 runs) and cdcdcdcdcdcd (2 runs). Means "
        "over them mix versions."
    )
    assert provenance(read(folder)) == [said]
    assert said in write_report(folder).read_text()


def test_rows_that_say_nothing_give_no_doubt(study: Study, fill: Fill) -> None:
    assert provenance(read(filled(few(study), fill, lambda run: {}))) == []
