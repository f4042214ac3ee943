"""Draw what the embedded domains look like. Run: python docs/figures/domains.py [docs/figures/domains.png]."""

import sys
from pathlib import Path

import numpy as np

from syncnorm.data.sources.registered import embedded_pixels

ROWS = {
    "digits": "UCI, handwritten",
    "digits-photo": "photo minus digit",
    "digits-fonts": "printed",
    "digits-rotated": "turned by 30 to 60°",
    "digits-inverted": "dark on light",
    "digits-noisy": "low contrast, noise",
}
"""The domains from top to bottom, each with what sets it apart."""


def draw(file: Path) -> None:
    """Write a grid of images: one row a domain, one column a class, each a training sample.

    All rows but the fonts show the same ten samples.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, grid = plt.subplots(len(ROWS), 10, figsize=(10.6, 5.6), dpi=200)
    figure.subplots_adjust(left=0.21, right=0.99, top=0.93, bottom=0.01, wspace=0.06, hspace=0.06)
    for axes, (name, trait) in zip(grid, ROWS.items(), strict=True):
        pixels = embedded_pixels(name)
        for digit, cell in enumerate(axes):
            sample = np.flatnonzero(pixels.train_y == digit)[0]
            cell.imshow(pixels.train_x[sample].transpose(1, 2, 0), interpolation="nearest")
            cell.set(xticks=[], yticks=[])
            cell.spines[:].set(color="#bbbbbb", linewidth=0.6)
        middle = axes[0].get_position()
        height = (middle.y0 + middle.y1) / 2
        figure.text(0.2, height + 0.018, name, ha="right", va="center", size=14, weight="bold", color="#1a1a1a")
        figure.text(0.2, height - 0.022, trait, ha="right", va="center", size=11, color="#666666")
    for digit, cell in enumerate(grid[0]):
        cell.set_title(str(digit), size=14, color="#1a1a1a", pad=5)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    plt.close(figure)


if __name__ == "__main__":
    draw(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/figures/domains.png"))
