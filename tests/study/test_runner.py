"""A study run from Python: what is trained, skipped, written and said."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from drive import small

from syncnorm.config import Progress, Run, run_id
from syncnorm.errors import UserError
from syncnorm.progress import span
from syncnorm.study.plan.spec import Grid, Study, expand
from syncnorm.study.rows import Results, read
from syncnorm.study.run.executors.local import default_jobs
from syncnorm.study.run.progress import Meter
from syncnorm.study.run.runner import run_study

TRAINER = "fake_fit"


def run(study: Study, out: Path, **options: Any) -> None:
    run_study(study, out, **{"jobs": 2, "wandb": "off", "trainer": TRAINER, **options})


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]


def test_every_run_has_a_row_and_what_is_finished_is_not_run_again(tmp_path: Path) -> None:
    study, out, pids = small(), tmp_path / "out", tmp_path / "pids"
    run(study, out)
    assert (out / "report.html").is_file()
    before = (out / "runs.jsonl").read_bytes()
    assert sorted(row["run_id"] for row in lines(out)) == sorted(run_id(one) for one in expand(study))
    assert set(lines(out)[0]["environment"]) == {
        "python", "torch", "lightning", "numpy", "pillow", "matplotlib", "scikit-learn",
        "cpu", "cores", "device", "platform", "commit",
    }  # fmt: skip
    pids.mkdir()
    run(study, out, trainer="no_such_module")
    assert (out / "runs.jsonl").read_bytes() == before

    run(replace(study, seeds=4), out)
    assert len(lines(out)) == 16
    assert len(read(out).finished) == 16


def test_failed_runs_are_rows_and_are_tried_again(tmp_path: Path) -> None:
    out, mark = tmp_path / "out", tmp_path / "mark"
    faults = [{}, {"fault": "raise", "until": str(mark)}, {"fault": "mistake"}]
    study = small()
    study = replace(study, vary={"model_options": faults}, seeds=1, figures=())
    run(study, out)
    errors = {row["error"]: row for row in read(out).failed}
    assert set(errors) == {"ZeroDivisionError: no such thing", "the model cannot do that: choose another."}
    assert "Traceback" in errors["ZeroDivisionError: no such thing"]["traceback"]
    assert len(read(out).finished) == 1
    mark.touch()
    run(study, out)
    assert (len(read(out).finished), len(read(out).failed)) == (2, 1)
    assert len(lines(out)) == 5, "two failed, one finished; then one of each again"


def test_nothing_starts_when_the_study_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    run(replace(small(), name="other", seeds=1), tmp_path / "other")
    monkeypatch.setattr("syncnorm.study.run.processes.workers.start_workers", None)
    refused = [("file/out", "cannot write results to"), ("other", "holds the study 'other', not 'small'")]
    for out, words in refused:
        with pytest.raises(UserError, match=words):
            run(small(), tmp_path / out)
    with pytest.raises(UserError, match="jobs is 0"):
        run(small(), tmp_path / "out", jobs=0)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("size", "engine", "words"),
    [
        ("3", None, "no run of the study needs 3 ranks: start torchrun with one of 2."),
        ("5", "torchrun", "no run of the study needs 5 ranks: start torchrun with one of 1, 2."),
    ],
)
def test_a_world_size_that_no_run_needs(
    size: str, engine: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.setenv("RANK", "0")
    study = replace(small(), also=(Grid({"engine": ["torchrun"], "ranks": [2]}),))
    with pytest.raises(UserError) as caught:
        run(study, tmp_path / "out", engine=engine)
    assert str(caught.value) == words
    assert not (tmp_path / "out").exists()


def test_torchrun_needs_torchrun_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match="the study has no torchrun runs: add --engine torchrun"):
        run(small(), tmp_path / "out")


def test_a_full_disk_stops_the_study_with_a_sentence_and_keeps_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, rows = os.write, 0

    def full(descriptor: int, data: bytes) -> int:
        nonlocal rows
        rows += data.startswith(b'{"run_id"')
        if rows > 5:
            return write(descriptor, data[:7])
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"No space left on device; the rows before are safe"):
        run(small(), out)
    monkeypatch.undo()
    assert len(lines(out)) == 5
    run(small(), out)
    assert len(read(out).finished) == 12
    assert len(lines(out)) == 12


def test_a_report_that_breaks_does_not_fail_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(directory: Path, results: Results) -> Path:
        raise IndexError("no figure")

    monkeypatch.setattr("syncnorm.study.report.report.write_report", broken)
    run(replace(small(), seeds=1), tmp_path / "out")
    assert len(read(tmp_path / "out").finished) == 4
    words = "warning: there is no new report (IndexError: no figure): all rows are kept, try `syncnorm report "
    assert capsys.readouterr().err.splitlines()[-1].startswith(words)


def test_a_figure_without_runs_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = replace(small(), seeds=1)
    empty = replace(study.figures[0], where={"engine": "torchrun"})
    run(replace(study, figures=(empty, *study.figures)), tmp_path / "out")
    assert "warning" not in capsys.readouterr().err
    assert (tmp_path / "out" / "report.html").read_text().count("<figure") == 1


@pytest.mark.parametrize(("devices", "jobs"), [("", 6), ("0", 4), ("0,1", 6)])
def testdefault_jobs(devices: str, jobs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
    monkeypatch.setattr("syncnorm.study.run.executors.local.cores", lambda: 6)
    assert default_jobs() == jobs


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_without_a_terminal_lines_are_few(clock: Clock) -> None:
    stream = io.StringIO()
    with Meter(100, 20, stream, clock) as meter:
        for number in range(80):
            clock.now += 4
            meter.started(f"run {number}")
            meter.ended(f"run {number}", "boom" if number < 2 else "")
    said = stream.getvalue().splitlines()
    assert said[:3] == [
        "failed: run 0: boom",
        "25/100 runs, 2 failed, 5 min 0 s left",
        "30/100 runs, 2 failed, 4 min 40 s left",
    ]
    assert said[-1] == "100/100 runs, 2 failed, 5 min 20 s"
    assert len(said) == 17


def test_without_a_terminal_a_slow_study_speaks_every_five_minutes_and_at_its_end(clock: Clock) -> None:
    stream = io.StringIO()
    with Meter(1000, 0, stream, clock) as meter:
        for _ in range(7):
            clock.now += 100
            meter.ended("run")
    assert stream.getvalue().splitlines() == [
        "3/1000 runs, 0 failed, 27 h 41 min left",
        "6/1000 runs, 0 failed, 27 h 36 min left",
        "7/1000 runs, 0 failed, 27 h 35 min left",
    ]


def test_on_a_terminal_there_is_a_bar(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with Meter(4, 1, stream, clock) as meter:
        meter.started("norm bn, seed 0")
        clock.now = 80
        meter.ended("norm bn, seed 0", "boom [bold]")
        meter.started("norm gn, seed 0")
        meter.advanced("norm gn, seed 0", Progress(2, 5, "round", 0.4, 3.0))
        meter.say("a line")
    assert "round 3/5, 3 rounds/s" in stream.getvalue()
    assert "2/4 runs, 1 failed, 2 min 40 s left" in stream.getvalue()
    assert "failed: norm bn, seed 0: boom [bold]" in stream.getvalue()


def test_a_long_run_says_how_far_it_is(clock: Clock) -> None:
    stream = io.StringIO()
    with Meter(2, 0, stream, clock) as meter:
        meter.started("norm bn")
        for second in range(0, 700, 10):
            clock.now = second
            meter.advanced("norm bn", Progress(second // 100, 7, "epoch", second / 700, 12.5, 0.31, 700.0 - second))
            meter.advanced("no such run", Progress(0, 1, "epoch", 0.0))
        meter.ended("norm bn", diverged=True)
    assert stream.getvalue().splitlines() == [
        "0/2 runs, 0 failed; norm bn: epoch 4/7, 12.5 steps/s, loss 0.31, 6 min 40 s left",
        "0/2 runs, 0 failed; norm bn: epoch 7/7, 12.5 steps/s, loss 0.31, 1 min 40 s left",
        "1/2 runs, 0 failed, 1 diverged, 11 min 30 s left",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (80, "1 min 20 s"), (7500, "2 h 5 min")]
)
def test_span(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_a_study_is_defined_and_handed_out_without_torch() -> None:
    code = "import sys, syncnorm.study; sys.exit(any(name in sys.modules for name in ('torch', 'matplotlib')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_mistake_in_any_run_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    study = Study("typos", "?", base=Run(), vary={"norm": ["gn", "bnn"]}, seeds=2)
    with pytest.raises(UserError, match=r"unknown norm 'bnn': did you mean 'bn'.*In the run with norm bnn, seed 0"):
        run_study(study, tmp_path / "out", wandb="off")
    assert not (tmp_path / "out").exists()


def test_a_model_that_cannot_be_built_is_refused_with_the_line_at_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_made.py").write_text("def factory(classes):\n    return [][classes]\n")
    monkeypatch.syspath_prepend(tmp_path)
    study = Study("broken", "?", base=Run(model="half_made:factory"), vary={"norm": ["bn"]})
    with pytest.raises(UserError, match=r"IndexError: .*half_made\.py:2.*In the run with seed 0"):
        run_study(study, tmp_path / "out", wandb="off")
    assert not (tmp_path / "out").exists()


def test_progress_that_nobody_can_read_ends_no_study() -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with Meter(1, stream=Closed()) as meter:
        meter.ended("bn", error="no such thing")
