"""Decode images to pixels of one shape."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from syncnorm.data.raw import Pixels
from syncnorm.data.sources.assemble import Split, assemble
from syncnorm.errors import UserError
from syncnorm.tasks.task import where

if TYPE_CHECKING:
    from PIL.Image import Image

Picture = NDArray[Any]
"""A decoded image: uint8 or uint16 (H, W) if grey, otherwise uint8 (H, W, 3)."""
GREY_MODES = {"1", "L"}
WIDE_MODES = ("I", "F")
"""First letters of the modes with more than 8 bits per pixel, all grey."""
BYTE, WORD = 255, 65535
SIXTEEN = "16-bit grey kept"
CUT = "16-bit colour cut to 8 bits, which is all that Pillow reads"


class Raw(NamedTuple):
    """One split before decoding: encoded images or their files, labels (numbers or words), class names if known.

    `natural` is each image's natural client.
    """

    images: Iterable[bytes | Path]
    labels: NDArray[Any]
    class_names: tuple[str, ...] | None
    natural: NDArray[Any] | None = None


def to_pixels(
    splits: Mapping[str, Raw],
    size: int | None,
    what: str,
    note: str,
    changes: Iterable[str] = (),
    stacked: "Stack | None" = None,
) -> Pixels:
    """Decode the splits "train" and "test", or the one called "whole"; `assemble` then combines them.

    Grey images give one channel, colour images three; if both occur, all become RGB. If one image has 16 bits per
    pixel, all images get 16 bits. `size` stretches every image to (size, size); without it all must have the same
    shape. `what` names the data in errors. `stacked` puts the images into arrays (`stack`).
    """
    changed = list(changes)
    images = {name: _decode(raw.images, size, where(what, name), changed) for name, raw in splits.items()}
    arrays = (stacked or stack)(images, what, "give `size`, the side in pixels that all are resized to")
    if any(x.dtype == np.uint16 for x in arrays.values()):
        changed.append(SIXTEEN)
    named = {raw.class_names for raw in splits.values()}
    names = named.pop() if len(named) == 1 else None
    found = {name: Split(arrays[name], raw.labels, raw.natural) for name, raw in splits.items()}
    pixels = assemble(found, what, note, names, changed)
    assert isinstance(pixels, Pixels)
    return pixels


def _decode(images: Iterable[bytes | Path], size: int | None, where: str, changes: list[str]) -> Iterator[Picture]:
    from PIL import Image, UnidentifiedImageError

    for row, source in enumerate(images):
        which = source if isinstance(source, Path) else f"image {row}"
        try:
            with Image.open(source if isinstance(source, Path) else BytesIO(source)) as picture:
                if _is_deep_colour(picture) and CUT not in changes:
                    changes.append(CUT)
                yield pixels_of(picture, f"{where}: {which}", size)
        except UserError:
            raise
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            why = "of no known format" if isinstance(error, UnidentifiedImageError) else error
            raise UserError(f"{where}: {which} cannot be read as an image ({why}): repair or remove it.") from error


def pixels_of(picture: "Image", what: str, size: int | None = None) -> Picture:
    """Return an image as an array, stretched to (size, size) unless that is None.

    Raises `UserError` for pixels that are neither whole numbers from 0 to 65,535 nor colours.
    """
    from PIL import Image

    if picture.mode.startswith(WIDE_MODES):
        return _wide(picture, what, size)
    picture = picture.convert("L" if picture.mode in GREY_MODES else "RGB")
    if size is not None and picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(picture)


def _wide(picture: "Image", what: str, size: int | None) -> Picture:
    """Return a grey image of integers as uint16, one of floats as uint8."""
    from PIL import Image

    values = np.asarray(picture)
    white = BYTE if picture.mode == "F" else WORD
    if (
        not np.isfinite(values).all()
        or values.min() < 0
        or values.max() > white
        or (values != np.floor(values)).any()
    ):
        raise UserError(
            f"{what} has pixels from {values.min():g} to {values.max():g}: an image of mode {picture.mode} must hold "
            f"whole numbers from 0 to {white}, so rescale it, or register arrays with syncnorm.register_data."
        )
    if size is not None and picture.size != (size, size):
        stretched = Image.fromarray(values.astype(np.float32)).resize((size, size), Image.Resampling.BILINEAR)
        values = np.rint(np.asarray(stretched)).clip(0, white)
    return values.astype(np.uint8 if picture.mode == "F" else np.uint16)


def _is_deep_colour(picture: "Image") -> bool:
    return picture.mode in ("RGB", "RGBA") and any(";16" in str(tile[3]) for tile in getattr(picture, "tile", ()))


Stack = Callable[[Mapping[str, Iterable[Picture]], str, str], dict[str, NDArray[Any]]]


def stack(images: Mapping[str, Iterable[Picture]], what: str, mend: str) -> dict[str, NDArray[Any]]:
    """Return (N, C, H, W) per split: C = 1 if all images of all splits are grey, else 3; uint16 if any image is
    uint16.

    Raises `UserError` for images of different sizes; its message ends with `mend`.
    """
    listed = {name: list(split) for name, split in images.items()}
    everything = [image for split in listed.values() for image in split]
    for name, split in listed.items():
        if not split:
            raise UserError(f"{where(what, name)} is empty: it has no image.")
    check_sides({image.shape[:2] for image in everything}, what, mend)
    colour = any(image.ndim == 3 for image in everything)
    deep = any(image.dtype == np.uint16 for image in everything)
    return {
        name: np.ascontiguousarray(np.concatenate([widened(channels_first(image), colour, deep) for image in split]))
        for name, split in listed.items()
    }


def check_sides(sides: Collection[tuple[int, ...]], what: str, mend: str) -> None:
    """Raise `UserError` if there are images of several heights and widths; its message ends with `mend`."""
    if len(sides) > 1:
        heights, widths = zip(*sides, strict=True)
        raise UserError(
            f"{what}: images have different sizes ({min(heights)} to {max(heights)} pixels high, "
            f"{min(widths)} to {max(widths)} wide): {mend}."
        )


def channels_first(image: Picture) -> Picture:
    """Return one image (H, W) or (H, W, 3) as (1, C, H, W)."""
    return (image if image.ndim == 3 else image[:, :, None]).transpose(2, 0, 1)[None]


def widened(images: NDArray[Any], colour: bool, deep: bool) -> NDArray[Any]:
    """Return images (n, C, H, W) with three channels if `colour`, and as uint16 if `deep`."""
    if deep and images.dtype == np.uint8:
        images = images.astype(np.uint16) * (WORD // BYTE)  # white stays white
    return images.repeat(3, axis=1) if colour and images.shape[1] == 1 else images
