"""Tensors that lie in files instead of memory: the system reads what is used, and drops it when memory is short.

Such a file is in the cache's folder and has no name, so it is gone when its process ends, however it ends. A tensor
computed from one in a file is in a file as well (`by_rows`), so that no step needs the memory of all samples.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from syncnorm.errors import UserError
from syncnorm.files import cache_folder

CHUNK = 1 << 22
"""Bytes that are computed at once."""


def room(shape: Sequence[int], dtype: torch.dtype, on_disk: bool) -> Tensor:
    """Return an uninitialised tensor on the CPU, in memory or in a file.

    Raises `UserError` if the file system is full, or the folder cannot be written.
    """
    count = torch.Size(shape).numel()
    if not on_disk or count == 0:
        return torch.empty(tuple(shape), dtype=dtype)
    place = cache_folder()
    try:
        place.mkdir(parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(dir=place, suffix=".samples")
        try:
            # Without its blocks, writing to a full disk would end the process with a signal.
            os.posix_fallocate(number, 0, count * dtype.itemsize)
            return torch.from_file(name, shared=True, size=count, dtype=dtype).view(tuple(shape))
        finally:
            os.close(number)
            os.unlink(name)
    except OSError as error:
        raise UserError(
            f"data.on_disk needs {count * dtype.itemsize:,} bytes in {place}, and that failed ({error.strerror}): "
            "make room, or set the environment's SYNCNORM_CACHE to a folder that has it."
        ) from error


def is_mapped(x: Tensor) -> bool:
    """Return whether a tensor lies in a file."""
    return x.device.type == "cpu" and x.untyped_storage().filename is not None


def chunks(count: int, row_bytes: int) -> Iterator[slice]:
    """Yield slices that cover `count` rows, of at most `CHUNK` bytes each, and of a row at least."""
    step = max(CHUNK // max(row_bytes, 1), 1)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def by_rows(compute: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return `compute(x)`, which treats every row by itself: in a file, part by part, if `x` lies in one."""
    if not is_mapped(x) or len(x) == 0:
        return compute(x)
    like = compute(x[:1])
    made = room((len(x), *like.shape[1:]), like.dtype, on_disk=True)
    for part in chunks(len(x), x[:1].nbytes):
        made[part] = compute(x[part])
    return made


def together(parts: Sequence[Tensor]) -> Tensor:
    """Return the parts one after another, (N, ...): in a file if one of them lies in one."""
    if len(parts) == 1:
        return parts[0]
    if not any(map(is_mapped, parts)):
        return torch.cat(list(parts))
    made = room((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype, on_disk=True)
    start = 0
    for part in parts:
        for rows in chunks(len(part), part[:1].nbytes):
            made[start + rows.start : start + rows.stop] = part[rows]
        start += len(part)
    return made


def moved(x: Tensor, device: torch.device | str, dtype: torch.dtype | None) -> Tensor:
    """Return samples on a device, as `dtype`."""
    if dtype is not None and dtype != x.dtype and is_mapped(x):
        x = by_rows(lambda part: part.to(dtype), x)
    return x.to(device, dtype)
