"""The style of all figures, and writing them. The same rows give the same bytes, without a display or dates."""

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syncnorm.files import write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, FAINT, GRID = "#22262b", "#6b7280", "#e5e7eb"
TITLE, NOTE = "title", "note"
"""Ids of a figure's title and note."""
# Okabe and Ito's palette, which colour-blind readers can distinguish.
ORANGE, BLUE, GREEN, PINK, GREY, AMBER, SKY = (
    "#d55e00",
    "#0072b2",
    "#009e73",
    "#cc79a7",
    "#5f6670",
    "#e69f00",
    "#56b4e9",
)
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "syncnorm",
}
CHARACTER = 0.085
"""Average width of a character in inches, in the figure's font size."""
DPI = 200
UNDATED: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
}
"""For each format, the metadata that would differ between writes."""
FORMATS = tuple(UNDATED)


def write_image(
    drawing: "Callable[[], Figure | None]", folder: Path, name: str, formats: Sequence[str] = ("png",)
) -> bool:
    """Write the figure of `drawing` in the report's style as NAME.FORMAT, once per format (PNG: 200 dpi).

    Returns whether there was a figure. Older files in other formats are removed, since they would show other rows.
    """
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        figure = drawing()
        if figure is None:
            return False
        for suffix in formats:
            image = BytesIO()
            figure.savefig(image, format=suffix, dpi=DPI, metadata=UNDATED[suffix])
            write_file(folder / f"{name}.{suffix}", image.getvalue())
    for suffix in set(FORMATS) - set(formats):
        (folder / f"{name}.{suffix}").unlink(missing_ok=True)
    return True


def label_figure(figure: "Figure", left: float, head: tuple[str, float], note: tuple[str, float]) -> None:
    """Write a figure's title and its note, each with its height; a page that says both itself leaves them out."""
    (title, high), (words, low) = head, note
    figure.text(left, high, title, fontsize=11, weight="bold", va="top", linespacing=1.3, gid=TITLE)
    figure.text(left, low, words, fontsize=7, color=FAINT, va="bottom", linespacing=1.5, gid=NOTE)
