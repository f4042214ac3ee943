"""Write files atomically; where files for later are kept."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from syncnorm.errors import UserError


def cache_folder() -> Path:
    """Return $SYNCNORM_CACHE, else $XDG_CACHE_HOME/syncnorm, else ~/.cache/syncnorm."""
    if own := os.environ.get("SYNCNORM_CACHE"):
        return Path(own).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser() / "syncnorm"
    return Path.home() / ".cache" / "syncnorm"


@contextmanager
def whole_file(path: Path, mark: str = "") -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; once it is written and synced to disk, rename it to `path`.

    After an exception, the old file stays. `mark` is part of the temporary file's name; the default is the process
    id. With a fixed mark, the next writer overwrites what a killed process left behind.
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
    """Sync a folder's entries to disk, so that a renamed file survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, content: str | bytes) -> Path:
    """Write `content` to `path` atomically, creating the folder; return `path`.

    A full disk or a read-only folder raises `UserError`, and the old file stays.
    """
    try:
        with whole_file(path) as file:
            file.write(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; free some space or choose another folder."
        ) from error
    return path
