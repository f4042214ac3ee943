"""An embedded segmentation task: digits and simple shapes blended into photographs, with the masks they are made of.

Every image has a digit and two of disc, square and triangle, at random places and sizes; what is drawn later covers
what was drawn before. An object of strength s (0.5 to 0.9 in each colour, at random) is |photo - s|, so that neither
colour nor brightness tells the classes apart. A target has the class of every pixel.

An image has one of eight scenes: which photograph, and in it which row of tiles; and one of four pairs of brightness
and contrast. Scenes are numbered so that their neighbours are alike: 0 to 3 show one photograph, and of these 0 and 1
are dark. So a device that gets neighbouring scenes has images that are alike.

Photographs are cut into tiles; training images are crops of some and test images of others, so that no pixel of a
photograph is in both. Test digits are no training digits. Scenes are in the training and the test images alike.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from syncnorm.data.embedded.digits import UCI, Image, eight_bit, photographs, resample
from syncnorm.data.raw import Groups, Pixels
from syncnorm.data.split import stratified_fifth
from syncnorm.errors import UserError
from syncnorm.seeds import derive

NAME = "shapes-photo"
SUMMARY = "segmentation: digits, discs, squares and triangles in photographs"
CLASSES = ("background", "digit", "disc", "square", "triangle")
SIZE = 32
MIN_SIZE, MAX_SIZE = 16, 96
"""Limits of the side in pixels: a smaller digit is not legible, and crops must fit into a tile."""
SCENES = 8
TRAIN, TEST = 960, 320
"""Numbers of images: 120 and 40 a scene."""
TILE = 106
"""Side of a tile in pixels: the photographs (427 x 640) have four rows of six."""
TEST_COLUMNS, TRAIN_COLUMNS = (1, 4), (0, 2, 3, 5)
"""Columns of tiles that test and training images are cut from."""
LIGHTS = ((-0.25, 0.6), (-0.25, 1.0), (0.25, 0.6), (0.25, 1.0))
"""Brightness (an offset) and contrast (a factor around the middle) of a photograph's four scenes; pixels are in [0,
1]."""


def build(size: int) -> Pixels:
    """Return the images, uint8 (N, 3, size, size), and their masks, int64 (N, size, size).

    Image i depends on i alone. `natural` is the scene.
    """
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise UserError(f"data.size is {size}: {NAME} can be {MIN_SIZE} to {MAX_SIZE} pixels wide.")
    train = [draw(index, size, "train") for index in range(TRAIN)]
    test = [draw(index, size, "test") for index in range(TEST)]
    (train_x, train_y), (test_x, test_y) = (
        (np.stack([image for image, _ in part]), np.stack([mask for _, mask in part])) for part in (train, test)
    )
    names = tuple(f"scene {number}" for number in range(SCENES))
    scenes = Groups(names, np.arange(TRAIN) % SCENES, np.arange(TEST) % SCENES)
    note = f"{UCI}, and shapes, as |photo - strength| in scikit-learn's two photographs"
    return Pixels(train_x, train_y, test_x, test_y, CLASSES, note, natural=scenes, task="segmentation")


def draw(index: int, size: int, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return image `index` of "train" or "test", (3, size, size), and its mask, (size, size)."""
    rng = np.random.default_rng(derive(NAME, 0, split, index))
    picture = _background(index % SCENES, size, TRAIN_COLUMNS if split == "train" else TEST_COLUMNS, rng)
    mask = np.zeros((size, size), dtype=np.int64)
    kinds = ["digit", *rng.choice(("disc", "square", "triangle"), 2, replace=False)]
    for kind in rng.permutation(kinds):
        side = int(rng.integers(size // 4, size // 2, endpoint=True))
        inside = _digit(index, size // 2, split) if kind == "digit" else _shape(str(kind), side)
        side = len(inside)
        top, left = rng.integers(size - side, size=2, endpoint=True)
        there = np.zeros_like(mask, dtype=bool)
        there[top : top + side, left : left + side] = inside
        strength = rng.uniform(0.5, 0.9, (3, 1))
        picture[:, there] = np.abs(picture[:, there] - strength)
        mask[there] = CLASSES.index(str(kind))
    return eight_bit(picture), mask


def _background(scene: int, size: int, columns: tuple[int, ...], rng: np.random.Generator) -> Image:
    """Return a crop of the scene's tiles in these columns, resampled to `size`, in the scene's light."""
    photo = photographs()[scene // 4]
    side = int(rng.integers(size, min(2 * size, TILE), endpoint=True))
    top, left = rng.integers(TILE - side, size=2, endpoint=True)
    top, left = top + scene % 4 * TILE, left + int(rng.choice(columns)) * TILE
    crop = np.stack([resample(channel, size) for channel in photo[:, top : top + side, left : left + side]])
    brightness, contrast = LIGHTS[scene % 4]
    lit: Image = (0.5 + contrast * (crop - 0.5) + brightness).clip(0, 1)
    return lit


def _digit(index: int, side: int, split: str) -> NDArray[np.bool_]:
    """Return the strokes of a digit, (side, side); test images show each test digit once."""
    images, train, test = _digits()
    chosen = train if split == "train" else test
    strokes: NDArray[np.bool_] = resample(images[chosen[index % len(chosen)]], side) > 0.4
    return strokes


@cache
def _digits() -> tuple[list[Image], NDArray[np.int64], NDArray[np.int64]]:
    """Return all digits (8, 8) in [0, 1], and the indices of training and test ones, in random order."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    train, test = (
        np.random.default_rng(derive(NAME, 0, "digits")).permutation(part) for part in stratified_fifth(bunch.target)
    )
    return [image / 16 for image in bunch.images], train, test


def _shape(kind: str, side: int) -> NDArray[np.bool_]:
    """Return a disc, square or triangle that fills (side, side)."""
    rows, columns = (np.mgrid[:side, :side] + 0.5) / side - 0.5
    if kind == "disc":
        inside = rows**2 + columns**2 <= 0.25
    elif kind == "triangle":
        inside = 2 * np.abs(columns) <= rows + 0.5
    else:
        inside = np.ones((side, side), dtype=bool)
    return np.asarray(inside, dtype=np.bool_)
