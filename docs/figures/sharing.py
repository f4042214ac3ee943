"""Draw whose samples share statistics, norm by norm:  python docs/figures/sharing.py  (writes sharing.png)."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle

DEVICES, SAMPLES = 4, 4
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7"]
SHARED = "#56b4e9"
INK, GREY = "#1a1a1a", "#6b6b6b"

PANELS = [
    ("bn", "a device's samples", lambda device, sample: COLOURS[device]),
    ("sync_bn", "all devices' samples", lambda device, sample: SHARED),
    ("ghost_bn", "part of a device's samples", lambda device, sample: COLOURS[device] + ("ff", "80")[sample // 2]),
    ("gn, ln, in", "nobody: each sample alone", None),
]


def panel(axes: Axes, name: str, words: str, colour: object) -> None:
    """Draw one norm: a row a device, a square a sample, one colour a set of samples that share statistics."""
    for device in range(DEVICES):
        y = DEVICES - 1 - device
        axes.add_patch(
            FancyBboxPatch((-0.12, y - 0.02), SAMPLES + 0.1, 0.86, boxstyle="round,pad=0.06", fc="none", ec="#c8c8c8")
        )
        for sample in range(SAMPLES):
            face = colour(device, sample) if callable(colour) else "white"
            edge = "white" if callable(colour) else INK
            axes.add_patch(Rectangle((sample, y), 0.82, 0.82, fc=face, ec=edge, lw=1.2))
    axes.set_xlim(-0.35, SAMPLES + 0.2)
    axes.set_ylim(-0.3, DEVICES + 0.9)
    axes.set_aspect("equal")
    axes.axis("off")
    axes.text(-0.12, DEVICES + 0.5, name, fontsize=15, fontweight="bold", color=INK, family="monospace")
    axes.text(-0.12, DEVICES + 0.08, words, fontsize=11, color=GREY)


def main() -> None:
    """Write sharing.png beside this file."""
    figure, all_axes = plt.subplots(1, len(PANELS), figsize=(13.2, 4.0))
    for axes, (name, words, colour) in zip(all_axes, PANELS, strict=True):
        panel(axes, name, words, colour)
    for device in range(DEVICES):
        all_axes[0].text(
            -0.5, DEVICES - 1 - device + 0.4, f"device {device}", ha="right", va="center", fontsize=11, color=GREY
        )
    figure.suptitle("Whose samples share statistics? One global batch of 16 on 4 devices", x=0.07, ha="left",
                    fontsize=15, color=INK)  # fmt: skip
    figure.subplots_adjust(left=0.07, right=0.995, top=0.86, bottom=0.01, wspace=0.08)
    figure.savefig(Path(__file__).with_name("sharing.png"), dpi=160)


if __name__ == "__main__":
    main()
