"""Claims that nothing here can test, and why."""

from experiments.claims.batches import MOVING
from experiments.claims.claim import Claim, Region
from experiments.claims.evidence import Evidence
from experiments.claims.layers import SERIES, START


def nothing(evidence: Evidence) -> None:
    """Measure nothing."""


def untestable(name: str, text: str, source: str, published: str, why: str) -> Claim:
    """Return a claim that is not testable here."""
    return Claim(name, text, source, published, "", "", Region(low=0), nothing, untestable=why)


CLAIMS = (
    untestable(
        "imagenet",
        "At thirty times the rate, Inception with batch norm reaches 74.8 % on ImageNet, and 72.2 % without.",
        SERIES,
        "74.8 and 72.2 %",
        "it needs ImageNet, and 31 million steps of training",
    ),
    untestable(
        "detection",
        "On COCO, from scratch, batch norm with 2 images a device has 32.38 box AP, and 36.80 synchronised over 8.",
        MOVING.partition(",")[0] + ", arXiv 2001.06838",
        "4.4 points of AP",
        "it needs COCO and eight GPUs",
    ),
    untestable(
        "overhead-gpu",
        "On a GPU, too, batch norm costs less than 5 % of a layer's time.",
        START,
        "under 5 %",
        "the machine has no GPU; on a CPU it is measured above",
    ),
)
