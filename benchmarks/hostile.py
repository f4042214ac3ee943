"""How accurate a global model stays if a third of its clients is hostile, and what fuzzed replies do to it.

    python benchmarks/hostile.py [--part 1] [--seeds 3] [--rounds 20] [--aggregations krum median] [--attacks noise]

1. Twelve clients with the same mix of digits, four of them hostile: accuracy of the global model under each attack
   and aggregation, beside the weighted mean without attackers. Target: `krum` within two points under every attack.
2. Two thousand fuzzed replies to servers of twelve kinds of runs. Target: no entry of a global model that is not
   finite, no negative variance, no counter that is none. (It stops with an AssertionError otherwise.)
3. Part 1 with clients whose mix of digits differs (Dirichlet, alpha 1), for sign-flipped updates.
4. What a clip of statistics to a ratio does alone, without trimming.

The table's accuracies are means over seeds, which redraw split, clients, attackers and first weights; in brackets the
largest loss of a seed against the weighted mean without attackers and with the same seed. "ended": the run ended with
a sentence that says what to do.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from fuzzed import campaign

from syncnorm.config import Clients, Data, Norm, Optim, Run
from syncnorm.environment import environment
from syncnorm.errors import UserError
from syncnorm.federated import AGGREGATIONS, ATTACKS, simulate

PLAIN = ("mean", "none")
"""What everything is held against: the weighted mean without attackers."""
OPTIONS: dict[str, tuple[str, dict[str, float]]] = {"clip alone": ("clipped", {"trim": 0.0})}
"""Aggregations with other options than their defaults, by the name in a table."""
SKEW: dict[str, Any] = {"skew": "dirichlet_by_class", "alpha": 1.0}


def accuracy(aggregation: str, attack: str, seed: int, rounds: int, **world: Any) -> float | None:
    """Return the accuracy of a run's global model in per cent; None if the run ended with a sentence."""
    hostile = {} if attack == "none" else {"hostile": 1 / 3, "attack": attack}
    shared: dict[str, Any] = {"count": 12, "rounds": rounds, "method": "fedavg_pooled", "engine": "cohort"}
    name, options = OPTIONS.get(aggregation, (aggregation, {}))
    clients = Clients(**{**shared, **hostile, **world, "aggregation": name, "aggregation_options": options})
    run = Run(Data("digits", size=8), "small_cnn", {"width": 8}, Norm("bn"), clients, Optim(lr=0.1), "float32", seed)
    try:
        return 100 * simulate(run).metrics["global_accuracy"]
    except UserError:
        return None


def cell(found: Sequence[float | None], plain: Sequence[float | None]) -> str:
    """Return the mean over seeds, and the largest loss of one."""
    pairs = [(one, other) for one, other in zip(found, plain, strict=True) if one is not None and other is not None]
    if len(pairs) < len(found):
        return f"ended {len(found) - len(pairs)} of {len(found)}"
    return f"{fmean(one for one, _ in pairs):5.1f} ({max(other - one for one, other in pairs):.1f})"


def table(attacks: Sequence[str], aggregations: Sequence[str], seeds: int, rounds: int, **world: Any) -> None:
    """Print accuracies by attack and aggregation."""
    started, scores = time.monotonic(), dict[tuple[str, str], list[float | None]]()
    rows = ["none", *attacks]
    wanted = list(dict.fromkeys([PLAIN, *((name, row) for row in rows for name in aggregations)]))

    def score(key: tuple[str, str]) -> list[float | None]:
        if key not in scores:
            scores[key] = [accuracy(*key, seed, rounds, **world) for seed in range(seeds)]
            minutes = (time.monotonic() - started) / 60
            print(f"{len(scores)} of {len(wanted)} cells, {minutes:.1f} min", file=sys.stderr)
        return scores[key]

    print(f"weighted mean without attackers: {cell(score(PLAIN), score(PLAIN)).split()[0]}")
    print(f"{'attack':17}" + "".join(f"{name:>16}" for name in aggregations))
    for row in rows:
        cells = [cell(score((name, row)), score(PLAIN)) for name in aggregations]
        print(f"{row:17}" + "".join(f"{text:>16}" for text in cells), flush=True)


def main() -> None:
    """Print the parts that were asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--part", type=int, choices=[1, 2, 3, 4], help="one part alone")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each cell of parts 1, 3 and 4")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of each run of parts 1, 3 and 4")
    parser.add_argument("--aggregations", nargs="+", choices=list(AGGREGATIONS), default=list(AGGREGATIONS))
    parser.add_argument("--attacks", nargs="+", choices=list(ATTACKS), default=list(ATTACKS))
    parser.add_argument("--replies", type=int, default=2000, help="fuzzed replies of part 2")
    given = parser.parse_args()
    parts = [given.part] if given.part else [1, 2, 3, 4]
    machine = environment()
    print(
        ", ".join(
            f"{name} {machine[name]}" for name in ("commit", "cpu", "cores", "python", "torch") if name in machine
        )
    )
    how = (
        f"digits (8x8), 12 clients, {given.rounds} rounds, fedavg_pooled, {given.seeds} seeds; 4 clients are hostile"
    )
    if 1 in parts:
        print(f"\n1. The same mix of digits at all clients: {how}")
        table(given.attacks, given.aggregations, given.seeds, given.rounds)
    if 2 in parts:
        ends = campaign(given.replies)
        print(f"\n2. Fuzzed replies: {', '.join(f'{many} {name}' for name, many in ends.items())}")
        print("   All global models were finite, with variances from 0 and counters of batches.")
    if 3 in parts:
        print(f"\n3. Another mix of digits at each client (Dirichlet, alpha 1): {how}")
        table(["flipped"], ["mean", "median", "krum"], given.seeds, given.rounds, **SKEW)
    if 4 in parts:
        print(f"\n4. The clip alone: {how}")
        table(["huge_variance", "huge_mean"], ["mean", "clipped", "clip alone"], given.seeds, given.rounds)


if __name__ == "__main__":
    main()
