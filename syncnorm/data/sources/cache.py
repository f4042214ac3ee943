"""Prepared samples on disk: built once, and read by every process that needs the same data."""

import os
import zipfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from syncnorm.data.raw import Groups, Pixels, Signals
from syncnorm.files import cache_folder

VERSION = 3
"""Part of every file's name. Increase it when the same name and options give other samples."""
KINDS = {kind.__name__: kind for kind in (Pixels, Signals)}
COLUMNS = ("natural", "domain")
LISTS = ("class_names", "changes")
"""Fields that are `Groups`, and those that are tuples of text."""

Samples = TypeVar("Samples", Pixels, Signals, Pixels | Signals)


def cached(key: str, build: Callable[[], Samples]) -> Samples:
    """Return the samples stored under `key`, or build and store them.

    If several processes need the same key at once, one builds it and the others wait. A damaged file is built again.
    If nothing can be written, the samples are built but not stored. A file counts for one version of Pillow only:
    versions draw and decode some images differently by a grey level, and rows record which one they used.
    """
    path = cache_folder() / f"{key}-v{VERSION}-pillow{_pillow()}.npz"
    found: Samples | None = _read(path)
    if found is not None:
        return found
    with _lock(path.with_suffix(".lock")):
        found = _read(path)
        if found is not None:
            return found
        samples = build()
        with suppress(OSError):
            _write(path, samples)
        return samples


def _pillow() -> str:
    try:
        return version("pillow")
    except PackageNotFoundError:
        return "-none"


def _read(path: Path) -> Any:
    try:
        with np.load(path, allow_pickle=False) as file:
            kind = KINDS[str(file["kind"])]
            return kind(**{name: _field(file, name) for name in kind._fields if name not in file["absent"]})
    except (OSError, EOFError, ValueError, TypeError, KeyError, zipfile.BadZipFile):
        return None


def _field(file: Mapping[str, Any], name: str) -> Any:
    if name in COLUMNS:
        return Groups(tuple(file[f"{name}.names"].tolist()), file[f"{name}.train"], file[f"{name}.test"])
    value = file[name]
    if name in LISTS:
        return tuple(value.tolist())
    return value if value.ndim else value.item()


def _write(path: Path, samples: Pixels | Signals) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    plain = samples._asdict()
    absent = [name for name, value in plain.items() if value is None]
    plain = {name: value for name, value in plain.items() if value is not None}
    for column in COLUMNS:
        if column in plain:
            plain |= {f"{column}.{field}": part for field, part in plain.pop(column)._asdict().items()}
    try:
        with temporary.open("wb") as file:
            np.savez(file, kind=type(samples).__name__, absent=np.array(absent, dtype=str), **plain)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _lock(path: Path) -> AbstractContextManager[Any]:
    """Return a lock that other processes respect, or a dummy if the folder does not support locks."""
    from filelock import FileLock

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path).acquire()
    except (OSError, NotImplementedError):
        return nullcontext()
