"""How fast a network trains with batch norm, and at which rates it trains at all."""

from collections.abc import Sequence
from itertools import islice
from math import isfinite, log
from operator import truediv

from experiments.claims.claim import Claim, Region
from experiments.claims.evidence import Experiment, Setting, Values
from experiments.claims.layers import SERIES, START
from experiments.claims.loop import NORMS, accuracy, data, network, training
from experiments.claims.measures import of_rows

EVERY = 10
"""Steps between two measurements of the accuracy."""
FACTORS = {"bn x1": 1, "bn x5": 5, "bn x30": 30}
"""Batch norm at the baseline's rate times this."""
OWN = "bn own"
"""Batch norm at its own chosen rate."""
STEPS, QUICK_STEPS = 1200, 200
LOWEST, STEP = 0.01, 2**0.5
"""The first rate that is tried for stability, and the factor to the next."""
TRIED = 28
"""The number of these rates: up to 116."""
TRIAL_STEPS, LAST = 300, 30
LEARNED = 0.9 * log(10)
"""A rate is stable if the mean loss of the last steps is finite and below 90 % of that of a guess of 10 classes."""


def curve(norm: str, rate: float, seed: int, steps: int) -> list[float]:
    """Return the test accuracy after every `EVERY` steps; 0 once the loss is not finite."""
    model, split, found = network(norm, seed), data(seed), []
    for number, loss in enumerate(islice(training(model, seed, rate), steps), start=1):
        if not isfinite(loss):
            return found + [0.0] * (steps // EVERY - len(found))
        if number % EVERY == 0:
            found.append(round(accuracy(model, split.test_x, split.test_y), 4))
    return found


def reached(accuracies: Sequence[float], target: float) -> tuple[int, bool]:
    """Return the steps until the target is reached, and whether it is; the length of the training where it is not."""
    for number, value in enumerate(accuracies, start=1):
        if value >= target:
            return number * EVERY, True
    return len(accuracies) * EVERY, False


def steps(seed: int, setting: Setting) -> Values:
    """Return the steps to the baseline's accuracy, which is its mean over the last fifth of its training."""
    length = QUICK_STEPS if setting.quick else STEPS
    base = setting.rates["none"]
    curves = {"none": curve("none", base, seed, length)}
    curves |= {name: curve("bn", base * factor, seed, length) for name, factor in FACTORS.items()}
    curves[OWN] = curve("bn", setting.rates["bn"], seed, length)
    tail = curves["none"][-(length // EVERY // 5) :]
    target = sum(tail) / len(tail)
    ends = {name: reached(values, target) for name, values in curves.items()}
    return {
        "target": target,
        "curves": curves,
        **{name: end for name, (end, _) in ends.items()},
        "missed": [name for name, (_, there) in ends.items() if not there],
    }


def stable(seed: int, setting: Setting) -> Values:
    """Return the largest rate up to which the network trains, without and with batch norm.

    Rates rise by a factor of 1.41 from 0.01 on. The largest is that before the first two in a row that fail.
    """
    found: Values = {}
    for norm in NORMS:
        best, failed = 0.0, 0
        for number in range(TRIED if not setting.quick else TRIED // 2):
            rate = LOWEST * STEP**number
            good = learns(norm, rate, seed, TRIAL_STEPS)
            best, failed = (rate, 0) if good else (best, failed + 1)
            if best and failed == 2:
                break
        found[norm] = best
    return found


def learns(norm: str, rate: float, seed: int, length: int) -> bool:
    """Return whether a training at this rate has learned something at its end."""
    losses = []
    for loss in islice(training(network(norm, seed), seed, rate), length):
        if not isfinite(loss):
            return False
        losses.append(loss)
    return sum(losses[-LAST:]) / LAST < LEARNED


RATES = ("none", "bn")
EXPERIMENTS = (Experiment("steps", 6, steps, RATES), Experiment("stable", 6, stable))

NETWORK = "the study's perceptron of six hidden layers on digits, batches of 32"

CLAIMS = (
    Claim(
        "stable-rate",
        "With batch norm, the largest stable learning rate is 5 to 30 times larger.",
        f"{START}; {SERIES} trains at 5 and at 30 times the rate",
        "5 to 30 times",
        "The largest rate at which the loss is below 90 % of a guess's after 300 steps, with batch norm divided by "
        f"without; rates rise by a factor of 1.41 up to 116; {NETWORK}. It holds from 5 times on.",
        "times",
        Region(low=5),
        of_rows("stable", "bn", "none", of=truediv, log=True),
        mark=5.0,
    ),
)
