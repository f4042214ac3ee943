"""Studies of domains: their words, their report, and changes from the command line."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from made_up_domains import DOMAINS, domain_row, domains_study

from syncnorm.cli import main
from syncnorm.config import Domains, Norm, Run
from syncnorm.errors import UserError
from syncnorm.study.plan.override import parse
from syncnorm.study.plan.spec import Grid, Study, expand, with_engine
from syncnorm.study.report.analysis.labels import field_label, metric_label, setting, value_label
from syncnorm.study.report.analysis.points import Chart, Points, gather
from syncnorm.study.report.plots import Curve, History
from syncnorm.study.report.report import write_report
from syncnorm.study.report.runs import run_words
from syncnorm.study.rows import read
from syncnorm.study.run.store import Store

FONTS = {"unseen": ("digits-fonts",)}


def fill(study: Study, folder: Path) -> Path:
    with Store.open(folder, study) as store:
        for run in expand(study):
            store.append(domain_row(study.name, run))
    return folder


def points_of(folder: Path, chart: Chart, **changes: object) -> Points:
    study = replace(domains_study(chart), seeds=1, also=(), **changes)  # type: ignore[arg-type]
    results = read(fill(study, folder))
    return gather(chart, results)


def test_lines_of_norm_and_adaptation_say_what_they_are(tmp_path: Path) -> None:
    curve = Curve("unseen", ("norm", "adapt"))
    points = points_of(tmp_path / "a", curve)
    assert points.lines == ["bn", "bn + tent", "domain_bn", "domain_bn + tent", "gn", "gn + tent"]
    assert points.xs == ["none", "digits-fonts", "digits, digits-photo"]
    adapted = Run(world=Domains(domains=DOMAINS, unseen=FONTS["unseen"], adapt="tent"))
    assert points_of(tmp_path / "b", curve, base=adapted).lines[:2] == ["bn + adaptation none", "bn"]


def test_options_are_readable_parts_of_lines(tmp_path: Path) -> None:
    norms = [Norm("bn"), Norm("domain_bn", {"domain_affine": True}), Norm("gn", {"groups": 8, "affine": False})]
    points = points_of(
        tmp_path / "a", Curve("adapt", ("norm.name", "norm.options"), where=FONTS), vary={"norm": norms}
    )
    assert points.lines == ["bn", "domain_bn + domain affine", "gn + no affine, groups 8"]
    assert points.line_label == "norm"
    same_name = [Norm("domain_bn", {"domain_affine": True}), Norm("domain_bn", {"domain_affine": False})]
    points = points_of(tmp_path / "b", Curve("adapt", "norm", where=FONTS), vary={"norm": same_name})
    assert points.lines == ["domain_bn (domain affine)", "domain_bn (no domain affine)"]
    options = points_of(tmp_path / "c", Curve("adapt", "norm.options", where=FONTS), vary={"norm": norms})
    assert options.lines == ["default options", "domain affine", "no affine, groups 8"]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("adapt", "adabn", "adaptation adabn"),
        ("adapt_samples", 16, "samples seen 16"),
        ("adapt_samples", None, "samples seen all"),
        ("batches", "one_domain", "one-domain batches"),
        ("unseen", ["a", "b"], "unseen domains a, b"),
        ("world.test_batch", 8, "samples per test batch 8"),
        ("test_order", "sorted", "test order sorted"),
        ("adapt_options", {"lr": 0.001}, "learning rate 0.001"),
        ("norm.name", "bn", "norm bn"),
    ],
)
def test_a_field_and_its_value_in_words(field: str, value: object, words: str) -> None:
    assert setting(field, value) == words


def test_words_alone() -> None:
    assert field_label("domains") == "domains"
    assert field_label("world.batches") == "training batches"
    assert value_label("mixed", "batches") == "mixed batches"
    assert value_label(True) == "yes"


@pytest.mark.parametrize(
    ("unseen", "title"),
    [
        ([("digits",), ("digits-fonts",)], "Accuracy on unseen domains (%)"),
        ([()], "Accuracy on seen domains (%)"),
        ([(), ("digits",)], "Accuracy on unseen domains, on seen ones where none is unseen (%)"),
    ],
)
def test_what_accuracy_is_follows_from_what_is_unseen(tmp_path: Path, unseen: list[object], title: str) -> None:
    points = points_of(tmp_path, Curve("unseen", "norm"), vary={"norm": ["bn", "gn"], "unseen": unseen})
    assert points.kind == "domains"
    assert points.metric(None).title == title


def test_metrics_of_single_domains() -> None:
    words = [metric_label(name, "domains").words for name in ("accuracy_digits-photo", "accuracy_seen", "train_loss")]
    assert words == ["accuracy on digits-photo", "accuracy on seen domains", "training loss"]
    assert metric_label("accuracy_digits", "domains").short == "digits"


def test_a_history_is_by_epoch_and_without_adaptation(tmp_path: Path) -> None:
    points = points_of(tmp_path, History(("norm", "adapt"), "unseen_accuracy", where=FONTS))
    assert points.x_label == "epoch"
    assert points.title.startswith("Accuracy on unseen domains, not adapted (%) by epoch and norm")
    assert points.evaluation() == "Evaluated with statistics as trained, not adapted. Not tuned."


def test_the_page_shows_every_plot_and_its_files_are_there(tmp_path: Path) -> None:
    study = replace(domains_study(), seeds=2)
    page = write_report(fill(study, tmp_path)).read_text()
    assert re.findall(r"<h2>((?:Figure|Table) \d)", page) == [
        "Figure 1", "Figure 2", "Figure 3", "Table 4", "Figure 5", "Figure 6"
    ]  # fmt: skip
    assert all((tmp_path / link).is_file() for link in re.findall(r'href="([^"#]+)"', page))
    row = read(tmp_path).finished[0]
    assert run_words(row) == "bn, 3 domains, mixed batches, adaptation none, seed 0"


def test_the_axis_of_samples_ends_with_all_of_them(tmp_path: Path) -> None:
    grid = Grid({"adapt": ["adabn"], "adapt_samples": [None, 32, 8]})
    study = replace(domains_study(Curve("adapt_samples", "adapt", where=FONTS)), seeds=1, vary={"norm": ["bn"]})
    results = read(fill(replace(study, also=(grid,)), tmp_path))
    points = gather(study.figures[0], results)  # type: ignore[arg-type]
    assert [points.x_text(x) for x in points.xs] == ["8", "32", "all"]


def test_an_engine_of_domains_is_chosen_for_all_runs() -> None:
    assert {run.world.engine for run in expand(with_engine(domains_study(), "torchrun"))} == {"torchrun"}  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"has an engine 'cohort': those of domains have virtual, torchrun\.$"):
        with_engine(domains_study(), "cohort")


def test_names_and_adaptations_are_read_from_the_command_line() -> None:
    base = Run(world=Domains(domains=DOMAINS))
    assert parse(base, "unseen", "digits+digits-fonts") == ("digits", "digits-fonts")
    assert parse(base, "unseen", "none") == ()
    assert parse(base, "adapt", "none") == "none"
    assert parse(base, "adapt_samples", "none") is None


EXPERIMENT = """
from syncnorm.config import Domains, Run
from syncnorm.study import Study

STUDY = Study("own", "?", Run(world=Domains(domains=("digits", "digits-fonts"))), {"norm": ["bn"]}, seeds=1)
"""


def test_options_of_the_world_hold_for_all_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "own.py"
    file.write_text(EXPERIMENT)
    started: list[Study] = []
    monkeypatch.setattr("syncnorm.commands.run.run_study", lambda study, *_, **options: started.append(study))
    monkeypatch.setattr("syncnorm.commands.run.show", lambda directory, results: 0)
    options = ["--world.adapt", "tent", "--world.unseen", "digits-fonts", "--world.adapt-samples", "16"]
    monkeypatch.setattr("sys.argv", ["syncnorm", "run", str(file), *options])
    assert main() == 0
    (run,) = expand(started[0])
    world = Domains(domains=("digits", "digits-fonts"), unseen=("digits-fonts",), adapt="tent", adapt_samples=16)
    assert run.world == world


def test_an_engine_and_an_unknown_adaptation_are_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.py"
    file.write_text(EXPERIMENT)
    monkeypatch.setattr("sys.argv", ["syncnorm", "run", str(file), "--engine", "cohort"])
    assert main() == 2
    said = "syncnorm: no run of study 'own' has an engine 'cohort': those of domains have virtual, torchrun.\n"
    assert capsys.readouterr().err == said
    monkeypatch.setattr(
        "sys.argv", ["syncnorm", "run", str(file), "--vary", "adapt=tend", "--out", str(tmp_path / "o")]
    )
    assert main() == 2
    assert "did you mean 'tent'" in capsys.readouterr().err
