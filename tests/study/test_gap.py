"""The share of a gap that lines close, and values by layer, over a made-up study of domains."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from made_up_domains import ADAPTED, ARM, LAYERS, LOW, PROFILE, SAMPLES, domain_metrics, domain_row, domains_study
from matplotlib.axes import Axes

from syncnorm.config import Run, run_id
from syncnorm.errors import UserError
from syncnorm.study.plan.spec import Grid, Study, expand
from syncnorm.study.plot import Plot, as_plain
from syncnorm.study.report.drawing.style import STYLE
from syncnorm.study.report.inference.statistics import geometric, share_closed, summarise
from syncnorm.study.report.plots import Gap, Profile, from_plain
from syncnorm.study.report.plots.gap import GapView
from syncnorm.study.report.plots.profile import ProfileView
from syncnorm.study.rows import Agreement, read
from syncnorm.study.run.runner import run_study
from syncnorm.study.run.store import Store
from syncnorm.study.table import MINUS, Table

FONTS = ("digits-fonts",)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write the rows of a study of domains into a results folder; `row` makes them."""

    def fill(study: Study, keep: Any = lambda run: True, row: Any = domain_row) -> Path:
        with monkeypatch.context() as patch, Store.open(tmp_path / "out", study) as store:
            patch.setattr(os, "fsync", lambda descriptor: None)
            for run in filter(keep, expand(study)):
                if run_id(run) not in store.finished:
                    store.append(row(study.name, run))
        return tmp_path / "out"

    return fill


def shares(write: Any, gap: Gap = ADAPTED, **options: Any) -> GapView:
    return of_study(domains_study(gap), write, **options)


def of_study(study: Study, write: Any, **options: Any) -> GapView:
    """Return the shares of the study's one figure, as it is read back."""
    results = read(write(study, **options))
    (plain,) = results.about.figures
    view = from_plain(plain).collect(results)
    assert isinstance(view, GapView)
    return view


def accuracies(**fields: Any) -> dict[int, float]:
    """Return the accuracy by seed of the study's runs with these fields."""
    wanted = {"norm": "bn", "adapt": "none", "adapt_samples": None, "unseen": FONTS} | fields
    runs = [
        run
        for run in expand(domains_study())
        if run.norm.name == wanted["norm"]
        and all(getattr(run.world, name) == value for name, value in wanted.items() if name != "norm")
    ]
    assert len(runs) == 4
    return {run.seed: domain_metrics(run)["accuracy"] for run in runs}


def texts(table: Table) -> dict[str, list[str]]:
    return {line[0].text: [cell.text for cell in line[1:]] for _, lines in table.blocks for line in lines}


@pytest.mark.parametrize("plot", [ADAPTED, PROFILE], ids=["gap", "profile"])
def test_a_plot_comes_back_from_json(plot: Plot) -> None:
    plain = json.dumps(as_plain(plot))
    assert json.dumps(as_plain(from_plain(json.loads(plain)))) == plain


def test_every_share_is_of_its_line_and_of_the_ends_by_seed(write: Any) -> None:
    found = shares(write)
    low, high = accuracies(), accuracies(unseen=())
    for samples in SAMPLES:
        line = accuracies(adapt="adabn", adapt_samples=samples)
        assert found.shares[None, "bn + adabn", samples] == share_closed(line, low, high)
    assert found.shares[None, "bn + tent", np.inf] == share_closed(accuracies(adapt="tent"), low, high)
    assert found.points.xs == [*SAMPLES, np.inf]
    assert "bn" not in found.points.lines, "it is the low end"


def test_an_end_at_several_x_is_compared_at_the_same_x(write: Any) -> None:
    gap = Gap("unseen", ARM, LOW, {"norm": "domain_bn", "adapt": "tent"}, where={"adapt": ["none", "tent"]})
    found = shares(write, gap)
    for text, unseen in (("digits-fonts", FONTS), ("digits, digits-photo", ("digits", "digits-photo"))):
        ends = accuracies(unseen=unseen), accuracies(unseen=unseen, norm="domain_bn", adapt="tent")
        line = accuracies(unseen=unseen, adapt="tent")
        assert found.shares[None, "bn + tent", text] == share_closed(line, *ends)
    several = shares(write, replace(gap, where={**gap.where, "unseen": [(), FONTS, ("digits", "digits-photo")]}))
    assert several.shares == found.shares, "naming the x to show does not name the end's"


def test_ends_are_those_of_the_panel_unless_they_name_its_field(write: Any) -> None:
    gap = Gap("adapt_samples", "adapt", {"adapt": "none"}, {"adapt": "tent"}, panel="norm", where={"unseen": FONTS})
    found = shares(write, gap)
    ends = accuracies(norm="gn"), accuracies(norm="gn", adapt="tent")
    assert found.shares["gn", "adabn", 8] == share_closed(
        accuracies(norm="gn", adapt="adabn", adapt_samples=8), *ends
    )
    fixed = shares(write, replace(gap, high={"adapt": "none", "norm": "bn", "unseen": ()}))
    ends = accuracies(norm="gn"), accuracies(unseen=())
    assert fixed.shares["gn", "adabn", 8] == share_closed(
        accuracies(norm="gn", adapt="adabn", adapt_samples=8), *ends
    )


def test_the_table_has_the_gap_the_shares_and_what_is_none(write: Any) -> None:
    table = shares(write).tables()[0]
    found = texts(table)
    gap = summarise([100 * (accuracies(unseen=())[seed] - low) for seed, low in accuracies().items()])
    assert set(found[f"high {MINUS} low (percentage points)"]) == {f"+{gap.mean:.1f} ± {gap.half_width:.1f}"}
    share = share_closed(accuracies(adapt="adabn", adapt_samples=8), accuracies(), accuracies(unseen=()))
    assert share is not None
    assert share.closed is not None
    low, high = (100 * end for end in share.closed.interval or ())
    assert found["bn + adabn"][0] == f"{100 * share.closed.value:.1f} [{low:.1f}, {high:.1f}]"
    assert found["gn"][-1].startswith(MINUS), "below the low end"
    assert found["bn + tent"][0] == "", "not planned"
    assert not any(cell.bold for _, lines in table.blocks for line in lines for cell in line)
    assert (
        "0 %: norm bn and adaptation none; 100 %: norm bn, adaptation none and unseen domains none." in table.caption
    )
    record = next(one for one in table.records if (one["norm+adapt"], one["adapt_samples"]) == ("bn + adabn", 8))
    assert (record["n"], record["share"], record["share_low"]) == (4, share.closed.value, share.closed.interval[0])  # type: ignore[index]
    assert record["gap_mean"] == share.gap.mean


def test_where_the_gap_may_be_zero_the_cell_says_so(write: Any) -> None:
    gap = Gap("unseen", ARM, LOW, {"norm": "domain_bn", "adapt": "tent"}, where={"adapt": ["none", "tent"]})
    found = shares(write, gap)
    assert {cells[0] for name, cells in texts(found.tables()[0]).items() if "low" not in name} == {"no gap"}
    ax = axes(found.figure())[0]
    assert "Not shown: 4 shares of gaps whose 95 % interval holds zero." in note(ax)
    assert [text.get_text() for text in ax.texts] == ["no gap"]


def axes(figure: Any) -> list[Axes]:
    found: list[Axes] = figure.axes
    return found


def note(ax: Axes) -> str:
    """Return what stands below a figure, in one line."""
    return " ".join(ax.figure.texts[-1].get_text().split())


def ys(ax: Axes, label: str) -> list[float]:
    line = next(one for one in ax.get_lines() if one.get_label() == label)
    return [float(y) for y in np.asarray(line.get_ydata(), dtype=float)]


def test_the_figure_shows_shares_in_percent_between_lines_at_0_and_100(write: Any) -> None:
    found = shares(write)
    with mpl.rc_context(STYLE):
        (ax,) = axes(found.figure())
    closed = [found.shares[None, "bn + adabn", samples].closed for samples in SAMPLES]
    assert ys(ax, "bn + adabn")[:-1] == pytest.approx([100 * one.value for one in closed if one])
    across = [line.get_ydata() for line in ax.get_lines() if str(line.get_label()).startswith("_")]
    assert [list(np.asarray(y)) for y in across[:2]] == [[0, 0], [100, 100]]
    assert ax.get_ylabel() == "Share of the gap closed (%)"
    assert "n = 4 seeds" in note(ax)
    assert "cut" not in note(ax)


def test_shares_far_outside_cut_the_axis_and_are_said(write: Any) -> None:
    def far(study: str, run: Run) -> Any:
        row = domain_row(study, run)
        if run.norm.name == "gn":
            row["metrics"]["accuracy"] -= 0.6
        return row

    found = shares(write, row=far)
    with mpl.rc_context(STYLE):
        (ax,) = axes(found.figure())
    ends = [share.closed.interval[1] for share in found.shares.values() if share.closed and share.closed.interval]
    assert ax.get_ylim() == (-105, pytest.approx(100 * max(1.0, *ends) + 5))
    assert f"The axis is cut at {MINUS}100 and 200 %" in note(ax)
    beyond = [line for line in ax.get_lines() if line.get_marker() == "v" and not line.get_clip_on()]
    assert len(beyond) == 2 + len(SAMPLES), "gn, gn + tent, and gn + adabn at every number of samples"


def test_an_end_that_is_several_runs_of_a_seed_is_refused_before_any_is_trained(write: Any, tmp_path: Path) -> None:
    gap = replace(ADAPTED, high={"norm": "bn"})
    with pytest.raises(
        UserError, match=r"the high end of a gap picks several runs of seed 0, which differ in world\.ada"
    ):
        run_study(domains_study(gap), tmp_path / "new", wandb="off", trainer="fake_fit")
    assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match="unknown field of a run 'nom'"):
        run_study(
            domains_study(replace(ADAPTED, low={"nom": "bn"})), tmp_path / "new", wandb="off", trainer="fake_fit"
        )


def test_runs_that_repeat_an_end_but_for_the_field_of_an_agreement_are_one(write: Any) -> None:
    study = replace(
        domains_study(ADAPTED), also=(Grid({"precision": ["float64"]}),), agreements=(Agreement("precision"),)
    )
    assert of_study(study, write).shares
    with pytest.raises(UserError, match="which differ in precision: name this field"):
        of_study(replace(study, agreements=()), write, keep=lambda run: False)


def test_a_gap_without_rows_or_ends_says_so(write: Any) -> None:
    for gap, words in (
        (ADAPTED, "No line and both ends of the gap have a seed in common yet."),
        (replace(ADAPTED, low={"norm": "gbn"}), "The study has no runs at the low end of the gap."),
    ):
        with mpl.rc_context(STYLE):
            (ax,) = axes(shares(write, gap, keep=lambda run: False).figure())
        assert words in note(ax)


def test_seeds_that_an_end_lacks_are_left_out_and_noted(write: Any) -> None:
    found = shares(write, keep=lambda run: run.seed != 3 or run.world.adapt != "adabn")
    lines = {line[0].text: line for line in found.tables()[0].blocks[0][1]}
    assert [cell.note for cell in lines["bn + adabn"][1:5]] == [""] * 4
    assert lines["bn + tent"][-1].note == "n = 4"


def profiles(write: Any, profile: Profile = PROFILE, **options: Any) -> ProfileView:
    results = read(write(domains_study(profile), **options))
    return profile.collect(results)


def values(norm: str) -> list[list[float]]:
    """Return the profile of every seed's run, layer by layer."""
    rows = [
        domain_row("s", run)
        for run in expand(domains_study(PROFILE))
        if run.norm.name == norm and (run.world.adapt, run.world.unseen) == ("none", FONTS)  # type: ignore[union-attr]
    ]
    return [row["details"]["profiles"]["gradient_norm_initial"]["values"] for row in rows]


def test_a_profile_of_a_wide_span_is_the_geometric_mean_of_every_layer(write: Any) -> None:
    found = profiles(write)
    with mpl.rc_context(STYLE):
        (ax,) = axes(found.figure())
    assert ax.get_yscale() == "log"
    by_layer = [geometric(list(layer)) for layer in zip(*values("bn"), strict=True)]
    assert [found.estimate(None, "bn", layer) for layer in LAYERS] == by_layer
    assert ys(ax, "bn") == pytest.approx([one.value for one in by_layer])
    assert [label.get_text() for label in ax.get_xticklabels()] == LAYERS
    table = found.tables()[0]
    assert table.header == LAYERS
    low, high = by_layer[0].interval or (0, 0)
    assert texts(table)["bn"][0] == f"{by_layer[0].value:#.3g} [{low:#.3g}, {high:#.3g}]"
    assert "Geometric mean" in table.caption
    assert "Left out" not in table.caption


def test_a_profile_of_a_narrow_span_is_the_mean(write: Any) -> None:
    found = profiles(write, replace(PROFILE, where={**PROFILE.where, "norm": "gn"}))
    with mpl.rc_context(STYLE):
        assert axes(found.figure())[0].get_yscale() == "linear"
    mean = summarise([one[1] for one in values("gn")])
    estimate = found.estimate(None, "gn", LAYERS[1])
    assert estimate is not None
    assert (estimate.value, estimate.interval) == (mean.mean, mean.interval)
    assert "Mean over seeds" in found.tables()[0].caption


def test_what_a_profile_cannot_show_is_counted_and_said(write: Any) -> None:
    def odd(study: str, run: Run) -> Any:
        row = domain_row(study, run)
        profile = row["details"]["profiles"]["gradient_norm_initial"]
        if run.norm.name == "bn" and run.seed == 0:
            profile["layers"] = [f"deeper.{layer}" for layer in LAYERS]
        if run.norm.name == "bn" and run.seed == 1:
            del row["details"]
        if run.norm.name == "gn" and run.seed == 0:
            profile["values"] = [None, 0.0, *profile["values"][2:]]
        return row

    found = profiles(write, row=odd)
    assert (found.without, found.otherwise, found.not_finite, found.zeros) == (1, 1, 1, 1)
    assert found.points.xs == LAYERS
    assert [found.estimate(None, "bn", layer).n for layer in LAYERS] == [2] * 5  # type: ignore[union-attr]
    assert [found.estimate(None, "gn", layer).n for layer in LAYERS] == [3, 3, 4, 4, 4]  # type: ignore[union-attr]
    said = (
        "Left out: 1 runs without this profile, 1 runs with other layers than most, 1 values that are not finite and "
        "1 values of zero, which have no logarithm."
    )
    assert said in found.tables()[0].caption
    with mpl.rc_context(STYLE):
        assert said in note(axes(found.figure())[0])


def test_layers_are_named_by_what_they_are_where_rows_say_it(write: Any) -> None:
    def row(study: str, run: Run) -> Any:
        made = domain_row(study, run)
        kind = "group norm" if run.norm.name == "gn" else "batch norm"
        made["details"]["layers"] = {LAYERS[0]: {"type": kind, "depth": 1, "channels": 8}}
        return made

    found = profiles(write, row=row)
    assert found.tables()[0].header == [f"1st norm, 8 channels ({LAYERS[0]})", *LAYERS[1:]]
    with mpl.rc_context(STYLE):
        (ax,) = axes(found.figure())
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1st norm, 8 channels", *LAYERS[1:]]


def test_panels_may_have_layers_of_their_own(write: Any) -> None:
    def deeper(study: str, run: Run) -> Any:
        row = domain_row(study, run)
        if run.norm.name == "gn":
            row["details"]["profiles"]["gradient_norm_initial"]["layers"] = [f"{layer}.gn" for layer in LAYERS]
        return row

    found = profiles(write, replace(PROFILE, line="adapt", panel="norm"), row=deeper)
    assert found.otherwise == 0
    with mpl.rc_context(STYLE):
        labels = [[label.get_text() for label in ax.get_xticklabels()] for ax in axes(found.figure())]
    assert labels == [LAYERS, LAYERS, [f"{layer}.gn" for layer in LAYERS]]


def test_a_profile_that_no_run_has_is_said(write: Any) -> None:
    found = profiles(write, replace(PROFILE, metric="gradient_norm_final"))
    assert found.without == 3 * 4
    with mpl.rc_context(STYLE):
        assert "No run that has finished has a gradient norm after training" in note(axes(found.figure())[0])
