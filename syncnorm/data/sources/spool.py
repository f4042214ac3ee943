"""Samples that come one after another, written to a file as they come: only one of them is in memory at a time.

For `data.on_disk`. The file lies in the cache's folder and has no name, so it is gone when its process ends.
"""

import shutil
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from syncnorm.data.sources.decode import Picture, channels_first, check_sides, widened
from syncnorm.errors import UserError
from syncnorm.files import cache_folder
from syncnorm.tasks.task import where

SPARED = 1 << 30
"""Bytes of the file system that are left free."""
CHECKED = 1 << 26
"""The free space is looked at each time that so many bytes were written."""


class Spool:
    """Samples of one shape and type, in the order in which they were added; `place` names them in errors."""

    def __init__(self, place: str) -> None:
        self._place, self._folder = place, cache_folder()
        self._rows, self._unchecked = 0, CHECKED
        self._like: NDArray[Any] | None = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
        except OSError as error:
            raise self._full(error.strerror or "") from error

    def __len__(self) -> int:
        return self._rows

    def add(self, samples: NDArray[Any]) -> None:
        """Append samples (n, ...).

        Raises `UserError` for another shape or type than before, and before the disk is full.
        """
        if self._like is None:
            self._like = samples[:1]
        if samples.shape[1:] != self._like.shape[1:]:
            few = " and ".join(str(shape) for shape in sorted((samples.shape[1:], self._like.shape[1:])))
            raise UserError(f"{self._place}: samples have different shapes ({few}): bring all to one.")
        if samples.dtype != self._like.dtype:
            kinds = " and ".join(sorted((str(samples.dtype), str(self._like.dtype))))
            raise UserError(f"{self._place}: samples have different types ({kinds}): bring all to one.")
        self._unchecked += samples.nbytes
        if self._unchecked >= CHECKED:
            self._unchecked = 0
            if shutil.disk_usage(self._folder).free < SPARED + samples.nbytes:
                raise self._full(f"less than {SPARED:,} bytes are free")
        try:
            self._file.write(np.ascontiguousarray(samples).data)
        except OSError as error:
            raise self._full(error.strerror or "") from error
        self._rows += len(samples)

    def array(self) -> NDArray[Any]:
        """Return all samples (N, ...), from the file.

        Raises `UserError` if there are none.
        """
        if self._like is None:
            raise UserError(f"{self._place} is empty: it has no sample.")
        self._file.flush()
        shape = (self._rows, *self._like.shape[1:])
        return np.memmap(self._file, self._like.dtype, "r+", shape=shape).view(np.ndarray)

    def _full(self, why: str) -> UserError:
        return UserError(
            f"{self._place}: its samples were written to {self._folder}, as data.on_disk says, and after "
            f"{self._rows:,} of them that failed ({why}): make room, set the environment's SYNCNORM_CACHE to another "
            "folder, or cut a stream that has no end, for example with `take`."
        )


def stack_on_disk(images: Mapping[str, Iterable[Picture]], what: str, mend: str) -> dict[str, NDArray[Any]]:
    """Return what `decode.stack` returns, from files: images of each split are taken one after another.

    An image that has colours, or 16 bits, has those before it written again, if it is the first such.
    """
    colour = deep = False
    sides: set[tuple[int, ...]] = set()
    spools: dict[str, Spool] = {}
    for name, split in images.items():
        spool = Spool(where(what, name))
        for image in split:
            sides.add(image.shape[:2])
            check_sides(sides, what, mend)
            found = colour or image.ndim == 3, deep or image.dtype == np.uint16
            if found != (colour, deep):
                colour, deep = found
                spool = _again(spool, where(what, name), colour, deep)
            spool.add(widened(channels_first(image), colour, deep))
        if not len(spool):
            raise UserError(f"{where(what, name)} is empty: it has no image.")
        spools[name] = spool
    return {name: _again(spool, where(what, name), colour, deep).array() for name, spool in spools.items()}


def _again(spool: Spool, place: str, colour: bool, deep: bool) -> Spool:
    """Return the images of `spool` with these channels and bits; itself if it has them."""
    if not len(spool):
        return spool
    images = spool.array()
    like = widened(images[:1], colour, deep)
    if like.shape == images[:1].shape and like.dtype == images.dtype:
        return spool
    made = Spool(place)
    for image in images:
        made.add(widened(image[None], colour, deep))
    return made
