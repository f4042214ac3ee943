"""Claims that the rows of the study `claim_networks` decide: each line at the rate that was tuned for it."""

from typing import Any

from experiments.claim_networks import AFTER, AFTER_SUM, DROPOUT, INSIDE, NOISY, PLAIN, SIGMOID
from experiments.claims.claim import Claim, Measured, Region
from experiments.claims.evidence import Evidence
from experiments.claims.layers import SERIES, START
from experiments.claims.measures import Side, difference, level
from experiments.claims.smoothness import SMOOTH

STUDY = "claim_networks"
NETWORK = "The study's perceptron of six hidden layers on digits, each line at its tuned rate"


def line(norm: str, options: dict[str, Any]) -> Side:
    """Return the fields of a line of the study."""
    return {"norm": norm, "model_options": options}


NONE, BN = line("none", PLAIN), line("bn", PLAIN)


def helped(evidence: Evidence) -> Measured | None:
    """Return what dropout gains without batch norm, minus what it gains with it, in points by seed."""
    without = difference(STUDY, line("none", DROPOUT), NONE)(evidence)
    norm = difference(STUDY, line("bn", DROPOUT), BN)(evidence)
    if without is None or norm is None or len(without.values) != len(norm.values):
        return None
    return Measured(tuple(a - b for a, b in zip(without.values, norm.values, strict=True)), note=without.note)


CLAIMS = (
    Claim(
        "sigmoid-without",
        "A deep network of sigmoids without batch norm does not learn.",
        f"{SERIES}: Inception with sigmoids",
        "at chance",
        f"Test accuracy. {NETWORK}. Chance is 10 %, and 15 % is what counts as none.",
        "%",
        Region(high=15),
        level(STUDY, line("none", SIGMOID)),
        mark=10.0,
    ),
    Claim(
        "sigmoid-with",
        "With batch norm, a network of sigmoids comes close to one of ReLUs without.",
        f"{SERIES}: Inception, 69.8 % and 72.2 %",
        "2.4 points below",
        f"Test accuracy of sigmoids with batch norm minus that of ReLUs without. {NETWORK}.",
        "points",
        Region(low=-2.4),
        difference(STUDY, line("bn", SIGMOID), NONE),
        mark=-2.4,
    ),
    Claim(
        "accuracy",
        "Batch norm raises the accuracy that is reached.",
        f"{SERIES}: Inception, 72.7 % and 72.2 % at one rate",
        "0.5 points",
        f"Test accuracy with batch norm minus that without, after 456 steps. {NETWORK}. It holds from 0.5 points on.",
        "points",
        Region(low=0.5),
        difference(STUDY, BN, NONE),
        mark=0.5,
    ),
    Claim(
        "dropout",
        "With batch norm, dropout is needed less.",
        SERIES,
        "",
        f"What dropout of 0.2 gains without batch norm, minus what it gains with it. {NETWORK}.",
        "points",
        Region(low=0),
        helped,
    ),
    Claim(
        "noise",
        "With noise after every batch norm, training is still better than without batch norm.",
        SMOOTH,
        "",
        f"Test accuracy with batch norm whose outputs get random scales (0.5 to 1.5) and offsets (-0.5 to 0.5) per "
        f"channel at every step, minus that without batch norm. {NETWORK}.",
        "points",
        Region(low=0),
        difference(STUDY, line("bn", NOISY), NONE),
    ),
    Claim(
        "before-activation",
        "Batch norm belongs before the activation.",
        SERIES,
        "",
        f"Test accuracy with batch norm before the ReLU minus that after it. {NETWORK}.",
        "points",
        Region(low=0),
        difference(STUDY, BN, line("bn", AFTER)),
    ),
    Claim(
        "before-sum",
        "Batch norm belongs inside the branch, before the residual sum.",
        START,
        "",
        "Test accuracy with the last batch norm inside the branch minus that after the sum: three blocks of two "
        "layers, each line at its tuned rate.",
        "points",
        Region(low=0),
        difference(STUDY, line("bn", INSIDE), line("bn", AFTER_SUM)),
    ),
)
