"""The command line of a study that tunes: what options change, what is printed, what a run is called."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_tuning import TUNE, make

from syncnorm.commands.options import given_options, read_options
from syncnorm.commands.run import RunOptions, changed, tuning_notes
from syncnorm.errors import UserError
from syncnorm.study import Choice, Study, run_study
from syncnorm.study.plan.load import load_study
from syncnorm.study.plan.override import with_vary
from syncnorm.study.plan.spec import expand
from syncnorm.study.plan.trials import plan_of
from syncnorm.study.run.forecast import forecast
from syncnorm.study.run.label import labeller

ROOT = Path(__file__).parents[2]
OWN = {"gn": {"norm.options.groups": Choice([1, 2])}}


def with_options(text: str, **changes: Any) -> tuple[Study, list[str]]:
    """Return the study with the options of a command line, and the notes on them."""
    study = make(**changes)
    given = given_options(text.split(), "run")
    after = changed(study, read_options(RunOptions(base=study.base), given, "run"), given)
    return after, tuning_notes(study, after, given)


def test_a_tuned_field_that_is_varied_is_not_tuned_any_more_and_that_is_said() -> None:
    after, notes = with_options("--vary lr=0.1,0.2", tune=replace(TUNE, own=OWN))
    assert after.tune is not None
    assert after.tune.fields() == ["norm.options.groups"]
    assert notes == ["lr is varied, so it is not tuned."]
    lines = {members.line.name: members for members in plan_of(after).lines}
    assert {name: len(members.trials[0]) for name, members in lines.items()} == {
        "norm bn": 0,
        "norm gn": 4,
        "norm ln": 0,
    }
    assert with_options("--vary lr=0.1")[0].tune is None


def test_lines_and_points_that_are_gone_take_their_ranges_with_them() -> None:
    study = make(tune=replace(TUNE, own=OWN))
    fewer = with_vary(study, ["norm=bn", "per-device-batch=8"])
    assert fewer.tune == replace(TUNE, at={})
    assert len(plan_of(fewer).known({})) == 8 * 2 + 2
    with pytest.raises(UserError, match=r"in tune\.own, 'batch'"):
        plan_of(with_vary(make(tune=replace(TUNE, own={"batch": OWN["gn"]})), ["norm=bn"]))


def test_two_vary_flags_both_count_and_reach_every_grid() -> None:
    after, _ = with_options("--vary norm=bn --vary skew=0,50", tune=None)
    assert len(expand(after)) == 2 * 2 * 2
    study = load_study(str(ROOT / "experiments" / "client_skew.py"))
    both = expand(with_vary(replace(study, tune=None), ["lr=0.3,0.4"]))
    assert len(both) == 2 * len(expand(replace(study, tune=None)))
    assert {run.optim.lr for run in both} == {0.3, 0.4}


def test_trials_and_no_tune() -> None:
    after, _ = with_options("--trials 12")
    assert after.tune is not None
    assert after.tune.trials == 12
    assert with_options("--no-tune")[0].tune is None
    with pytest.raises(UserError, match="the study tunes nothing, so there are no trials"):
        with_options("--trials 3", tune=None)


def test_an_option_of_the_base_sets_the_shared_value_and_says_so() -> None:
    after, notes = with_options("--optim.lr 0.2")
    assert notes == ["lr is tuned: --optim.lr sets the shared value alone; --vary lr=VALUE fixes it."]
    plan = plan_of(after)
    assert plan.tuning is not None
    assert plan.tuning.shared == {"lr": 0.2}
    assert {one.run.optim.lr for one in plan.fixed} == {0.2}


def test_reported_seeds_that_meet_those_of_trials_are_refused() -> None:
    after, _ = with_options("--first-seed 9999 --seeds 2")
    with pytest.raises(UserError, match="tunes on seed 10000 and reports it too"):
        plan_of(after)


def test_a_trial_is_called_by_its_number_and_values() -> None:
    plan = plan_of(make(vary={"norm": ["bn", "gn"]}, tune=replace(TUNE, at={})))
    trial = plan.lines[1].line.trials[2]
    label = labeller(plan)
    assert label(plan.lines[1].trials[2][0]) == f"trial 3, lr {trial.values['lr']:g}, norm gn, seed 10000"
    assert label(plan.fixed[0].run) == "lr 0.05, norm bn, seed 0"


def test_a_dry_run_says_what_tuning_costs(tmp_path: Path) -> None:
    study, out = make(tune=replace(TUNE, trials=4, own=OWN)), tmp_path / "out"
    before = forecast(study, out)
    assert "planted: 48 runs, 0 finished, 48 to train" in before
    assert "tuning lr, norm.options.groups: 3 lines x 4 trials x 2 seeds: 24 runs; 0 of the lines are tuned" in before
    assert "then 12 runs with the chosen values, and as many at the base's own values (12)" in before
    run_study(replace(study, seeds=1), out, jobs=2, wandb="off", trainer="fake_tuning")
    after = forecast(study, out)
    assert "48 runs, 36 finished, 12 to train" in after
    assert "3 of the lines are tuned" in after
    assert "12 of 12 differ in the seed and what is tuned alone" in after


def test_a_total_is_shared_equally_by_the_lines_and_must_pay_for_a_trial_of_each() -> None:
    def trials(total: int, **changes: Any) -> tuple[set[int], int]:
        plan = plan_of(make(tune=replace(TUNE, trials=None, total=total, **changes)))
        runs = sum(len(runs) for members in plan.lines for runs in members.trials)
        return {len(members.trials) for members in plan.lines}, runs

    each = sum(len(members.trials[0]) for members in plan_of(make(tune=TUNE)).lines)  # one trial of every line
    assert trials(3 * each) == ({3}, 3 * each)
    assert trials(4 * each - 1) == ({3}, 3 * each)
    assert trials(3 * each, halve=True, seeds=2)[0] == {4}, "4 trials on the first seed, 2 of them on the second"
    with pytest.raises(UserError, match=rf"tune\.total is {each - 1}, and one trial of each of the .* {each} runs"):
        trials(each - 1)
    with pytest.raises(UserError, match="both trials and total"):
        replace(TUNE, total=100)
    after, _ = with_options("--trials 2", tune=replace(TUNE, trials=None, total=3 * each))
    assert {len(members.trials) for members in plan_of(after).lines} == {2}
