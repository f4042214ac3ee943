import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
from made_up import ENVIRONMENT, Fill, fake_row

from syncnorm.config import Run
from syncnorm.errors import UserError
from syncnorm.study.plan.spec import Study, expand
from syncnorm.study.report.plots import Curve, from_plain
from syncnorm.study.rows import failed_row, read
from syncnorm.study.run.store import Store


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def small(study: Study) -> Study:
    return replace(study, vary={"norm": ["bn", "gn"]}, seeds=2, also=(), figures=(Curve("norm", "norm"),))


def test_rows_come_back_and_are_not_to_be_made_again(small: Study, fill: Fill) -> None:
    folder = fill(small, keep=lambda run: run.norm.name == "bn", command="syncnorm run x.py")
    runs = expand(small)
    with Store.open(folder, small) as store:
        assert store.finished == {row["run_id"] for row in read(folder).finished}
        assert len(store.finished) == 2
    results = read(folder)
    assert results.about.question == small.question
    assert tuple(map(from_plain, results.about.figures)) == small.figures
    assert results.about.agreements == small.agreements
    assert [point["norm"] for point in results.about.runs.values()] == ["bn", "gn", "bn", "gn"]
    assert [row["config"]["seed"] for row in results.finished] == [0, 1]
    assert len(results.missing) == 2
    assert len(results.about.runs) == len(runs) == 4


def test_rows_are_read_again_wherever_their_file_changed(small: Study, fill: Fill, tmp_path: Path) -> None:
    folder = fill(small, keep=lambda run: run.norm.name == "bn")
    file = folder / "runs.jsonl"
    first, second = file.read_text().splitlines()

    def accuracies() -> list[float]:
        return [row["metrics"]["accuracy"] for row in read(folder).finished]

    def line(accuracy: float) -> str:
        row = json.loads(second)
        return json.dumps({**row, "metrics": {**row["metrics"], "accuracy": accuracy}})

    (before, after), again = accuracies(), accuracies()
    assert again == [before, after], "nothing changed"
    file.write_text(f"{first}\n{line(0.111)}\n")
    assert accuracies() == [before, 0.111], "a line was edited, of the same length or not"
    file.write_text(f"{first}\n{line(0.111)}\n{line(0.222)}\n")
    assert accuracies() == [before, 0.222], "a row was appended"
    file.write_text(f"{first}\n{line(0.111)}\n{line(0.222)}\nbroken\n")
    with pytest.raises(UserError, match="damaged in line 4"):
        read(folder)
    file.write_text(f"{first}\n")
    assert accuracies() == [before], "rows were removed"
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "runs.jsonl").write_text("")
    assert (read(other).finished, accuracies()) == ([], [before])


def test_a_row_is_one_line_of_strict_json(small: Study, tmp_path: Path) -> None:
    run = expand(small)[0]
    with Store.open(tmp_path, small) as store:
        row = fake_row(small.name, run, accuracy=0.5, loss=nan, worst=-inf)
        store.append(row | {"history": {"train_loss": [1.0, inf]}, "note": "two\nlines"})

    def refuse(name: str) -> Any:
        raise AssertionError(name)

    (line,) = (tmp_path / "runs.jsonl").read_text().splitlines()
    stored = json.loads(line, parse_constant=refuse)
    assert stored["metrics"] == {"accuracy": 0.5, "loss": None, "worst": None}
    assert stored["history"] == {"train_loss": [1.0, None]}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", stored["finished"])


def test_a_row_is_on_the_disk_when_append_returns(
    small: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, bytes]] = []
    write, fsync = os.write, os.fsync

    def note_write(descriptor: int, data: bytes) -> int:
        calls.append(("write", data))
        return write(descriptor, data)

    def note_fsync(descriptor: int) -> None:
        calls.append(("fsync", b""))
        fsync(descriptor)

    with Store.open(tmp_path, small) as store, monkeypatch.context() as patch:
        patch.setattr(os, "write", note_write)
        patch.setattr(os, "fsync", note_fsync)
        store.append(fake_row(small.name, expand(small)[0]))
    assert [name for name, _ in calls] == ["write", "fsync"]
    assert calls[0][1] == (tmp_path / "runs.jsonl").read_bytes()


def test_a_failed_run_is_retried_and_its_latest_row_wins(small: Study, tmp_path: Path) -> None:
    run = expand(small)[0]
    with Store.open(tmp_path, small) as store:
        store.append(failed_row(small.name, run, "Out of memory.", 1.0, ENVIRONMENT, "Traceback ..."))
        assert store.finished == set()
    assert [row["error"] for row in read(tmp_path).failed] == ["Out of memory."]
    with Store.open(tmp_path, small) as store:
        assert store.finished == set()
        store.append(fake_row(small.name, run))
        with pytest.raises(ValueError, match="already finished"):
            store.append(fake_row(small.name, run))
    assert read(tmp_path).failed == []
    assert len(read(tmp_path).finished) == 1


def test_rows_of_runs_that_the_study_no_longer_has_stay_and_are_not_reported(small: Study, fill: Fill) -> None:
    folder = fill(small)
    with Store.open(folder, replace(small, vary={"norm": ["gn"]})):
        pass
    results = read(folder)
    assert {row["config"]["norm"]["name"] for row in results.finished} == {"gn"}
    assert results.orphans == 2
    assert len((folder / "runs.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize("torn", [b'{"run_id":"0123', b"\0\0\0", b"{}"])
def test_a_half_written_last_line_is_dropped(small: Study, fill: Fill, torn: bytes) -> None:
    folder = fill(small, keep=lambda run: run.seed == 0)
    rows = folder / "runs.jsonl"
    whole = rows.read_bytes()
    rows.write_bytes(whole + torn)
    assert len(read(folder).rows) == 2
    assert rows.read_bytes() == whole + torn, "a reader must not write"
    with Store.open(folder, small) as store:
        assert rows.read_bytes() == whole
        store.append(fake_row(small.name, expand(small)[-1]))
    assert len(read(folder).finished) == 3


@pytest.mark.parametrize("line", [b"{", b"", b"[]", b'{"run_id": "a"}', b"\xff\xfe", b"null"])
def test_a_damaged_line_is_named(small: Study, fill: Fill, line: bytes) -> None:
    folder = fill(small)
    lines = (folder / "runs.jsonl").read_bytes().splitlines()
    (folder / "runs.jsonl").write_bytes(b"\n".join([lines[0], line, *lines[2:], b""]))
    before = tree(folder)
    for use in (lambda: read(folder), lambda: Store.open(folder, small)):
        with pytest.raises(UserError, match=r"runs\.jsonl is damaged in line 2"):
            use()
    assert tree(folder) == before


def test_another_study_is_refused_untouched(small: Study, fill: Fill) -> None:
    folder = fill(small)
    before = tree(folder)
    other = replace(small, name="other")
    with pytest.raises(UserError, match="holds the study 'batch-size', not 'other'"):
        Store.open(folder, other)
    (folder / "study.json").unlink()
    with pytest.raises(UserError, match="holds the study 'batch-size', not 'other'"):
        Store.open(folder, other)
    assert tree(folder).items() <= before.items()
    Store.open(folder, small).close()
    assert tree(folder) == before


@pytest.mark.parametrize("name", ["notes.txt", "runs.jsonl", "study.json"])
def test_a_folder_of_something_else_is_refused_untouched(small: Study, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"mine": 1}')
    with pytest.raises(UserError, match="choose another"):
        Store.open(tmp_path, small)
    assert tree(tmp_path) == {str(tmp_path / name): b'{"mine": 1}'}


def test_a_start_that_was_cut_short_does_not_block_the_folder(small: Study, tmp_path: Path) -> None:
    (tmp_path / "runs.jsonl").touch()
    (tmp_path / ".study.json.77.tmp").write_text('{"for')
    Store.open(tmp_path, small).close()
    assert read(tmp_path).missing


def test_results_of_a_later_format_are_refused(small: Study, fill: Fill) -> None:
    folder = fill(small)
    about = json.loads((folder / "study.json").read_text())
    (folder / "study.json").write_text(json.dumps({**about, "format": 99}))
    with pytest.raises(UserError, match="format 99"):
        read(folder)


def test_a_file_in_the_way_is_refused(small: Study, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="choose another --out"):
            Store.open(path, small)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_refused(
    small: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", deny)
    with pytest.raises(UserError, match=r"cannot write results to .*: Permission denied"):
        Store.open(tmp_path, small)


def test_reading_a_folder_without_a_study_says_what_to_give(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match=r"has no study\.json"):
            read(path)


def test_a_figure_over_a_field_that_no_run_has_is_refused_before_any_run(small: Study, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'norm'"):
        Store.open(tmp_path / "out", replace(small, figures=(Curve("norm", "nrm"),)))
    assert not (tmp_path / "out").exists()


def test_a_second_writer_is_told_at_once_and_a_reader_is_not_hindered(small: Study, tmp_path: Path) -> None:
    with Store.open(tmp_path, small) as store:
        store.append(fake_row(small.name, expand(small)[0]))
        with pytest.raises(UserError, match="in use by another"):
            Store.open(tmp_path, small)
        assert len(read(tmp_path).finished) == 1
    Store.open(tmp_path, small).close()


class Disk:
    """A disk that takes `room` more bytes of what is written to it."""

    def __init__(self, room: int) -> None:
        self.room, self.write = room, os.write

    def __call__(self, descriptor: int, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = self.write(descriptor, data[: self.room])
        self.room -= done
        return done


@pytest.mark.parametrize("room", [0, 7])
def test_a_full_disk_leaves_the_rows_before_readable(
    small: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    runs = expand(small)
    with Store.open(tmp_path, small) as store:
        store.append(fake_row(small.name, runs[0]))
        before = tree(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", Disk(room))
            with pytest.raises(UserError, match=r"No space left on device; the rows before are safe"):
                store.append(fake_row(small.name, runs[1]))
        assert tree(tmp_path) == before
        store.append(fake_row(small.name, runs[1]))
    assert len(read(tmp_path).finished) == 2


@pytest.mark.fault
def test_a_killed_writer_gives_the_lock_back_and_leaves_whole_rows(study: Study, tmp_path: Path) -> None:
    program = (
        "import sys; from syncnorm.config import Run; from syncnorm.study.plan.spec import Study, expand;"
        "from syncnorm.study.rows import failed_row\n"
        "from syncnorm.study.run.store import Store\n"
        "study = Study('s', 'q', Run(), {'skew': [float(i) for i in range(100)]}, seeds=50)\n"
        "store = Store.open(sys.argv[1], study); print('open', flush=True)\n"
        "for run in expand(study): store.append(failed_row('s', run, 'error ' * 500, 0.0, {}))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"open\n"
    other = Study("s", "q", Run(), {"skew": [0.0]}, seeds=1)
    with pytest.raises(UserError, match="in use"):
        Store.open(tmp_path, other)
    while not read(tmp_path).rows:
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    with Store.open(tmp_path, other) as store:
        store.append(fake_row("s", expand(other)[0]))
    assert len(read(tmp_path).finished) == 1
