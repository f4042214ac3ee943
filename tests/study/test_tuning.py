"""Tuning: trials, choices, what is reported, and what a study that was killed does again."""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from math import floor, log
from pathlib import Path
from typing import Any

import pytest
from fake_tuning import BEST

from syncnorm.config import Clients, Devices, Result, Run, describe, run_id
from syncnorm.errors import UserError
from syncnorm.study import Choice, Curve, Grid, LogUniform, Study, Tune, Uniform, run_study
from syncnorm.study.plan.trials import plan_of
from syncnorm.study.report.analysis.points import gather
from syncnorm.study.report.analysis.tuning import chosen
from syncnorm.study.report.report import write_report
from syncnorm.study.rows import Row, finished_row, read
from syncnorm.study.run.schedule import Schedule
from syncnorm.study.tuning.choose import standing

LR = {"lr": LogUniform(0.003, 1.0)}
TUNE = Tune(LR, trials=8, per=("norm",), at={"per_device_batch": [4]})


def make(**changes: Any) -> Study:
    tune = changes.pop("tune", TUNE)
    study = Study(
        "planted",
        "Which norm is best?",
        Run(world=Devices()),
        {"norm": ["bn", "gn", "ln"], "per_device_batch": [2, 4]},
        seeds=2,
        figures=(Curve(x="per_device_batch", line="norm"),),
        tune=tune,
    )
    return replace(study, **changes)


def run(study: Study, out: Path) -> None:
    run_study(study, out, jobs=2, wandb="off", trainer="fake_tuning")


def rows(out: Path) -> list[Row]:
    return [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]


def choices(out: Path) -> dict[str, Any]:
    return {one.label: one.values["lr"] for one in chosen(read(out))}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tuned") / "out"
    run(make(), out)
    return out


def test_a_norm_that_is_good_at_one_learning_rate_alone_is_found(tuned: Path) -> None:
    tried = plan_of(make()).lines[0].line.trials
    rates = [trial.values["lr"] for trial in tried]
    nearest = {norm: min(rates, key=lambda lr: abs(log(lr / best))) for norm, best in BEST.items()}
    assert choices(tuned) == nearest
    reported = [row for row in read(tuned).reported.finished]
    assert len(reported) == 3 * 2 * 2
    assert {(row["config"]["norm"]["name"], row["config"]["optim"]["lr"]) for row in reported} == set(nearest.items())
    assert {row["config"]["seed"] for row in reported} == {0, 1}, "fresh seeds alone"


def test_every_trial_is_a_row_and_every_line_has_equally_many(tuned: Path) -> None:
    about = read(tuned).about
    roles = Counter((role, fields.get("line")) for fields in about.runs.values() for role in fields["role"])
    assert {count for (role, _), count in roles.items() if role == "tuning"} == {8 * 2}
    assert {count for (role, _), count in roles.items() if role in ("tuned", "shared")} == {2 * 2}
    purposes = Counter(row["purpose"] for row in rows(tuned))
    assert purposes == {"tuning": 3 * 16, "reported": 3 * 2 * 2 * 2}
    assert all("trial" in fields for fields in about.runs.values() if "tuning" in fields["role"])
    trials = {row["config"]["seed"] for row in rows(tuned) if row["purpose"] == "tuning"}
    assert trials == {10_000, 10_001}
    values = [{trial.values["lr"] for trial in members.line.trials} for members in plan_of(make()).lines]
    assert values[0] == values[1] == values[2], "common fields have the same values in every line"


def test_the_choice_does_not_read_the_test_set(tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_TEST", "permuted")
    run(make(), tmp_path / "out")
    assert choices(tmp_path / "out") == choices(tuned)
    assert {row["metrics"]["accuracy"] for row in read(tmp_path / "out").reported.finished} == {0.1}


@pytest.mark.fault
@pytest.mark.parametrize("after", [pytest.param(20, marks=pytest.mark.slow), 52])
def test_a_study_killed_while_it_tunes_goes_on_with_the_same_choice(after: int, tuned: Path, tmp_path: Path) -> None:
    out, journal = tmp_path / "out", tmp_path / "journal"
    program = (
        "import sys; from pathlib import Path; from test_tuning import make, run\n"
        "if __name__ == '__main__': run(make(), Path(sys.argv[1]))"
    )
    here = str(Path(__file__).parent)
    environment = {**os.environ, "FAKE_JOURNAL": str(journal), "PYTHONPATH": f"{os.getcwd()}:{here}"}
    killed = {**environment, "FAKE_KILL": str(after)}
    assert (
        subprocess.run([sys.executable, "-c", program, str(out)], env=killed, stderr=subprocess.DEVNULL).returncode
        == -9
    )
    assert len(rows(out)) <= after
    before = {row["run_id"] for row in rows(out)}
    journal.unlink()
    subprocess.run([sys.executable, "-c", program, str(out)], env=environment, stderr=subprocess.DEVNULL, check=True)
    assert choices(out) == choices(tuned)
    assert sorted(row["run_id"] for row in rows(out)) == sorted(row["run_id"] for row in rows(tuned)), "none twice"
    assert not before & set(journal.read_text().split()), "what had a row is not trained again"


def test_more_trials_extend_fewer_and_nothing_is_trained_again(tuned: Path, tmp_path: Path) -> None:
    fewer, more = (plan_of(make(tune=replace(TUNE, trials=n))).lines[1].line.trials for n in (3, 8))
    assert more[:3] == fewer
    out = tmp_path / "out"
    run(make(tune=replace(TUNE, trials=3, shared=False), vary={"norm": ["gn"], "per_device_batch": [4]}), out)
    count = len(rows(out))
    run(make(tune=replace(TUNE, trials=8, shared=False), vary={"norm": ["gn"], "per_device_batch": [4]}), out)
    ids = [row["run_id"] for row in rows(out)]
    assert len(ids) == len(set(ids))
    assert len(ids) - count in (5 * 2, 5 * 2 + 2), "further trials, and the reported runs if the choice is another"
    assert choices(out)["gn"] == choices(tuned)["gn"]


def test_trials_do_not_depend_on_other_fields() -> None:
    both = Tune({**LR, "momentum": Uniform(0.0, 0.9)}, trials=5, per=("norm",))
    alone, among = (
        [trial.values["lr"] for trial in plan_of(make(tune=tune)).lines[0].line.trials]
        for tune in (replace(both, ranges=LR), both)
    )
    assert alone == among
    other = plan_of(make(name="other", tune=replace(both, ranges=LR))).lines[0].line.trials
    assert [trial.values["lr"] for trial in other] != alone


def test_trials_cover_a_range_evenly() -> None:
    """Of 8 trials of the first field, each eighth of the logarithmic range has one."""
    values = [trial.values["lr"] for trial in plan_of(make()).lines[0].line.trials]
    eighths = [floor(8 * log(value / 0.003) / log(1.0 / 0.003)) for value in values]
    assert sorted(eighths) == list(range(8))


def test_lines_may_have_ranges_of_their_own_and_choices_alone_are_a_grid() -> None:
    own = {"gn": {"norm.options.groups": Choice([1, 2, 4])}}
    lines = {one.line.name: one for one in plan_of(make(tune=replace(TUNE, own=own))).lines}
    assert {name: len(one.line.trials) for name, one in lines.items()} == {"norm bn": 8, "norm gn": 8, "norm ln": 8}
    assert {trial.values["norm.options.groups"] for trial in lines["norm gn"].line.trials} == {1, 2, 4}
    assert set(lines["norm bn"].line.ranges) == {"lr"}
    trained = lines["norm gn"].trials[0][0]
    assert trained.norm.options == {"groups": lines["norm gn"].line.trials[0].values["norm.options.groups"]}
    grid = Tune({"lr": Choice([0.1, 0.2]), "momentum": Choice([0.0, 0.9, 0.5])}, per=("norm",))
    assert len(plan_of(make(tune=grid)).lines[0].line.trials) == 6


def test_each_point_has_its_own_choice_where_x_is_in_per() -> None:
    lines = plan_of(make(tune=replace(TUNE, per=("norm", "per_device_batch"), at={}))).lines
    assert [one.line.name for one in lines][:2] == ["norm bn, per_device_batch 2", "norm bn, per_device_batch 4"]
    assert {len(one.points) for one in lines} == {1}


def rows_of(members: Any, values: dict[int, list[float | None]], by: str = "validation_accuracy") -> dict[str, Row]:
    """Return rows of a line with these metrics of each trial, one a seed; None is a failed run."""
    found: dict[str, Row] = {}
    for trial, numbers in values.items():
        for ids, number in zip(members.line.trials[trial].runs, numbers, strict=False):
            found[ids[0]] = {"error": "x"} if number is None else {"metrics": {by: number}, "seconds": 1.0}
    return found


@pytest.mark.parametrize(
    ("by", "values", "choice"),
    [
        ("validation_accuracy", {0: [0.5, 0.5], 1: [0.7, 0.6], 2: [0.9, None], 3: [0.1, 0.1]}, 1),
        ("validation_accuracy", {0: [0.5, 0.5], 1: [0.6, 0.4], 2: [0.5, 0.5], 3: [0.1, 0.1]}, 0),
        ("validation_accuracy", {0: [None, 0.9], 1: [None, 0.9], 2: [float("nan"), 0.5], 3: [None, None]}, 0),
        ("validation_loss", {0: [0.5, 0.5], 1: [0.7, 0.6], 2: [0.2, None], 3: [0.1, 0.3]}, 3),
        ("validation_accuracy", {0: [0.5, 0.5], 1: [0.7, 0.6], 2: [0.9, 0.9]}, None),
    ],
)
def test_the_best_mean_is_chosen(by: str, values: dict[int, list[float | None]], choice: int | None) -> None:
    """A failed or diverged run makes a trial the worst, and the earlier of equal trials wins."""
    plan = plan_of(make(tune=replace(TUNE, trials=4, by=by)))
    assert plan.tuning is not None
    assert standing(plan.lines[0].line, plan.tuning, rows_of(plan.lines[0], values, by)).choice == choice


def test_halving_gives_the_better_half_the_next_seed() -> None:
    plan = plan_of(make(tune=replace(TUNE, trials=4, seeds=3, halve=True)))
    members, tuning = plan.lines[0], plan.tuning
    assert tuning is not None

    def wanted(values: dict[int, list[float | None]]) -> list[int]:
        now = standing(members.line, tuning, rows_of(members, values))
        return [sum(ids[0] in now.wanted for ids in trial.runs) for trial in members.line.trials]

    first = {0: [0.5], 1: [0.9], 2: [0.7], 3: [0.1]}
    assert wanted({0: [0.5]}) == [1, 1, 1, 1]
    assert wanted(first) == [1, 2, 2, 1]
    assert wanted({**first, 1: [0.9, 0.1], 2: [0.7, 0.6]}) == [1, 2, 3, 1]
    done = rows_of(members, {**first, 1: [0.9, 0.1], 2: [0.7, 0.6, 0.6]})
    assert standing(members.line, tuning, done).choice == 2
    assert len(plan.known({})) + plan.ahead({}) == 3 * (4 + 2 + 1) + 3 * 4 + 3 * 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"tune": lambda: Tune({"lr": LogUniform(1.0, 0.1)}, 3)},
            "the tuning range LogUniform(1.0, 0.1) is reversed",
        ),
        ({"tune": lambda: Tune({"lr": Uniform(1.0, 1.0)}, 3)}, "holds nothing"),
        ({"tune": lambda: Tune({"lr": LogUniform(0.0, 1.0)}, 3)}, "both numbers must be above 0"),
        ({"tune": lambda: Tune({"lr": Choice([])}, 3)}, "write a list of values"),
        ({"tune": lambda: Tune({}, 3)}, "tune has no ranges"),
        ({"tune": lambda: Tune({"lr": 0.1}, 3)}, "tune has 0.1 for lr: write LogUniform(LOW, HIGH)"),
        ({"tune": lambda: Tune(LR)}, "tune needs trials=NUMBER: lr has a range LogUniform(0.003, 1.0), not a Choice"),
        ({"tune": lambda: replace(TUNE, trials=0)}, "tune.trials is 0: it must be at least 1."),
        ({"tune": lambda: replace(TUNE, seeds=0)}, "tune.seeds is 0: it must be at least 1."),
        ({"tune": lambda: replace(TUNE, first_seed=1)}, "tunes on seed 1 and reports it too"),
        ({"tune": lambda: replace(TUNE, per=("nrm",))}, "unknown field of a run 'nrm': did you mean 'norm'?"),
        ({"tune": lambda: replace(TUNE, ranges={"lrr": LR["lr"]})}, "unknown field of a run 'lrr'"),
        ({"tune": lambda: replace(TUNE, own={"in": LR})}, "unknown value of a line, in tune.own, 'in'"),
        ({"tune": lambda: replace(TUNE, at={"per_device_batch": [8]})}, "no point of the line with norm bn has the"),
        ({"tune": lambda: replace(TUNE, per=("norm", "lr"))}, "tune.per has lr, which is tuned"),
        ({"vary": {"norm": ["bn"], "lr": [0.1]}}, "study 'planted' both varies and tunes lr"),
        ({"tune": lambda: replace(TUNE, ranges={"epochs": Uniform(0.5, 2.0)})}, "optim.epochs is 0.5: it must be a"),
        (
            {"figures": (Curve("optim.lr", "norm"),)},
            "plot 1 of the study uses optim.lr, and every line has its own lr",
        ),
        ({"figures": (Curve("skew", "norm", where={"lr": 0.1}),)}, "plot 1 of the study uses lr"),
    ],
)
def test_mistakes_get_a_sentence_before_anything_is_trained(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    def start() -> None:
        made = {name: value() if callable(value) else value for name, value in changes.items()}
        run(make(**{"tune": replace(TUNE, at={}), **made}), tmp_path / "out")

    with pytest.raises(UserError) as caught:
        start()
    assert words in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_metric_that_no_run_will_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run with norm bn will have it: set data\.validation"):
        run_study(make(), tmp_path / "out", wandb="off")
    with pytest.raises(UserError, match=r"unknown metric, in tune\.by, 'acuracy'"):
        run_study(make(tune=replace(TUNE, by="acuracy")), tmp_path / "out", wandb="off")


def test_values_that_do_not_work_are_found_at_every_point(tmp_path: Path) -> None:
    own = {"gn": {"norm.options.groups": Uniform(1, 7)}}
    study = make(tune=replace(TUNE, by="accuracy", own=own), figures=())
    with pytest.raises(UserError, match="groups"):
        run_study(study, tmp_path / "out", wandb="off")
    assert not (tmp_path / "out").exists()


def test_the_report_says_what_was_chosen_and_what_one_value_for_all_gives(tuned: Path) -> None:
    write_report(tuned)
    names = {path.name for path in (tuned / "tables").iterdir()}
    assert {"chosen.md", "1-accuracy-per_device_batch-norm.md", "1-shared-accuracy-per_device_batch-norm.md"} <= names
    assert (tuned / "figures" / "sensitivity-lr.png").is_file()
    text = (tuned / "tables" / "chosen.md").read_text()
    assert "of 8 trials x 2 seeds" in text
    assert "1 of 8 trials failed or diverged" in text
    own = (tuned / "tables" / "1-accuracy-per_device_batch-norm.md").read_text()
    assert "Tuned by validation accuracy: each line's learning rate, 8 trials x 2 seeds a line." in own
    shared = (tuned / "tables" / "1-shared-accuracy-per_device_batch-norm.md").read_text()
    assert "at one shared value: learning rate 0.05" in shared
    assert "Not tuned: learning rate 0.05 in every line." in shared


def test_a_failed_trial_is_tried_again_before_its_line_chooses(tuned: Path) -> None:
    """What the earlier choice trained is not lost: it is known again, and finished, once the trial has ended."""
    plan, found = plan_of(make()), read(tuned).rows
    lost = plan.lines[1].line.trials[0].runs[0][0]
    schedule = Schedule(plan, {**found, lost: {"run_id": lost, "error": "its worker died"}})
    assert [run_id(run) for run in schedule.todo()] == [lost]
    assert (schedule.total, schedule.done) == (72, 72 - 4 - 1), "four reported runs follow from the choice"
    assert schedule.ended(found[lost])
    assert (schedule.total, schedule.done, schedule.todo()) == (72, 72, [])


def test_lines_that_a_figure_does_not_tell_apart_are_split_by_what_they_are_and_not_by_what_was_tuned(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    tune = replace(TUNE, per=("norm", "per_device_batch", "skew"), at={}, trials=6, shared=False)
    figure = Curve(x="per_device_batch", line="norm")
    run(make(tune=tune, vary={"norm": ["gn"], "per_device_batch": [2, 4], "skew": [0, 50]}, figures=(figure,)), out)
    assert len(set(choices(out).values())) == 2
    lines = gather(figure, read(out).reported).lines
    assert lines == ["gn (label-sorted data 0 %)", "gn (label-sorted data 50 %)"]


def test_a_choice_at_the_edge_of_what_was_tried_is_said(tmp_path: Path) -> None:
    out = tmp_path / "out"
    narrow = replace(TUNE, ranges={"lr": LogUniform(0.003, 0.01)}, trials=4, shared=False)
    run(make(tune=narrow, vary={"norm": ["gn"], "per_device_batch": [4]}), out)
    assert "learning rate at the high edge" in (out / "tables" / "chosen.md").read_text()


def test_a_study_that_tunes_nothing_says_so(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(make(tune=None), out)
    assert "Not tuned." in (out / "tables" / "1-accuracy-per_device_batch-norm.md").read_text()
    assert {tuple(fields["role"]) for fields in read(out).about.runs.values()} == {("reported",)}
    assert {row["purpose"] for row in rows(out)} == {"reported"}


def test_lines_of_several_worlds_tune_what_they_have() -> None:
    also = (Grid({"world": [Clients()], "method": ["fedavg"], "norm": ["bn"]}),)
    tune = Tune(LR, trials=3, per=("norm", "world.kind"), own={"clients": {"alpha": LogUniform(0.1, 10.0)}})
    lines = {one.line.name: one for one in plan_of(make(also=also, figures=(), tune=tune)).lines}
    assert set(lines["norm bn, kind clients"].line.ranges) == {"lr", "alpha"}
    assert set(lines["norm bn, kind devices"].line.ranges) == {"lr"}


def test_a_row_of_a_trial_is_told_from_others() -> None:
    one = plan_of(make()).lines[0].trials[0][0]
    row = finished_row("s", Result(run_id(one), describe(one), {}, "own", 1.0, {}), "tuning")
    assert row["purpose"] == "tuning"
