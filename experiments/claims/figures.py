"""The figures of the page: a strip for every claim, and courses of training."""

from typing import TYPE_CHECKING

from experiments.claims.claim import Judged
from experiments.claims.evidence import Evidence
from experiments.claims.smoothness import EVERY as LOOK_EVERY
from experiments.claims.smoothness import KINDS
from experiments.claims.speed import EVERY, OWN
from syncnorm.study.report.drawing.inline import inline_svg
from syncnorm.study.report.drawing.style import AMBER, BLUE, FAINT, GREEN, INK, ORANGE, PINK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

WIDTH = 2.7
"""Inches of a strip: it fits a phone as it is."""
LINES = {
    "none": ("without batch norm", ORANGE),
    "bn x1": ("with, at the same rate", BLUE),
    "bn x5": ("with, at 5 times the rate", GREEN),
    "bn x30": ("with, at 30 times", PINK),
    OWN: ("with, at its own rate", AMBER),
}
LOOKS = {"none": ("without batch norm", ORANGE), "bn": ("with batch norm", BLUE)}
KIND_WORDS = dict(zip(KINDS, ("range of the loss", "change of the gradient", "effective smoothness"), strict=True))


def strip(one: Judged) -> str:
    """Return the strip of a claim as SVG: every value, the interval, the region in which it holds, and what is
    published; empty without a measurement."""
    if one.measured is None:
        return ""
    return inline_svg(lambda: _strip(one), f"strip-{one.claim.name}", f"What was measured of: {one.claim.text}").svg


def courses(group: str, evidence: Evidence) -> tuple[str, str]:
    """Return the figure of a group of claims as SVG and its caption; empty if it has none."""
    if group == "How fast it trains" and (rows := evidence.series("steps", "curves")):
        curves = [row[0] for row in rows]
        words = f"Test accuracy against steps, mean over {len(curves)} seeds, each at a constant rate."
        return inline_svg(lambda: _speed(curves), "courses-speed", words).svg, words
    if group == "How smooth the loss is" and (rows := evidence.series("smoothness", "courses")):
        found = [row[0] for row in rows]
        words = f"What the loss does along the gradient as training goes on, mean over {len(found)} seeds."
        return inline_svg(lambda: _smooth(found), "courses-smooth", words).svg, words
    return "", ""


def _strip(one: Judged) -> "Figure":
    from matplotlib.figure import Figure

    measured, claim = one.measured, one.claim
    assert measured is not None
    figure = Figure(figsize=(WIDTH, 0.95), layout="constrained")
    ax = figure.add_subplot()
    low, high = measured.estimate.interval or (measured.estimate.value,) * 2
    shown = [*measured.values, low, high, *claim.region.ends, *([] if claim.mark is None else [claim.mark])]
    first, last = _limits(min(shown), max(shown), measured.log)
    if measured.log:
        ax.set_xscale("log")
    inside = (first if claim.region.low is None else claim.region.low, claim.region.high)
    ax.axvspan(inside[0], last if inside[1] is None else inside[1], color=GREEN, alpha=0.18, linewidth=0)
    if claim.mark is not None:
        ax.axvline(claim.mark, color=INK, linewidth=1, linestyle=(0, (3, 2)))
    ax.plot([low, high], [1, 1], color=BLUE, linewidth=2, solid_capstyle="butt")
    ax.plot([measured.estimate.value], [1], "D", color=BLUE, markersize=5, label="mean")
    ax.plot(measured.values, [0] * len(measured.values), "o", color=FAINT, markersize=3, alpha=0.7, label="one value")
    ax.set(xlim=(first, last), ylim=(-0.7, 1.7), yticks=[])
    ax.set_xlabel(claim.unit)
    _few_ticks(ax, measured.log)
    ax.spines["left"].set_visible(False)
    return figure


def _limits(low: float, high: float, log: bool) -> tuple[float, float]:
    if log:
        wide = max((high / low) ** 0.08, 1.05)
        return low / wide, high * wide
    wide = 0.08 * (high - low) or max(abs(high), 1e-3)
    return low - wide, high + wide


def _few_ticks(ax: "Axes", log: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    if log:
        _plain_log(ax.xaxis)
    else:
        ax.xaxis.set_major_locator(MaxNLocator(3))


def _plain_log(axis: "Axis") -> None:
    """Label a logarithmic axis with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0), numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _speed(curves: list[dict[str, list[float]]]) -> "Figure":
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.2, 3.2), layout="constrained")
    ax = figure.add_subplot()
    for name, (words, color) in LINES.items():
        mean = 100 * np.mean([curve[name] for curve in curves], axis=0)
        ax.plot(EVERY * np.arange(1, len(mean) + 1), mean, color=color, linewidth=1.4, label=words)
    ax.set(xlabel="steps", ylabel="test accuracy (%)", xscale="log")
    _plain_log(ax.xaxis)
    ax.legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def _smooth(found: list[dict[str, dict[str, list[float]]]]) -> "Figure":
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.2, 2.4), layout="constrained")
    for ax, (kind, words) in zip(figure.subplots(1, len(KINDS)), KIND_WORDS.items(), strict=True):
        for norm, (label, color) in LOOKS.items():
            mean = np.mean([one[norm][kind] for one in found], axis=0)
            ax.plot(LOOK_EVERY * np.arange(1, len(mean) + 1), mean, color=color, linewidth=1.4, label=label)
        ax.set_title(words, fontsize=9, loc="left", color=INK)
        ax.set(xlabel="steps", yscale="log")
        _plain_log(ax.yaxis)
        ax.tick_params(labelsize=7)
    figure.axes[0].legend(frameon=False, fontsize=7)
    return figure
