"""A fingerprint changes with the code that a definition is made of, and with nothing else."""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from syncnorm.fingerprint import code_fingerprint, files_fingerprint

NET = """
import torch
import helper
from other import WIDTH

SIZE = 3  # what net uses
UNUSED = 4

def net(classes):
    return helper.layer(WIDTH, SIZE), inner(classes)

def inner(classes):
    return classes

def unused():
    return UNUSED
"""
HELPER = "def layer(width, size):\n    return width * size\n"
OTHER = "WIDTH = 8\nLENGTH = 9\n"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return the fingerprint of `net` in a package of three modules, some of whose text is replaced."""
    monkeypatch.syspath_prepend(tmp_path)

    def fingerprint(old: str = "", new: str = "") -> str:
        for name, text in {"netty": NET, "helper": HELPER, "other": OTHER}.items():
            assert name not in sys.modules
            (tmp_path / f"{name}.py").write_text(text.replace(old, new) if old else text)
        importlib.invalidate_caches()
        found = code_fingerprint(importlib.import_module("netty").net)
        for name in ("netty", "helper", "other"):
            del sys.modules[name]
        return found

    return fingerprint


@pytest.mark.parametrize(
    "edit",
    [
        ("helper.layer(WIDTH, SIZE)", "helper.layer(WIDTH, SIZE + 1)"),
        ("SIZE = 3", "SIZE = 5"),
        ("    return classes", "    return classes + 1"),
        ("width * size", "width + size"),
        ("WIDTH = 8", "WIDTH = 16"),
    ],
)
def test_what_a_definition_uses_counts(source: Callable[..., str], edit: tuple[str, str]) -> None:
    assert source(*edit) != source()


@pytest.mark.parametrize("edit", [("UNUSED = 4", "UNUSED = 5"), ("LENGTH = 9", "LENGTH = 1"), ("import torch", "")])
def test_what_it_does_not_use_does_not(source: Callable[..., str], edit: tuple[str, str]) -> None:
    assert source(*edit) == source()


def test_what_another_environment_has_installed_does_not(
    source: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "lib" / "site-packages"
    other.mkdir(parents=True)
    (other / "torchlike.py").write_text("SIZE = 1")
    monkeypatch.syspath_prepend(other)
    before = source("import torch", "from torchlike import SIZE")
    (other / "torchlike.py").write_text("SIZE = 22")
    assert source("import torch", "from torchlike import SIZE") == before


def test_what_a_cache_wraps_counts(source: Callable[..., str]) -> None:
    cached = "import functools\n\n@functools.cache\ndef net(classes):"
    assert source("def net(classes):", cached) != source()
    netty = NET.replace("def net(classes):", cached)
    assert source("def net(classes):", cached) != source(NET, netty.replace("WIDTH, SIZE)", "WIDTH, SIZE + 1)"))


def test_rows_count_by_their_values() -> None:
    @dataclass(frozen=True)
    class Row:
        kind: str
        make: Any = None

    assert code_fingerprint(Row("a")) == code_fingerprint(Row("a")) != code_fingerprint(Row("b"))
    assert code_fingerprint(Row("a", files_fingerprint)) != code_fingerprint(Row("a", code_fingerprint))


def test_files_count_by_name_and_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    before = files_fingerprint(tmp_path)
    assert before == files_fingerprint(tmp_path)
    assert files_fingerprint(tmp_path / "a") != files_fingerprint(tmp_path / "b")
    (tmp_path / "b").write_text("3")
    changed = files_fingerprint(tmp_path)
    assert changed != before
    (tmp_path / "b").rename(tmp_path / "c")
    assert files_fingerprint(tmp_path) not in (before, changed)
