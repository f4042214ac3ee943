"""Worker processes: warm, replaced when they die, gone when they should be."""

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from syncnorm.config import Data, Devices, Domains, Optim, Progress, Result, Run
from syncnorm.errors import UserError
from syncnorm.study.run.executors.executor import Wish
from syncnorm.study.run.executors.local import Local
from syncnorm.study.run.processes.attempt import Failure
from syncnorm.study.run.processes.events import Advanced, Ended, Placement
from syncnorm.study.run.processes.queue import Queue
from syncnorm.study.run.processes.workers import work

TRAINER = "fake_fit"
PAIR = Devices(ranks=2, engine="torchrun")


def faulty(fault: str, **options: Any) -> Run:
    return Run(model_options={"fault": fault, **options})


def ends(runs: list[Run], **options: Any) -> dict[str, Ended]:
    """Return how the runs ended, by the fault that they asked for, or their seed."""
    trainer, local = options.pop("trainer", TRAINER), Local(Wish(jobs=options.pop("workers", 1)))
    got = [event for event in work(runs, trainer, local, **options) if isinstance(event, Ended)]
    assert len(got) == len(runs)
    return {end.run.model_options.get("fault", str(end.run.seed)): end for end in got}


def failure(end: Ended) -> Failure:
    assert isinstance(end.outcome, Failure)
    return end.outcome


@pytest.mark.fault
def test_every_run_ends_and_a_fault_ends_its_own_run_only(tmp_path: Path) -> None:
    faults = [faulty(fault) for fault in ("raise", "mistake", "exit", "kill", "segfault", "unstorable")]
    others = [Run(seed=seed, model_options={"pids": str(tmp_path)}) for seed in range(4)]
    got = ends([*faults, *others], workers=2)
    assert all(isinstance(got[str(seed)].outcome, Result) for seed in range(4))
    assert failure(got["raise"]).error == "ZeroDivisionError: no such thing"
    assert "fake_fit.py" in failure(got["raise"]).detail
    assert failure(got["mistake"]) == Failure("the model cannot do that: choose another.", users=True)
    assert failure(got["exit"]).error == "SystemExit: 3"
    assert "was killed by SIGKILL" in failure(got["kill"]).error
    assert {fault for fault, end in got.items() if isinstance(end.outcome, Failure) and end.outcome.lost} == {
        "kill",
        "segfault",
    }
    assert "was killed by SIGSEGV" in failure(got["segfault"]).error
    assert "fake_fit.py" in failure(got["segfault"]).detail, "where it crashed"
    assert failure(got["unstorable"]).error.startswith("TypeError: Object of type complex")
    assert got["raise"].environment["python"]
    assert len(list(tmp_path.iterdir())) <= 4, "workers serve many runs"


@pytest.mark.fault
def test_a_run_whose_worker_died_is_tried_once_more(tmp_path: Path) -> None:
    got = ends([faulty("kill", once=str(tmp_path / "mark"))])
    assert isinstance(got["kill"].outcome, Result)


@pytest.mark.dist
def test_workers_share_the_cuda_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    runs = [Run(seed=seed, model_options={"pids": str(tmp_path), "sleep": 1.0}) for seed in range(4)]
    ends(runs, workers=2)
    assert sorted(path.read_text() for path in tmp_path.iterdir()) == ["2", "5"]


def test_a_function_that_cannot_be_imported_stops_the_study() -> None:
    with pytest.raises(UserError, match="cannot import no_such_module: ModuleNotFoundError"):
        list(work([Run()], "no_such_module", Local(Wish(jobs=1))))


@pytest.mark.fault
def test_workers_that_die_at_their_start_stop_the_study(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "fatal.py").write_text("import os; os._exit(7)")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="workers cannot start: its worker process ended with code 7"):
        list(work([Run()], "fatal", Local(Wish(jobs=1))))


@pytest.mark.dist
@pytest.mark.fault
def test_a_launch_shares_its_runs_among_ranks_and_is_replaced_when_one_dies(tmp_path: Path) -> None:
    once = str(tmp_path / "mark")
    runs = [
        Run(world=PAIR, model_options={"fault": "kill", "rank": 1, "once": once}),
        *(Run(world=PAIR, seed=seed) for seed in range(3)),
    ]
    got = ends(runs, ranks=2)
    assert isinstance(got["kill"].outcome, Result)
    assert all(isinstance(got[str(seed)].outcome, Result) for seed in range(3))


@pytest.mark.dist
@pytest.mark.fault
@pytest.mark.slow
@pytest.mark.parametrize("victim", ["rank", "launcher"])
def test_a_launch_that_was_killed_goes_on_from_its_checkpoint_to_the_same_bits(victim: str, tmp_path: Path) -> None:
    run = Run(
        data=Data("digits", train_limit=64, test_limit=40),
        model_options={"width": 4},
        world=Devices(ranks=2, per_device_batch=8, engine="torchrun"),
        optim=Optim(epochs=20),
    )
    heard: list[Progress] = []
    killed_at = 0.0
    for event in work([run], "syncnorm.worlds", Local(Wish()), ranks=2, how=Placement(tmp_path, 0.0)):
        if isinstance(event, Advanced):
            heard.append(event.progress)
            if not killed_at and event.progress.fraction > 0.1:
                killed_at = event.progress.fraction
                launcher = next(pid for pid in _children(os.getpid()) if _children(pid))
                os.kill(_children(launcher)[-1] if victim == "rank" else launcher, signal.SIGKILL)
    assert isinstance(event, Ended)
    assert isinstance(event.outcome, Result), event.outcome
    (whole,) = ends([run], ranks=2, trainer="syncnorm.worlds").values()
    assert isinstance(whole.outcome, Result)
    assert event.outcome.metrics == whole.outcome.metrics
    assert event.outcome.history == whole.outcome.history
    firsts = [one.fraction for one in heard]
    assert min(firsts[firsts.index(killed_at) + 1 :]) > 0.05, "it does not begin anew"


def _children(parent: int) -> list[int]:
    """Return the ids of a process's children, in the order of their start."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(entry.name))
    return sorted(found)


def test_runs_that_share_a_training_go_to_the_worker_that_has_it() -> None:
    adaptations = ("none", "adabn", "tent")
    runs = [Run(world=Domains(adapt=adapt), seed=seed) for seed in range(3) for adapt in adaptations]
    todo = Queue([*runs, Run(seed=7), Run(seed=8)])
    own, taken = {"first": "", "second": ""}, []
    for worker, other in [("first", "second"), ("second", "first")] * 5 + [("first", "second")]:
        found = todo.take(own[worker], {own[other]})
        assert found
        own[worker] = found.training
        taken.append((worker, found.run.seed))
    assert not len(todo)
    assert [seed for worker, seed in taken if worker == "first"] == [0, 0, 0, 2, 2, 2]
    assert [seed for worker, seed in taken if worker == "second"] == [1, 1, 1, 7, 8]


def test_runs_that_become_known_later_take_their_place() -> None:
    later = [[Run(seed=2), Run(seed=0)], []]
    todo = Queue([Run(seed=1), Run(seed=3)], later=lambda: later.pop(0), place=lambda run: (False, run.seed))
    todo.again(Run(seed=9))
    todo.grow()
    todo.grow()
    taken = [todo.take("", set()) for _ in range(len(todo))]
    assert [found[0].seed for found in taken if found] == [0, 1, 2, 3, 9]


def test_a_worker_leaves_a_run_to_the_one_that_has_its_training() -> None:
    runs = [Run(world=Devices(ranks=2, per_device_batch=4, buffers=whose)) for whose in ("rank0", "pooled")]  # type: ignore[arg-type]
    todo = Queue(runs)
    first = todo.take("", set())
    assert first
    assert todo.take("", {first[1]}) is None
    second = todo.take(first[1], {""})
    assert second
    assert [first[0], second[0]] == runs
