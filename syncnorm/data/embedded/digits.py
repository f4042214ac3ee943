"""The embedded data: scikit-learn's UCI digits, and domains of the same task that are derived from them.

Every domain except the fonts is made of the same 1797 digits; `ORIGINS` says which digit each image shows. How they
are split, and dealt to the domains of a run, is drawn in `syncnorm.data.split`. All have the shape (3, size, size).
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from syncnorm.data.embedded.fonts import font_files, render_digit
from syncnorm.data.raw import Labels, Origin, Pixels
from syncnorm.seeds import derive

SIZE = 16
"""Default side of the images in pixels."""
MIN_SIZE, MAX_SIZE = 8, 96
"""Limits of the side: digits have 8 pixels; photo crops are up to four times the side and must fit into the
photographs."""
CROPS = 3
"""Photo crops per digit (5391 images): one is not enough for a small network."""
PAGES = (0, 130, 256, 386, 516, 646, 776, 906, 1029, 1157, 1287, 1415, 1545, 1667)
"""Where the pages of the file begin, which stand for writers.

UCI says that 13 people wrote these digits, and not who wrote which. But the labels repeat: each page has the same 130
digits in the same order, with at most 8 missing (and one other in all), as if each writer had filled in the same
form. There are 14 pages, so one writer may have two."""
DIGITS = 1797
NAMES = tuple("0123456789")
UCI = "UCI digits (Alpaydin & Kaynak 1998) of scikit-learn"

Image = NDArray[np.float64]
Draw = Callable[[Image, int, np.random.Generator], Image]
"""Makes a domain's image, float (3, size, size), from a digit (size, size) in [0, 1]; the image is clipped to [0,
1]."""
Build = Callable[[int], Pixels]
"""Makes a domain's pixels for a given side."""


def _clean(digit: Image, size: int, rng: np.random.Generator) -> Image:
    return _grey(digit)


def _inverted(digit: Image, size: int, rng: np.random.Generator) -> Image:
    return 1 - _grey(digit)


def _rotated(digit: Image, size: int, rng: np.random.Generator) -> Image:
    """Rotate counter-clockwise by 30 to 60 degrees: far from upright, but a 6 does not become a 9."""
    from PIL import Image as pil

    picture = pil.fromarray(digit.astype(np.float32))
    return _grey(np.asarray(picture.rotate(rng.uniform(30, 60), pil.Resampling.BILINEAR), dtype=np.float64))


def _noisy(digit: Image, size: int, rng: np.random.Generator) -> Image:
    """Halve the contrast; add Gaussian noise with standard deviation 0.2 to every pixel and channel."""
    return 0.25 + 0.5 * _grey(digit) + rng.normal(0, 0.2, (3, size, size))


def _photo(digit: Image, size: int, rng: np.random.Generator) -> Image:
    """Return |photo - digit|, as MNIST-M (arXiv 1505.07818), on a crop of one to four times the size."""
    photos = photographs()
    photo = photos[rng.integers(len(photos))]
    height, width = photo.shape[1:]
    side = int(rng.integers(size, 4 * size, endpoint=True))
    top, left = rng.integers(height - side, endpoint=True), rng.integers(width - side, endpoint=True)
    crop = photo[:, top : top + side, left : left + side]
    return np.abs(np.stack([resample(channel, size) for channel in crop]) - digit)


def _of_uci(draw: Draw, purpose: str, note: str, copies: int = 1) -> Build:
    """Return the function that builds a domain by drawing every UCI digit `copies` times.

    Each sample has its own random stream, so that no sample depends on the others.
    """

    def build(size: int) -> Pixels:
        digits, labels = _uci(size)
        images = np.stack(
            [
                eight_bit(draw(digit, size, np.random.default_rng(derive(purpose, 0, i, copy))))
                for copy in range(copies)
                for i, digit in enumerate(digits)
            ]
        )
        return _whole(images, np.tile(labels, copies), f"{UCI}, {note}")

    return build


def _whole(images: NDArray[np.uint8], labels: Labels, note: str) -> Pixels:
    return Pixels(images, labels, images[:0], labels[:0], NAMES, note)


def _build_fonts(size: int) -> Pixels:
    """Render 1800 digits, 180 per class."""
    note = "digits rendered from matplotlib's fonts, moved, scaled and tilted at random"
    fonts = font_files()
    labels = np.arange(1800, dtype=np.int64) % 10
    streams = (np.random.default_rng(derive("digits-fonts", 0, i)) for i in range(len(labels)))
    drawn = zip(labels, streams, strict=True)
    images = np.stack([eight_bit(_grey(render_digit(int(y), fonts, size, rng))) for y, rng in drawn])
    return _whole(images, labels, note)


def _origin(copies: int) -> Origin:
    number = np.tile(np.arange(DIGITS), copies)
    return Origin(UCI, number, np.searchsorted(PAGES, number, side="right") - 1)


def _uci(size: int) -> tuple[list[Image], NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return [resample(image / 16, size) for image in bunch.images], bunch.target.astype(np.int64)


@cache
def photographs() -> list[Image]:
    """Return scikit-learn's china.jpg and flower.jpg, both float (3, 427, 640) in [0, 1]."""
    from sklearn.datasets import load_sample_images

    return [photo.transpose(2, 0, 1) / 255 for photo in load_sample_images().images]


def resample(channel: Image, size: int) -> Image:
    """Resample (H, W) to (size, size), bilinear and with antialiasing where it shrinks."""
    from PIL import Image as pil

    picture = pil.fromarray(channel.astype(np.float32))
    return np.asarray(picture.resize((size, size), pil.Resampling.BILINEAR), dtype=np.float64)


def _grey(image: Image) -> Image:
    return np.broadcast_to(image, (3, *image.shape))


def eight_bit(image: Image) -> NDArray[np.uint8]:
    """Return an image in [0, 1] as bytes."""
    rounded: NDArray[np.uint8] = np.rint(image.clip(0, 1) * 255).astype(np.uint8)
    return rounded


DOMAINS: dict[str, Build] = {
    "digits": _of_uci(_clean, "digits", "upscaled from 8x8"),
    "digits-photo": _of_uci(
        _photo,
        "digits-photo",
        f"each as |photo - digit| on {CROPS} random crops of scikit-learn's two photographs",
        CROPS,
    ),
    "digits-fonts": _build_fonts,
    "digits-rotated": _of_uci(_rotated, "digits-rotated", "turned left by 30 to 60 degrees"),
    "digits-inverted": _of_uci(_inverted, "digits-inverted", "dark on light"),
    "digits-noisy": _of_uci(_noisy, "digits-noisy", "half the contrast and Gaussian noise"),
}
"""The embedded data sets by name."""
ORIGINS = {name: _origin(CROPS if name == "digits-photo" else 1) for name in DOMAINS if name != "digits-fonts"}
"""Which digit each image of a domain shows; every image of the fonts is its own."""
SUMMARIES = {
    "digits": "handwritten digits of UCI, light on dark",
    "digits-photo": "the same, each as |photo - digit| on crops of photographs",
    "digits-fonts": "digits rendered from fonts",
    "digits-rotated": "UCI digits turned left by 30 to 60 degrees",
    "digits-inverted": "UCI digits, dark on light",
    "digits-noisy": "UCI digits at half the contrast, with noise",
}
"""One-line descriptions of `DOMAINS`."""
