"""Prepared pixels on disk: built once, read by every process that wants the same data."""

import os
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np

from syncnorm.data.dataset import Pixels

VERSION = 1
"""Part of every file's name. Raise it when the same name and options are to give other pixels."""


def folder() -> Path:
    """Return $SYNCNORM_CACHE, else $XDG_CACHE_HOME/syncnorm, else ~/.cache/syncnorm."""
    if own := os.environ.get("SYNCNORM_CACHE"):
        return Path(own).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser() / "syncnorm"
    return Path.home() / ".cache" / "syncnorm"


def cached(key: str, build: Callable[[], Pixels]) -> Pixels:
    """Return the pixels kept under `key`, or build and keep them.

    Processes that ask for the same key at once build it once: the others wait. A torn or unreadable file is
    built again. Where nothing can be written the pixels are built and not kept.
    """
    path = folder() / f"{key}-v{VERSION}.npz"
    found = _read(path)
    if found is not None:
        return found
    with _lock(path.with_suffix(".lock")):
        found = _read(path)
        if found is not None:
            return found
        pixels = build()
        with suppress(OSError):
            _write(path, pixels)
        return pixels


def _read(path: Path) -> Pixels | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays: dict[str, Any] = {name: file[name] for name in Pixels._fields}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    arrays["note"] = str(arrays["note"])
    arrays["class_names"] = tuple(arrays["class_names"].tolist())
    return Pixels(**arrays)


def _write(path: Path, pixels: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **pixels._asdict())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _lock(path: Path) -> AbstractContextManager[Any]:
    """Return a lock that other processes respect, or none where the folder cannot hold one."""
    from filelock import FileLock

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path).acquire()
    except (OSError, NotImplementedError):
        return nullcontext()
