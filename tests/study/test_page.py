"""The pages of a study: contents, figures as SVG with the values of their points, runs, several studies."""

import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from made_up import Fill

from syncnorm.cli import main
from syncnorm.config import Run
from syncnorm.study import Curve, Study
from syncnorm.study.report.report import write_report


@pytest.fixture
def small(study: Study) -> Study:
    vary: dict[str, Any] = {"norm": ["bn", "gn"], "per_device_batch": [1, 4]}
    figure = Curve("per_device_batch", "norm", title="A <title> & more")
    return replace(study, vary=vary, seeds=2, also=(), agreements=(), figures=(figure,))


class Ids(HTMLParser):
    """Collects ids, targets of links within the page, and every tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        if name := found.get("id"):
            self.ids.append(name)
        if (link := found.get("href") or "").startswith("#") and tag == "a":
            self.targets.append(link[1:])


def runs_data(folder: Path) -> dict[str, Any]:
    page = (folder / "runs.html").read_text()
    found = re.search(r'<script type="application/json" id="runs-data">(.*?)</script>', page, re.DOTALL)
    assert found
    loaded: dict[str, Any] = json.loads(found[1])
    return loaded


def test_the_contents_lead_to_every_section_and_no_id_occurs_twice(small: Study, fill: Fill) -> None:
    page = Ids(write_report(fill(small)).read_text())
    sections = [name for name in page.ids if name in page.targets]
    assert sections[:2] == ["figure-1", "claims"]
    assert set(page.targets) <= set(page.ids)
    assert page.tags.count("section") == len(page.targets)
    assert len(page.ids) == len(set(page.ids))


def test_a_figure_has_the_value_of_every_point_and_the_colours_of_the_page(small: Study, fill: Fill) -> None:
    folder = fill(small)
    page = write_report(folder).read_text()
    (figure,) = re.findall(r"<svg class=\"chart\".*?</svg>", page, re.DOTALL)
    assert 'aria-label="A &lt;title&gt; &amp; more"' in figure
    values = re.findall(r'<circle class="spot"[^>]*><title>(.*?)</title>', figure)
    assert len(values) == 4
    table = (folder / "tables" / "1-accuracy-per_device_batch-norm.csv").read_text().splitlines()
    means = [float(line.split(",")[table[0].split(",").index("mean")]) for line in table[1:]]
    assert sorted(values) == sorted(
        f"{norm}, samples per device {batch}, {100 * mean:.4g}"
        for (norm, batch), mean in zip([(n, b) for n in ("bn", "gn") for b in (1, 4)], means, strict=True)
    )
    assert "#22262b" not in figure
    assert "var(--ink)" in figure


def test_the_same_rows_give_the_same_page(small: Study, fill: Fill) -> None:
    folder = fill(small)
    pages = [(write_report(folder).read_bytes(), (folder / "runs.html").read_bytes()) for _ in range(2)]
    assert pages[0] == pages[1]


def test_all_runs_are_in_a_table_with_settings_numbers_and_history(small: Study, fill: Fill) -> None:
    def odd(run: Run) -> bool:
        return run.norm.name == "gn" and run.seed == 1

    folder = fill(small, fail=odd)
    write_report(folder)
    data = runs_data(folder)
    assert data["columns"] == [
        "run", "role", "seed", "Accuracy (%)", "seconds", "trouble", "norm", "devices", "samples per device"
    ]  # fmt: skip
    assert len(data["rows"]) == 8
    cells, history = data["rows"][0]
    assert history == ["train_loss", "1", "0.5", [100, 0]]
    assert (cells[1], cells[2], cells[4], cells[6:]) == ("reported", "0", "3.5", ["bn", "32", "1"])
    failed = [row for row, _ in data["rows"] if str(row[5])]
    assert len(failed) == 2
    assert failed[0][3:6] == ["", "1.0", "failed: Loss is not finite."]


def test_a_closing_tag_in_a_setting_ends_no_script(small: Study, fill: Fill) -> None:
    folder = fill(small, fail=lambda run: run.seed == 1)
    rows = (folder / "runs.jsonl").read_text().replace("Loss is not finite.", "</script><b>")
    (folder / "runs.jsonl").write_text(rows)
    write_report(folder)
    assert str(runs_data(folder)["rows"]).count("</script><b>") == 4


def test_what_people_say_of_a_study_is_on_its_page(small: Study, fill: Fill) -> None:
    folder = fill(small)
    text = (
        "# name\n\n**Found**: one <script>alert(1)</script>.\n\n![x](y.png)\n\n| a | b |\n| --- | ---: |\n| 1 | 2 |\n"
    )
    (folder / "README.md").write_text(text)
    page = write_report(folder).read_text()
    found = re.search(r'<section id="findings">(.*?)</section>', page, re.DOTALL)
    assert found
    assert "<strong>Found</strong>: one &lt;script&gt;" in found[1]
    assert "<td>1</td>" in found[1]
    assert "y.png" not in found[1]


def test_a_folder_of_studies_gets_one_page(
    small: Study, fill: Fill, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fill(small)
    monkeypatch.setattr(sys, "argv", ["syncnorm", "report", str(folder.parent)])
    assert main() == 0
    assert capsys.readouterr().out.strip() == str(folder.parent / "index.html")
    page = (folder.parent / "index.html").read_text()
    assert '<a href="results/report.html">batch-size</a>' in page
    assert "8 runs, 0 of 2 differences found" in page
    assert (folder / "report.html").exists()
