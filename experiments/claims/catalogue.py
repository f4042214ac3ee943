"""All claims, in the groups of the page, and the experiments that measure them."""

from experiments.claims import batches, costs, elsewhere, layers, networks, smoothness, speed, steps, trained
from experiments.claims.claim import Claim
from experiments.claims.evidence import Experiment

GROUPS: dict[str, tuple[Claim, ...]] = {
    "What it is": layers.CLAIMS,
    "What it costs": costs.CLAIMS,
    "How fast it trains": (*steps.CLAIMS, *speed.CLAIMS),
    "How smooth the loss is": smoothness.CLAIMS,
    "What it changes in a network": networks.CLAIMS,
    "After training": trained.CLAIMS,
    "Whose samples share statistics": batches.CLAIMS,
    "Not testable here": elsewhere.CLAIMS,
}
CLAIMS: tuple[Claim, ...] = tuple(claim for claims in GROUPS.values() for claim in claims)
EXPERIMENTS: tuple[Experiment, ...] = (
    *layers.EXPERIMENTS,
    *costs.EXPERIMENTS,
    *speed.EXPERIMENTS,
    *smoothness.EXPERIMENTS,
    *trained.EXPERIMENTS,
)
