"""Studies whose runs are stacked: who trains what, and the same rows as one by one, also after a kill."""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from syncnorm.config import Clients, Data, Devices, Norm, Optim, Result, Run, run_from, run_id
from syncnorm.errors import UserError
from syncnorm.study import Curve, LogUniform, Study, Tune
from syncnorm.study.rows import read
from syncnorm.study.run.executors.executor import Wish
from syncnorm.study.run.executors.local import Local
from syncnorm.study.run.processes.events import Advanced, Ended, Moved, Placement, Started
from syncnorm.study.run.processes.queue import Queue, Taken
from syncnorm.study.run.processes.workers import work
from syncnorm.study.run.runner import run_study, stacking
from syncnorm.training.stacked import choice
from syncnorm.worlds import fit, forget

RUN = Run(
    data=Data("digits", size=8, train_limit=64, test_limit=40, validation=0.25),
    model_options={"width": 4},
    world=Devices(ranks=2, per_device_batch=8),
    optim=Optim(epochs=2),
    precision="float64",
)


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    forget()
    choice._known.clear()
    yield
    forget()


def seeds_of(run: Run, count: int) -> list[Run]:
    return [replace(run, seed=seed) for seed in range(count)]


def take(todo: Queue, own: str = "", others: set[str] | None = None, workers: int = 1) -> Taken:
    found = todo.take(own, others or set(), workers)
    assert found
    return found


def test_a_stack_goes_to_one_worker_run_after_run() -> None:
    bn, gn = (seeds_of(replace(RUN, norm=Norm(norm)), 3) for norm in ("bn", "gn"))
    todo = Queue([run for pair in zip(bn, gn, strict=True) for run in pair], stack=2)
    first = take(todo)
    assert (first.run, first.together) == (bn[0], tuple(bn[:2]))
    second = take(todo, others={first.training})
    assert (second.run, second.together) == (gn[0], tuple(gn[:2]))
    assert take(todo, first.training, {second.training}) == first._replace(run=bn[1])
    third = take(todo, first.training, {second.training})
    assert (third.run, third.together) == (bn[2], ()), "the last is left by itself"
    assert take(todo, second.training, {third.training}).run == gn[1]
    assert take(todo, second.training, {third.training}).run == gn[2]
    assert not len(todo)


@pytest.mark.parametrize(("workers", "sizes"), [(1, [10]), (2, [5, 5]), (4, [3, 3, 2, 2])])
def test_a_stack_takes_an_equal_share_for_each_worker(workers: int, sizes: list[int]) -> None:
    todo, found = Queue(seeds_of(RUN, 10), stack=20), []
    for _ in range(workers):
        found.append(take(todo, "", {one.training for one in found}, workers))
    assert [len(one.together) for one in found] == sizes
    assert len({run.seed for one in found for run in one.together}) == 10


def test_runs_that_share_a_training_are_one_of_a_stack_and_a_failed_run_is_none() -> None:
    pairs = [
        replace(run, world=replace(RUN.world, buffers=whose))
        for run in seeds_of(RUN, 3)
        for whose in ("rank0", "pooled")
    ]  # type: ignore[arg-type]
    todo = Queue([*pairs, replace(RUN, world=Clients())], stack=2)
    assert take(todo).together == tuple(pairs[:4])
    todo = Queue(pairs[::2], stack=3)
    first = take(todo)
    todo.again(first.run)
    second = take(todo)
    assert second.together == tuple(pairs[2::2]), "whoever takes it over makes a stack of what is left"
    take(todo, second.training)
    assert take(todo) == Taken(first.run, Queue([first.run]).take("", set()).training, ())  # type: ignore[union-attr]
    todo = Queue([pairs[2]], stack=3)
    todo.again(first.run, apart=False)
    assert take(todo).together == (pairs[2], pairs[0]), "a run that lost its place may"


@pytest.mark.parametrize(("text", "meant"), [("off", (1, False)), ("7", (7, False)), ("auto", (20, True))])
def test_what_an_option_means(text: str, meant: tuple[int, bool]) -> None:
    assert stacking(text) == meant


@pytest.mark.parametrize("text", ["0", "-1", "yes", "1.5", ""])
def test_an_option_that_means_nothing_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="write off, auto, or the largest number of runs"):
        run_study(Study("none", "?", RUN, {"norm": ["bn"]}, figures=(Curve("norm", "norm"),)), tmp_path, stack=text)


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    return {name: row for name, row in read(folder).rows.items() if "metrics" in row}


@pytest.mark.dist
def test_a_tuned_study_that_is_stacked_has_the_rows_and_choices_of_one_that_is_not(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Trials are halved successively; other trials of the second seed would be other rows."""
    study = Study(
        name="stacked",
        question="Does it hold?",
        base=RUN,
        vary={"norm": ["gn", "cbn"]},
        seeds=2,
        tune=Tune({"lr": LogUniform(0.01, 1.0)}, trials=3, per=("norm",), seeds=2, halve=True, shared=False),
        figures=(Curve("norm", "norm"),),
    )
    run_study(study, tmp_path / "stacked", jobs=2, stack="3", wandb="off")
    assert "not stacked: a layer (CrossIterationBatchNorm) keeps more" in capfd.readouterr().err
    got = rows(tmp_path / "stacked")
    assert len(got) == 2 * (3 + 2 + 2)
    seen = set()
    for row in got.values():
        run = run_from(row["config"])
        expected = fit(run)
        assert row["run_id"] == expected.run_id
        assert row["metrics"] == pytest.approx(expected.metrics, rel=1e-10, abs=1e-10)
        assert row["history"]["train_loss"] == pytest.approx(expected.history["train_loss"], rel=1e-10)
        assert row["fingerprints"] == expected.fingerprints
        seen.add((run.norm.name, row["environment"].get("stack", "").partition(" ")[2]))
    assert {
        ("gn", "runs at once"),
        ("cbn", "a layer (CrossIterationBatchNorm) keeps more than parameters and buffers"),
    } <= seen
    assert ("cbn", "runs at once") not in seen


@pytest.mark.dist
@pytest.mark.fault
def test_a_stack_whose_worker_was_killed_ends_with_the_same_rows(tmp_path: Path) -> None:
    runs = seeds_of(replace(RUN, optim=replace(RUN.optim, epochs=8)), 3)
    ends: dict[str, Ended] = {}
    killed, parts = False, []
    how = Placement(tmp_path, 0.0, stack=3)
    for event in work(runs, "syncnorm.worlds", Local(Wish(jobs=1)), how=how):
        assert not isinstance(event, Moved)
        if isinstance(event, Advanced):
            parts.append((run_id(event.run), event.progress.runs, event.progress.fraction))
            if not killed and event.progress.fraction > 0.3:
                killed = True
                for child in _children():
                    os.kill(child, signal.SIGKILL)
        elif isinstance(event, Ended):
            ends[run_id(event.run)] = event
        else:
            assert isinstance(event, Started)
    assert killed
    assert {runs for _, runs, _ in parts} == {3, 2, 1}, "what is left is stacked, and the run that was lost is not"
    for run in runs:
        outcome = ends[run_id(run)].outcome
        assert isinstance(outcome, Result)
        assert outcome.metrics == pytest.approx(fit(run).metrics, rel=1e-10, abs=1e-10)
    later = [part for name, runs, part in parts if runs < 3]
    assert min(later) > 0.2, "they do not begin anew"


def _children() -> list[int]:
    """Return the ids of the worker processes of this one."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            status, command = (entry / "stat").read_text(), (entry / "cmdline").read_text()
        except OSError:
            continue
        if int(status.rpartition(")")[2].split()[1]) == os.getpid() and "processes.ranks" in command:
            found.append(int(entry.name))
    return found
