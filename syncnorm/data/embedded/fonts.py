"""Digits rendered from the fonts that come with matplotlib."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from syncnorm.errors import UserError

FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSansMono-Bold.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSerif-Italic.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralBol.ttf",
    "STIXGeneralItalic.ttf",
    "STIXGeneralBolIta.ttf",
    "cmr10.ttf",
    "cmb10.ttf",
    "cmss10.ttf",
    "cmtt10.ttf",
)
"""matplotlib fonts whose digits differ in shape; every version from 3.8 on ships these, with the same bytes."""
_OVERSAMPLING = 8


def font_files() -> list[Path]:
    """Return the paths of `FONTS`, in order; a missing font raises `UserError`."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    missing = [name for name in FONTS if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"the data set digits-fonts is drawn with fonts of matplotlib, and matplotlib {matplotlib.__version__} "
            f"here has no {', '.join(missing)}: install matplotlib again with all of its fonts, or choose other "
            "data."
        )
    return [folder / name for name in FONTS]


def render_digit(digit: int, files: list[Path], size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return one digit as float (size, size), 1 on 0, in a random font, scale, tilt and place.

    The digit's height is 60 to 90 % of the side; it is tilted by up to 12 degrees and fits inside the image.
    """
    from PIL import Image

    side = size * _OVERSAMPLING
    glyph = _glyph(digit, files[rng.integers(len(files))], side)
    glyph = glyph.rotate(rng.uniform(-12, 12), Image.Resampling.BICUBIC, expand=True)
    glyph = glyph.crop(glyph.getbbox())
    height = rng.uniform(0.6, 0.9) * side
    width = min(glyph.width * height / glyph.height, 0.9 * side)
    glyph = glyph.resize((max(1, round(width)), round(height)), Image.Resampling.BICUBIC)
    canvas = Image.new("L", (side, side))
    left, top = (int(rng.integers(side - extent, endpoint=True)) for extent in glyph.size)
    canvas.paste(glyph, (left, top))
    small = canvas.resize((size, size), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float64) / 255


def _glyph(digit: int, file: Path, height: int) -> Any:
    """Return a digit as an 8-bit picture, cropped to its bounding box."""
    from PIL import Image, ImageDraw, ImageFont

    # BASIC: the layout engine of every build, so that all machines render the same.
    font = ImageFont.truetype(str(file), height, layout_engine=ImageFont.Layout.BASIC)
    picture = Image.new("L", (2 * height, 2 * height))
    ImageDraw.Draw(picture).text((height // 2, height // 4), str(digit), fill=255, font=font)
    return picture.crop(picture.getbbox())
