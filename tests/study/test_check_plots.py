"""Plots that no run of the study can fill are refused before any is trained."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from syncnorm.config import Clients, Data, Devices, Domains, Run
from syncnorm.errors import UserError
from syncnorm.study import Columns, Curve, Gap, Grid, History, Plot, Profile, Study, Trade, run_study
from syncnorm.study.plan.spec import expand
from syncnorm.study.report.plots.check import check_plots

DOMAINS = ("digits", "digits-noisy")


def checked(*plots: Plot, world: Any = None, **changes: Any) -> None:
    study = Study("s", "?", Run(world=world or Devices()), {"norm": ["bn", "gn"]}, seeds=2, figures=plots)
    study = replace(study, **changes)
    check_plots(study, expand(study))


@pytest.mark.parametrize(
    ("plot", "world", "words"),
    [
        (Columns("norm", ("loss", "acuracy")), Devices(), "unknown metric 'acuracy': did you mean 'accuracy'?"),
        (Curve("skew", "norm", metric="los"), Devices(), "unknown metric 'los': did you mean 'loss'?"),
        (Trade("norm"), Devices(), "unknown metric 'bytes_total'"),
        (Trade("norm", metric="accuracy_digit"), Clients(domains=DOMAINS), "did you mean 'accuracy_digits'?"),
        (Gap("skew", "norm", {"norm": "bn"}, {"norm": "gn"}, metric="acc"), Devices(), "unknown metric 'acc'"),
        (History("norm", "accuracy"), Devices(), "unknown history 'accuracy'"),
        (History("norm", "validation_accuracy"), Clients(), "unknown history 'validation_accuracy'"),
        (History("norm", "unseen_accuracy"), Domains(domains=DOMAINS), "did you mean 'seen_accuracy'?"),
        (Profile("norm", "gradient_norm"), Devices(), "unknown profile 'gradient_norm'"),
        (Profile("norm"), Clients(), "plot 1 of the study shows the profile 'gradient_norm_initial': none of"),
        (Curve("skw", "norm"), Devices(), "unknown field of a run 'skw': did you mean 'skew'?"),
        (Columns("norm", ("loss",), panel="metod"), Clients(), "did you mean 'method'?"),
        (Columns("norm", ("loss",), where={"nrm": "bn"}), Devices(), "did you mean 'norm'?"),
    ],
)  # fmt: skip
def test_a_name_that_no_run_has_is_refused(plot: Plot, world: Any, words: str) -> None:
    with pytest.raises(UserError) as caught:
        checked(plot, world=world)
    assert words in str(caught.value)


def test_names_that_some_run_has_are_taken() -> None:
    checked(Curve("skew", "norm"), History("norm"), Profile("norm", "gradient_norm_final"))
    chosen = Run(data=Data("digits", validation=0.1), world=Clients(), select="best")
    checked(History("norm", "validation_accuracy"), Trade("norm"), base=chosen)
    measured = Run(data=Data("digits", validation=0.1))
    checked(Columns("norm", ("validation_accuracy", "validation_loss")), base=measured)
    with pytest.raises(UserError, match="unknown metric 'epoch'"):
        checked(Columns("norm", ("epoch",)), base=measured)
    checked(Columns("norm", ("accuracy_digits-noisy",)), History("norm"), world=Clients(domains=DOMAINS))
    unseen = Domains(domains=DOMAINS, unseen=("digits-noisy",))
    checked(History("norm", "unseen_accuracy"), Columns("norm", ("accuracy_seen",)), world=unseen)
    both = (Grid({"world": [Clients()], "norm": ["bn"]}),)
    checked(Columns("norm", ("parameter_norm", "bytes_up")), also=both)


def test_a_plot_of_no_run_is_not_asked_for_names() -> None:
    checked(Curve("skew", "norm", metric="acuracy", where={"norm": "in"}))


def test_a_study_with_such_a_plot_trains_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Run] = []
    monkeypatch.setattr("syncnorm.worlds.fit", lambda run, execution: trained.append(run))
    study = Study("s", "?", Run(), {"norm": ["bn"]}, seeds=1, figures=(Columns("norm", ("acuracy",)),))
    with pytest.raises(UserError, match="did you mean 'accuracy'"):
        run_study(study, tmp_path / "out", jobs=1, wandb="off")
    assert not trained
    assert not (tmp_path / "out").exists()
