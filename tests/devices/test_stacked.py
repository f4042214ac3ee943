"""Runs of devices in one computation against the same runs one by one. float64 throughout."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from syncnorm.config import (
    Data,
    Devices,
    Execution,
    Norm,
    Optim,
    Progress,
    Result,
    Run,
    run_id,
    silent,
    stack_of,
    why_alone,
)
from syncnorm.devices import fit
from syncnorm.devices.prepare import prepare
from syncnorm.devices.stacked import _bytes, ready
from syncnorm.training.stacked import choice
from syncnorm.training.stacked.models import entries_of
from syncnorm.worlds import forget

TOLERANCE = 1e-10
CPU = torch.device("cpu")
BASE = Run(
    data=Data("digits", size=8, train_limit=96, test_limit=60, validation=0.25),
    model_options={"width": 4},
    world=Devices(ranks=2, per_device_batch=8),
    optim=Optim(epochs=2, lr=0.05, warmup=0.1),
    precision="float64",
)


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    forget()
    choice._known.clear()
    yield
    forget()


def runs_of(base: Run = BASE) -> list[Run]:
    """Return runs that differ in seed, learning rate, momentum, weight decay and warm-up."""
    numbers: list[dict[str, Any]] = [{}, {}, {"lr": 0.2}, {"momentum": 0.5, "weight_decay": 0.01, "warmup": 0.3}]
    return [replace(base, seed=seed, optim=replace(base.optim, **more)) for seed, more in enumerate(numbers)]


def together(runs: Sequence[Run], folder: Path | None = None, **options: Any) -> list[Result]:
    """Return the results of runs that are handed out together."""
    named = tuple((run, folder and folder / run_id(run)) for run in runs)
    options = {"report": silent, **options}
    return [fit(run, Execution(checkpoint=where, together=named, **options)) for run, where in named]


def alone(runs: Sequence[Run], **options: Any) -> list[Result]:
    return [fit(run, Execution(report=silent, **options)) for run in runs]


def assert_same(got: Sequence[Result], expected: Sequence[Result], tolerance: float = TOLERANCE) -> None:
    for one, other in zip(got, expected, strict=True):
        assert (one.run_id, one.config, one.evaluated_by) == (other.run_id, other.config, other.evaluated_by)
        assert one.metrics == pytest.approx(other.metrics, rel=tolerance, abs=tolerance, nan_ok=True)
        assert one.history.keys() == other.history.keys()
        for name, values in one.history.items():
            assert values == pytest.approx(other.history[name], rel=tolerance, abs=tolerance, nan_ok=True)
        assert one.details.keys() == other.details.keys()
        assert one.details["layers"] == other.details["layers"]
        for name, profile in one.details["profiles"].items():
            assert profile["values"] == pytest.approx(other.details["profiles"][name]["values"], rel=1e-8)


def stacks(results: Sequence[Result]) -> list[str]:
    return [one.environment.get("stack", "") for one in results]


@pytest.mark.parametrize(
    "change",
    [
        {"select": "best"},
        {"norm": Norm("sync_bn"), "evaluate_every": 1},
        {"norm": Norm("gn"), "optim": Optim(name="adam", epochs=2, lr=0.01)},
        {"norm": Norm("ln"), "optim": Optim(name="adamw", epochs=2, lr=0.01, clip_norm=0.5, schedule="constant")},
        {"norm": Norm("brn"), "optim": Optim(epochs=2, momentum=0.0, accumulate=2, clip_norm=0.1)},
        {"norm": Norm("evonorm_b0"), "data": replace(BASE.data, augment="shift_flip")},
        {"norm": Norm("none"), "model": "mlp", "model_options": {"width": 8}},
        {"model": "strided_cnn", "data": replace(BASE.data, size=16), "world": Devices(per_device_batch=8)},
    ],
    ids=lambda change: str(change.get("norm", Norm()).name),
)
def test_runs_in_one_computation_equal_the_same_runs_one_by_one(change: dict[str, Any]) -> None:
    runs = runs_of(replace(BASE, **change))
    got, expected = together(runs), alone(runs)
    assert_same(got, expected)
    assert stacks(got) == ["4 runs at once"] * 4
    assert stacks(expected) == [""] * 4
    assert len({one.metrics["loss"] for one in got}) == 4


def test_float32_agrees_to_what_training_makes_of_rounding() -> None:
    runs = runs_of(replace(BASE, precision="float32"))
    for one, other in zip(together(runs), alone(runs), strict=True):
        assert one.history["train_loss"] == pytest.approx(other.history["train_loss"], rel=1e-3)
        assert one.metrics["loss"] == pytest.approx(other.metrics["loss"], rel=1e-2)


def test_a_run_that_diverges_disturbs_no_other() -> None:
    runs = [*runs_of(), replace(BASE, seed=4, optim=replace(BASE.optim, lr=1e200))]
    got, expected = together(runs), alone(runs)
    assert [one.details.get("diverged", False) for one in got] == [False] * 4 + [True]
    assert_same(got[:4], expected[:4])
    assert got[4].details["diverged"] == expected[4].details["diverged"]


def test_runs_that_share_a_training_share_it_in_a_stack() -> None:
    first, second, _, _ = runs_of(replace(BASE, data=replace(BASE.data, validation=0.0)))
    pooled = [replace(run, world=replace(run.world, buffers="pooled")) for run in (first, second)]
    runs = [first, pooled[0], second, pooled[1]]
    got = together(runs)
    assert_same(got, alone(runs))
    assert stacks(got) == ["2 runs at once"] * 4
    assert got[0].metrics["accuracy"] == got[1].metrics["accuracy_rank0"]


def test_the_seconds_of_a_stack_are_shared_out() -> None:
    got = together(runs_of())
    assert max(one.seconds for one in got) < 3 * min(one.seconds for one in got)


class Killed(Exception):
    """Takes the place of the end of a process."""


def interrupt(runs: Sequence[Run], folder: Path, at: float, handed_out: bool = True) -> None:
    """Train runs, together or the first alone, with a checkpoint after each step, until that part is done."""

    def stop(progress: Progress) -> None:
        if progress.fraction >= at:
            raise Killed

    named = tuple((run, folder / run_id(run)) for run in runs) if handed_out else ()
    how = Execution(folder / run_id(runs[0]), 0.0, report=stop, together=named)
    with pytest.raises(Killed):
        fit(runs[0], how)
    forget()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Let progress be told after every step; note where trainings in one computation begin, and of how many runs."""
    monkeypatch.setattr("syncnorm.progress.REPORT_SECONDS", 0.0)
    begun: list[tuple[int, int]] = []
    before = choice.Together.train

    def train(self: choice.Together) -> None:
        begun.append((self._place, len(self._members)))
        before(self)

    monkeypatch.setattr(choice.Together, "train", train)
    return begun


RESUMED = replace(BASE, select="best", optim=replace(BASE.optim, clip_norm=0.5))


@pytest.mark.parametrize(("name", "at"), [("sgd", 0.3), ("adam", 0.5), ("sgd", 0.8)])
def test_a_stack_goes_on_from_its_runs_checkpoints(name: str, at: float, tmp_path: Path, told: Any) -> None:
    runs = runs_of(replace(RESUMED, optim=replace(RESUMED.optim, name=name)))  # type: ignore[arg-type]
    interrupt(runs, tmp_path, at)
    rest = runs[1:]  # the first has a row by now
    got = together(rest, tmp_path)
    assert_same(got, alone(rest))
    (start, _), (place, members) = told
    assert start == (0, 0)
    assert place > (0, 0)
    assert members == 3


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_runs_go_on_by_themselves_from_a_stack_and_the_other_way_round(name: str, tmp_path: Path, told: Any) -> None:
    runs = runs_of(replace(RESUMED, optim=replace(RESUMED.optim, name=name)))  # type: ignore[arg-type]
    interrupt(runs, tmp_path / "stack", 0.4)
    expected = alone(runs)
    for run, whole in zip(runs, expected, strict=True):
        heard: list[float] = []
        how = Execution(
            tmp_path / "stack" / run_id(run), report=lambda progress, to=heard: to.append(progress.fraction)
        )
        assert_same([fit(run, how)], [whole])
        assert heard[0] > 0.4, "it does not begin anew"
    for run in runs[:3]:
        interrupt([run], tmp_path / "alone", 0.4, handed_out=False)
    got = together(runs, tmp_path / "alone")
    assert_same(got, expected)
    assert stacks(got) == ["3 runs at once"] * 3 + ["alone"], "the last has no checkpoint"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"model_options": {"width": 4, "mix_style": 0.5}}, "the model draws random numbers in training"),
        ({"norm": Norm("cbn"), "world": Devices(per_device_batch=8)}, "keeps more than parameters and buffers"),
        ({"norm": Norm("diminishing_bn")}, "its model cannot be stacked"),
        ({"compile": True}, "it is compiled"),
        ({"data": replace(BASE.data, workers=1)}, "processes make its batches"),
    ],
)
def test_runs_that_cannot_be_stacked_train_one_by_one_and_say_why(change: dict[str, Any], why: str) -> None:
    runs = runs_of(replace(BASE, precision="float32", **change))[:2]
    if "compile" in change or "data" in change:
        assert why_alone(runs[0]).startswith(why)
        return
    got = together(runs)
    assert all(why in how and how.startswith("alone: ") for how in stacks(got))
    assert [one.metrics for one in got] == [one.metrics for one in alone(runs)], "to the bit"


@pytest.mark.parametrize(("ratio", "stacked"), [(1.5, True), (0.5, False)])
def test_auto_stacks_only_what_is_faster_and_asks_once(
    ratio: float, stacked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(choice, "seconds_alone", lambda member: asked.append("alone") or 1.0)
    monkeypatch.setattr(choice, "seconds_together", lambda members: len(members) / ratio)
    runs = runs_of()
    got = together(runs, if_faster=True)
    said = "4 runs at once" if stacked else "alone: 4 at once would have taken 2.00 times as long"
    assert stacks(got) == [said] * 4
    assert len(asked) == 2
    assert_same(got, alone(runs))


def test_a_probe_measures_both_ways_and_changes_no_run() -> None:
    runs = runs_of()
    assert_same(together(runs, if_faster=True), alone(runs))
    members = list(ready(runs[0], prepare(runs[0], CPU), CPU, Execution(together=tuple((run, None) for run in runs))))
    before = {name: value.clone() for name, value in entries_of(members[0].classifier.model).items()}
    assert choice.seconds_alone(members[0]) > 0
    assert choice.seconds_together(members) > 0
    assert all(torch.equal(value, before[name]) for name, value in entries_of(members[0].classifier.model).items())


def test_runs_with_other_samples_or_steps_are_not_stacked(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third, _ = runs_of()
    monkeypatch.setattr("syncnorm.devices.stacked.MOST_BYTES", 1.5 * _bytes(prepare(first, CPU).data))
    assert stacks(together([first, replace(first, optim=second.optim), second, third])) == ["alone"] * 4
    more = replace(second, data=replace(second.data, train_limit=200))
    assert stack_of(more) != stack_of(first) == stack_of(third)
