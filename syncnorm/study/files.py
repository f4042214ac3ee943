"""Writing a file so that it is there as a whole or not at all."""

import os
from pathlib import Path

from syncnorm.errors import UserError


def write_file(path: Path, content: str | bytes) -> Path:
    """Write `content` to `path` by way of a temporary file beside it, creating the folder; return `path`.

    A full disk or a folder that cannot be written raises `UserError` and leaves what was there.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; free some space or choose another folder."
        ) from error
    return path
