import subprocess
import sys

import numpy as np
import pytest

from syncnorm.data.raw import Groups, Pixels, Signals
from syncnorm.data.sources.cache import cached
from syncnorm.files import cache_folder


def made_up(fill=1):
    images, labels = np.full((4, 1, 2, 2), fill, np.uint8), np.arange(4, dtype=np.int64)
    return Pixels(images, labels, images, labels, ("a", "b"), "made up")


def with_columns():
    column = Groups(("north", "south"), np.array([0, 1, 0, 1]), np.array([1, 1, 0, 0]))
    return made_up()._replace(changes=("16-bit grey kept",), natural=column)


def features():
    x, y = np.arange(8.0).reshape(4, 2), np.arange(4)
    return Signals(x, y, x, y, ("a", "b"), "made up", domain=Groups(("one",), y * 0, y * 0), as_is=True)


def refuse():
    raise AssertionError("built although it is in the cache")


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SYNCNORM_CACHE", str(tmp_path))
    return tmp_path


def assert_same(a, b):
    assert all(np.array_equal(x, y) for x, y in zip(a[:4], b[:4], strict=True))
    assert a[4:] == b[4:]
    assert [x.dtype for x in a[:4]] == [x.dtype for x in b[:4]]


def test_what_is_kept_comes_back_whole_without_being_built_again(empty_cache):
    assert_same(cached("x", made_up), made_up())
    assert_same(cached("x", refuse), made_up())
    assert not list(empty_cache.glob("*.tmp"))


@pytest.mark.parametrize("build", [with_columns, features])
def test_columns_changes_and_numbers_come_back_too(empty_cache, build):
    made = build()
    cached("x", build)
    again = cached("x", refuse)
    assert type(again) is type(made)
    for column in ("natural", "domain"):
        mine, kept = getattr(made, column), getattr(again, column)
        assert (mine is None) == (kept is None)
        assert mine is None or (kept.names == mine.names and all(map(np.array_equal, kept[1:], mine[1:])))
    assert_same(again._replace(natural=None, domain=None), made._replace(natural=None, domain=None))


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "flipped"])
def test_a_damaged_file_is_built_again(empty_cache, damage):
    cached("x", made_up)
    (file,) = empty_cache.glob("*.npz")
    whole = file.read_bytes()
    at = whole.index(b"\x01\x01\x01\x01")  # inside the pixels, where only the checksum tells
    flipped = whole[:at] + b"\x02" + whole[at + 1 :]
    torn = {"cut": whole[: len(whole) // 2], "empty": b"", "garbage": b"not an archive", "flipped": flipped}
    file.write_bytes(torn[damage])
    assert_same(cached("x", lambda: made_up(7)), made_up(7))
    assert_same(cached("x", refuse), made_up(7))


def test_what_another_version_of_pillow_drew_is_drawn_again(empty_cache, monkeypatch):
    cached("x", made_up)
    monkeypatch.setattr("syncnorm.data.sources.cache.version", lambda package: "10.0.0")
    assert_same(cached("x", lambda: made_up(7)), made_up(7))
    assert len(list(empty_cache.glob("x-*.npz"))) == 2


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("a file where the folder should be")
    monkeypatch.setenv("SYNCNORM_CACHE", str(tmp_path / "file" / "cache"))
    assert_same(cached("x", made_up), made_up())


def test_a_full_disk_is_no_error_and_leaves_nothing_behind(empty_cache, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert_same(cached("x", made_up), made_up())
    assert {file.suffix for file in empty_cache.iterdir()} <= {".lock"}


def test_a_failed_build_keeps_nothing_and_the_next_one_is_free_to_build(empty_cache):
    with pytest.raises(ZeroDivisionError):
        cached("x", lambda: made_up(1 // 0))
    assert_same(cached("x", made_up), made_up())


def test_where_the_cache_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("SYNCNORM_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("SYNCNORM_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "syncnorm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "syncnorm"


@pytest.mark.dist
def test_processes_that_want_the_same_data_at_once_build_it_once(empty_cache, tmp_path):
    code = (
        "import os, time, sys, numpy as np\n"
        "from pathlib import Path\n"
        "from syncnorm.data.sources.cache import cached\n"
        "from syncnorm.data.raw import Pixels\n"
        "def build():\n"
        "    print('built', flush=True)\n"
        "    while len(list(there.iterdir())) < 2: time.sleep(0.01)\n"
        "    time.sleep(0.3)\n"
        "    x, y = np.ones((2, 1, 2, 2), np.uint8), np.zeros(2, np.int64)\n"
        "    return Pixels(x, y, x, y, ('a',), '')\n"
        "there = Path(sys.argv[1])\n"
        "(there / str(os.getpid())).touch()\n"
        "assert cached('x', build).train_x.sum() == 8\n"
        "print('got it')"
    )
    there = tmp_path / "there"
    there.mkdir()
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(there)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    ended = [process.communicate() for process in started]
    said = "".join(out for out, _ in ended)
    assert said.count("got it") == 2, ended
    assert said.count("built") == 1
