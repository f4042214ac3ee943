"""A plot of the user's own: registered in the study's file, drawn in the report, left out where nobody knows it."""

import json
import os
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from made_up import Fill

import syncnorm
from syncnorm.errors import UserError
from syncnorm.study import Curve, Plot, Study, View
from syncnorm.study.plot import as_plain
from syncnorm.study.report.console import main_table
from syncnorm.study.report.plots import PLOTS, from_plain, register_plot
from syncnorm.study.report.report import write_report
from syncnorm.study.rows import Results, read

BY_NORM = Curve("per_device_batch", "norm", where={"skew": 0.0})


@syncnorm.register_plot("test-seconds")
@dataclass(frozen=True)
class Seconds(Plot):
    """How long every run took."""

    colours: tuple[str, ...] = ("red",)
    fails: str = ""

    def collect(self, results: Results) -> View:
        if self.fails == "collecting":
            raise KeyError("nothing here")
        return SecondsView(name="seconds", title="Seconds a run", caption="<Sorted>", fails=self.fails)


@dataclass(frozen=True, kw_only=True)
class SecondsView(View):
    """A figure without a table."""

    fails: str

    def figure(self) -> Any:
        from matplotlib.figure import Figure

        if self.fails:
            raise ZeroDivisionError("no bins")
        figure = Figure(figsize=(2, 1))
        figure.subplots().plot([1, 2])
        return figure


def test_it_comes_back_from_json_with_its_kind_and_fields() -> None:
    plot = Seconds(("red", "blue"), where={"norm": ["bn", "gn"]}, title="Mine")
    plain = json.loads(json.dumps(as_plain(plot)))
    assert plain["kind"] == "test-seconds"
    assert from_plain(plain) == plot


def test_the_report_draws_it_with_the_others(study: Study, fill: Fill) -> None:
    study = replace(study, figures=(BY_NORM, Seconds(where={"norm": "bn"})), seeds=1, also=())
    folder = write_report(fill(study)).parent
    page = (folder / "report.html").read_text()
    assert re.findall(r"<h2>(Figure \d)", page) == ["Figure 1", "Figure 2"]
    assert 'aria-label="Seconds a run"' in page
    assert 'href="figures/2-seconds.png"' in page
    assert "<figcaption>&lt;Sorted&gt;</figcaption>" in page
    assert (folder / "figures" / "2-seconds.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("fails", "why"), [("collecting", "KeyError: 'nothing here'"), ("drawing", "ZeroDivisionError: no bins")]
)
def test_one_that_raises_is_left_out_and_the_others_are_shown(study: Study, fill: Fill, fails: str, why: str) -> None:
    study = replace(study, figures=(Seconds(fails=fails), BY_NORM), seeds=1, also=())
    folder = write_report(fill(study)).parent
    page = (folder / "report.html").read_text().replace("&#x27;", "'")
    assert f"Left out: the plot 'test-seconds' raised {why}" in page
    assert (folder / "figures" / "2-accuracy-per_device_batch-norm.png").is_file()
    assert "\nbn " in main_table(read(folder))


def test_one_that_nobody_registers_is_left_out_with_the_reason(study: Study, fill: Fill) -> None:
    study = replace(study, figures=(BY_NORM, Seconds()), seeds=1, also=())
    folder = fill(study, command="syncnorm run mine.py")
    kept = json.loads((folder / "study.json").read_text())
    kept["figures"][1]["kind"] = "nobodys"
    kept["figures"].append({"kind": "curve", "x": "norm", "lines": "norm"})
    (folder / "study.json").write_text(json.dumps(kept))
    page = write_report(folder).read_text().replace("&#x27;", "'")
    assert "registers plots of kind 'nobodys': start the study's own command again" in page
    assert "(syncnorm run mine.py)" in page
    assert "plots of kind 'curve' do not have these fields: x, lines." in page
    assert page.count('<svg class="chart"') == 1
    said = main_table(read(folder))
    assert said.count("is left out") == 2
    assert said.startswith("Accuracy (%)")


def test_what_is_no_plot_is_refused() -> None:
    with pytest.raises(UserError, match=r"must be a class derived from syncnorm\.study\.Plot"):
        register_plot("test-int")(int)  # type: ignore[type-var]

    class Forgotten(Plot):
        def collect(self, results: Results) -> View:
            raise NotImplementedError

    with pytest.raises(
        UserError, match=r"write @dataclass\(frozen=True\) between @register_plot and class Forgotten"
    ):
        register_plot("test-forgotten")(Forgotten)
    with pytest.raises(UserError, match="plot 'curve' is registered already, by syncnorm itself"):
        register_plot("curve")(Seconds)
    with pytest.raises(UserError, match="register_plot needs a name"):
        register_plot(Seconds)  # type: ignore[arg-type]
    assert Curve.kind == "curve"
    assert Seconds.kind == "test-seconds"
    assert not {"test-int", "test-forgotten"} & set(PLOTS)


@dataclass(frozen=True)
class Unregistered(Seconds):
    """A kind of its own, which nobody could read back."""


@syncnorm.register_plot("test-any")
@dataclass(frozen=True)
class AnyUnit(Seconds):
    """A plot with a field that may hold anything."""

    unit: Any = 60.0


def test_what_the_study_cannot_keep_is_refused(study: Study, fill: Fill) -> None:
    with pytest.raises(UserError, match=r"the plot Unregistered is not registered: write @syncnorm\.register_plot"):
        fill(replace(study, figures=(Unregistered(),)))
    with pytest.raises(UserError, match=r"plot 1 of the study is .*: it must hold plain numbers, texts, lists"):
        fill(replace(study, figures=(AnyUnit(unit=object()),)))
    assert fill(replace(study, figures=(AnyUnit(unit=7),)), runs=[]).is_dir()


def example() -> str:
    """Return the example of register_plot's docstring."""
    lines = (register_plot.__doc__ or "").splitlines()
    start = next(number for number, line in enumerate(lines) if "from dataclasses" in line)
    end = next(number for number, line in enumerate(lines) if line.strip() == "Args:")
    return textwrap.dedent("\n".join(lines[start:end])).strip()


def test_the_documented_example_runs_in_a_study_file(tmp_path: Path) -> None:
    code = example()
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    study = """
from syncnorm.config import Devices, Run
from syncnorm.study import Study, run_study

STUDY = Study("mine", "?", Run(world=Devices()), {"norm": ["bn", "gn"]}, seeds=1, figures=(Minutes(),))
if __name__ == "__main__":
    run_study(STUDY, "out", jobs=1, wandb="off", trainer="fake_fit")
"""
    (tmp_path / "mine.py").write_text(code + "\n" + study)
    paths = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, env=environment, check=True, timeout=200)
    page = (tmp_path / "out" / "report.html").read_text()
    assert 'role="img" aria-label="Minutes a run"' in page
    assert (tmp_path / "out" / "figures" / "1-minutes.png").is_file()
    assert json.loads((tmp_path / "out" / "study.json").read_text())["figures"][0]["kind"] == "minutes"
