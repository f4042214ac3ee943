"""Claims about the steps to the baseline's accuracy, from the courses of accuracy that `speed` has recorded."""

from experiments.claims.claim import Claim, Region
from experiments.claims.layers import SERIES
from experiments.claims.measures import Measure, of_rows
from experiments.claims.speed import NETWORK, OWN, STEPS, reached

CHANGED = (
    "The target of the claims about steps was the baseline's mean accuracy over the last fifth of its training. Then "
    "rows showed baselines that had fallen back to a guess by that time, which anything reaches at once. So it is "
    "the highest accuracy of the baseline now, as in the article, computed from the same rows."
)
HOW = (
    "Steps of the network without batch norm to the highest accuracy that it reaches, divided by the steps of the "
    "same network with batch norm to that accuracy; {rate}. Constant rates, {network}. A training that does not get "
    f"there counts as its {STEPS} steps, which is too few."
)


def times_fewer(curves: dict[str, list[float]], key: str) -> float:
    """Return the steps of the baseline to its highest accuracy, divided by those of another course to that one."""
    target = max(curves["none"])
    return reached(curves["none"], target)[0] / reached(curves[key], target)[0]


def fewer(key: str) -> Measure:
    """Return what takes `times_fewer` of every seed."""
    return of_rows("steps", "curves", of=lambda curves: times_fewer(curves, key), log=True)


def steps_claim(name: str, key: str, published: float, rate: str) -> Claim:
    """Return a claim about the steps at one multiple of the baseline's rate."""
    return Claim(
        name,
        f"With batch norm at {rate}, the baseline's accuracy takes {published:g} times fewer steps.",
        f"{SERIES}, ImageNet, Inception",
        f"{published:g} times",
        HOW.format(rate=f"batch norm at {rate}, which was tuned for the baseline", network=NETWORK),
        "times",
        Region(low=published),
        fewer(key),
        mark=published,
    )


CLAIMS = (
    Claim(
        "steps-own",
        "With batch norm, the baseline's accuracy takes fewer steps.",
        SERIES,
        "",
        HOW.format(rate="both at their own tuned rates", network=NETWORK),
        "times",
        Region(low=1),
        fewer(OWN),
        mark=1.0,
    ),
    steps_claim("steps-x1", "bn x1", 2.3, "the baseline's rate"),
    steps_claim("steps-x5", "bn x5", 14.8, "five times the baseline's rate"),
    steps_claim("steps-x30", "bn x30", 11.5, "thirty times the baseline's rate"),
)
