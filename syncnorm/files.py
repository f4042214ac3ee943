"""Writing a file so that it is there as a whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from syncnorm.errors import UserError


@contextmanager
def whole_file(path: Path, mark: str = "") -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`, and put it in the place of `path` once it is written and on the disk.

    An exception leaves what was there. `mark` is part of the temporary file's name, the process's id if not given:
    with a fixed one, what a killed process left behind is overwritten by the next that writes.
    """
    temporary = path.with_name(f".{path.name}.{mark or os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, so that a renamed file survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, content: str | bytes) -> Path:
    """Write `content` to `path` as a whole, creating the folder; return `path`.

    A full disk or a folder that cannot be written raises `UserError` and leaves what was there.
    """
    try:
        with whole_file(path) as file:
            file.write(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; free some space or choose another folder."
        ) from error
    return path
