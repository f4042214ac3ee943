import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_up import ENVIRONMENT, Fill, fake_row

from syncnorm.errors import UserError
from syncnorm.study.plan.spec import Study, expand
from syncnorm.study.report.plots import Curve
from syncnorm.study.report.report import write_report
from syncnorm.study.rows import failed_row
from syncnorm.study.run.store import Store

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """A page's tags, attributes and text; opened and closed tags must match."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(path.read_text())
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, *names: str) -> list[str]:
        return [value for name, value in self.attributes if name in names]


@pytest.fixture
def small(study: Study) -> Study:
    vary = {**study.vary, "norm": ["bn", "gn"], "skew": [0.0, 100.0]}
    figures = (*study.figures, Curve("per_device_batch", "norm", "skew", "test_loss"))
    return replace(study, vary=vary, seeds=2, figures=figures)


def test_a_finished_study(small: Study, fill: Fill) -> None:
    folder = fill(small, command="syncnorm run experiments/batch_size.py")
    path = write_report(folder)
    page = Page(path)
    total = len(expand(small))
    assert path == folder / "report.html"
    assert f"All {total} runs have ended." in page.text
    assert small.question in page.text
    assert page.values("class").count("chart") == 2
    assert page.tags.count("table") == 6
    assert "Claims" in page.text
    assert "own (rank 0)" in page.text
    assert "engine: virtual and torchrun" in page.text
    assert "syncnorm run experiments/batch_size.py" in page.text
    assert all(value in page.text for value in ENVIRONMENT.values())
    assert "Failed runs" not in page.text
    links = [link for link in page.values("href") if not link.startswith("#")]
    assert len(links) >= 2 + 4 * 2
    assert all((folder / link).is_file() for link in [*links, *page.values("src")])
    assert (folder / "tables" / "runs.csv").read_text().count("\n") == total + 1


def test_the_page_needs_nothing_but_its_folder(small: Study, fill: Fill) -> None:
    path = write_report(fill(small))
    page = Page(path)
    assert not {"link", "iframe", "object", "image"} & set(page.tags)
    assert page.tags.count("script") == 1
    assert page.values("src") == []
    text = path.read_text()
    assert "://" not in text
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_a_figure_is_there_once_and_in_further_formats_on_request(small: Study, fill: Fill) -> None:
    folder = fill(small)
    stems = {path.stem for path in (write_report(folder).parent / "figures").iterdir()}
    assert {path.suffix for path in (folder / "figures").iterdir()} == {".png"}
    page = Page(write_report(folder, formats=("pdf", "svg")))
    assert {path.name for path in (folder / "figures").iterdir()} == {
        f"{stem}.{suffix}" for stem in stems for suffix in ("png", "pdf", "svg")
    }
    assert all((folder / link).is_file() for link in page.values("href", "src") if not link.startswith("#"))
    assert sum(link.endswith((".png", ".pdf", ".svg")) for link in page.values("href")) == 2 * 3
    write_report(folder)
    assert {path.suffix for path in (folder / "figures").iterdir()} == {".png"}, "what is left would show other rows"
    with pytest.raises(UserError, match="unknown format of figures 'pgn': did you mean 'png'"):
        write_report(folder, formats=("pgn",))


def test_a_running_study_is_reported_as_far_as_it_is(small: Study, fill: Fill) -> None:
    runs = expand(small)
    folder = fill(small, runs=runs[:12])
    page = Page(write_report(folder))
    assert f"12 of {len(runs)} runs so far." in page.text
    with Store.open(folder, small) as store:
        store.append(fake_row(small.name, runs[12]))
        assert f"13 of {len(runs)} runs so far." in Page(write_report(folder)).text


def test_a_study_without_any_row_yet(small: Study, fill: Fill) -> None:
    page = Page(write_report(fill(small, runs=[])))
    assert f"0 of {len(expand(small))} runs so far." in page.text
    assert page.values("class").count("chart") == 2


def test_failures_are_told_with_error_and_traceback(small: Study, fill: Fill) -> None:
    runs = expand(small)
    folder = fill(small, runs=runs[2:])
    with Store.open(folder, small) as store:
        for run in runs[:2]:
            store.append(failed_row(small.name, run, "Out of memory.", 1.0, ENVIRONMENT, "Traceback\n  line 7"))
    page = Page(write_report(folder))
    assert "Failed runs" in page.text
    assert page.text.count("Out of memory.") == 2
    assert page.text.count("Traceback\n  line 7") == 1
    assert "2failed" in page.text


HOSTILE = "<script>alert('x')</script> & \"$\\frac{1}$\" --> </style> ]]>"


def test_whatever_a_study_says_is_text(small: Study, fill: Fill) -> None:
    run = replace(small.base, model=HOSTILE)
    study = replace(
        small,
        name=HOSTILE,
        question=HOSTILE,
        base=run,
        figures=(Curve("per_device_batch", "model", "model", where={"model": HOSTILE}),),
    )
    runs = expand(study)
    folder = fill(study, runs=runs[1:], command=HOSTILE)
    with Store.open(folder, study, HOSTILE) as store:
        store.append(failed_row(study.name, runs[0], HOSTILE, 1.0, {}, HOSTILE))
    path = write_report(folder)
    page = Page(path)
    assert page.tags.count("script") == 1, "the page's own"
    assert sum(HOSTILE in label for label in page.values("aria-label")) == 3, "of a figure and two tables"
    assert path.read_text().count("<script") == 1
    assert page.text.count(HOSTILE) >= 6
    assert unescape(path.read_text()).count(HOSTILE) >= 6
    assert all(re.fullmatch(r"[\w.-]+", file.name) for file in (folder / "figures").iterdir())


def test_environments_that_differ_are_counted(small: Study, fill: Fill) -> None:
    runs = expand(small)
    folder = fill(small, runs=runs[1:])
    with Store.open(folder, small) as store:
        store.append(fake_row(small.name, runs[0]) | {"environment": {**ENVIRONMENT, "torch": "9.9"}})
    assert f"9.9 (1 runs); 2.13.0 ({len(runs) - 1} runs)" in Page(write_report(folder)).text


def test_runs_of_an_earlier_version_are_counted_and_left_out(small: Study, fill: Fill) -> None:
    folder = fill(small)
    Store.open(folder, replace(small, seeds=1, also=())).close()
    assert "further runs in the folder are not part of the study" in Page(write_report(folder)).text


def test_writing_again_changes_nothing(small: Study, fill: Fill) -> None:
    folder = fill(small)
    write_report(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    write_report(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no study\.json"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_said_in_one_sentence(small: Study, fill: Fill) -> None:
    folder = fill(small, runs=[])
    (folder / "figures").write_text("in the way")
    with pytest.raises(UserError, match="cannot write"):
        write_report(folder)
