"""Encoded images and raw labels in, pixels of one shape out."""

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from syncnorm.data.dataset import Bytes, Labels, Pixels, stratified_fifth
from syncnorm.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

GREY_MODES = {"1", "L", "I", "I;16", "I;16B", "F"}


class Raw(NamedTuple):
    """One split as it was found: encoded images or their files, labels (integers or words), class names if known."""

    images: Iterable[bytes | Path]
    labels: NDArray[Any]
    class_names: tuple[str, ...] | None


def to_pixels(splits: dict[str, Raw], size: int | None, what: str, note: str) -> Pixels:
    """Decode the splits "train" and "test", or split the one called "whole": a stratified fifth is test.

    Grey images give one channel, colour images three; where both occur all become RGB. `size` stretches every
    image to (size, size); without it all must have one shape. `what` names the data in errors.
    """
    images = {name: _decode(raw.images, size, f"{what}, split {name}") for name, raw in splits.items()}
    stacked = _stack(images, what)
    labels, names = _class_indices(splits, what)
    if "whole" in splits:
        train, test = stratified_fifth(labels["whole"])
        x, y = stacked["whole"], labels["whole"]
        return Pixels(
            x[train], y[train], x[test], y[test], names, f"{note}; a stratified fifth of it is the test split"
        )
    return Pixels(stacked["train"], labels["train"], stacked["test"], labels["test"], names, note)


def _decode(images: Iterable[bytes | Path], size: int | None, where: str) -> list[Bytes]:
    """Return each image as uint8 (H, W) if it is grey and (H, W, 3) if not."""
    from PIL import Image, UnidentifiedImageError

    decoded = []
    for row, source in enumerate(images):
        try:
            with Image.open(source if isinstance(source, Path) else BytesIO(source)) as picture:
                decoded.append(_eight_bit(picture, size))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            which = source if isinstance(source, Path) else f"image {row}"
            why = "of no known format" if isinstance(error, UnidentifiedImageError) else error
            raise UserError(f"{where}: {which} cannot be read as an image ({why}): repair or remove it.") from error
    return decoded


def _eight_bit(picture: "Image", size: int | None) -> Bytes:
    from PIL import Image

    mode = "L" if picture.mode in GREY_MODES else "RGB"
    if picture.mode.startswith("I"):  # 16 bits a pixel, which conversion would clip to 255
        picture = Image.fromarray((np.asarray(picture) >> 8).clip(0, 255).astype(np.uint8))
    picture = picture.convert(mode)
    if size is not None and picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(picture)


def _stack(images: dict[str, list[Bytes]], what: str) -> dict[str, Bytes]:
    """Return uint8 (N, C, H, W) a split, C = 1 if all images of all splits are grey, else 3."""
    everything = [image for split in images.values() for image in split]
    sides = {image.shape[:2] for image in everything}
    if len(sides) > 1:
        heights, widths = zip(*sides, strict=True)
        raise UserError(
            f"{what}: images have different sizes ({min(heights)} to {max(heights)} pixels high, "
            f"{min(widths)} to {max(widths)} wide): give `size`, the side in pixels that all are resized to."
        )
    colour = any(image.ndim == 3 for image in everything)

    def channels_last(image: Bytes) -> Bytes:
        image = image if image.ndim == 3 else image[:, :, None]
        return image.repeat(3, axis=2) if colour and image.shape[2] == 1 else image

    return {
        name: np.ascontiguousarray(np.stack([channels_last(image) for image in split]).transpose(0, 3, 1, 2))
        for name, split in images.items()
    }


def _class_indices(splits: dict[str, Raw], what: str) -> tuple[dict[str, Labels], tuple[str, ...]]:
    """Return labels as 0 .. classes-1 and the class names: the values found, in order, where nothing names them."""
    found = np.unique(np.concatenate([raw.labels for raw in splits.values()]))
    if found.dtype.kind == "i" and found[0] < 0:
        raise UserError(f"{what}: label {found[0]} stands for no class; leave out the samples without a label.")
    named = next(iter(splits.values())).class_names
    if named is not None and all(raw.class_names == named for raw in splits.values()):
        return {name: raw.labels for name, raw in splits.items()}, named
    labels = {name: np.searchsorted(found, raw.labels).astype(np.int64) for name, raw in splits.items()}
    return labels, tuple(str(value) for value in found)
