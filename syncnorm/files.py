"""Write files atomically; where files for later are kept."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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

    After an exception, the old file stays. The temporary file's name has the process id, so that two writers do not
    meet in one, and `mark`; with a mark, what killed processes left behind is removed.
    """
    temporary = path.with_name(f".{path.name}.{mark}{os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    if mark:
        _remove_abandoned(path, mark)
    try:
        with _locked(temporary) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def _locked(path: Path) -> BinaryIO:
    """Open a new file that `_remove_abandoned` leaves alone as long as it is open here."""
    while True:
        file = path.open("wb")
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # removed before it was locked


def _remove_abandoned(path: Path, mark: str) -> None:
    """Remove the temporary files of `path` whose writers are gone: nobody holds their locks."""
    for left in path.parent.glob(f".{path.name}.{mark}*.tmp"):
        with suppress(OSError), left.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


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
