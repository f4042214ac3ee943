"""The rule by which a difference is called found, or not resolved. docs/claims.md has it in prose.

A difference between a line and its reference is found if all of these hold; otherwise it is not resolved, and every
one that fails is a reason. What is not recorded fails.

1. Both lines are tuned, with equal budgets.
2. The p-value is below 5 % after Holm's correction for all comparisons of its table.
3. The 95 % intervals over seeds, and over seeds and test samples, leave out zero.
4. Both lines share at least five seeds; no run diverged; no run of the better line is at chance.
5. No choice of the worse line lies at the edge of its range: beyond it, that line may be better.
6. The better line is not below the pixel baseline, where there is one.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from syncnorm.study.report.inference.comparisons import LEVEL

SEEDS = 5
"""The smallest number of seeds for a claim."""
FOUND, UNRESOLVED = "found", "not resolved"
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """What may be said of one comparison."""

    better: str
    """"line" or "reference": which is ahead; empty if the metric has no better direction, or they are equal."""
    reasons: tuple[str, ...]
    """Why the difference is not resolved; empty if it is found."""
    notes: tuple[str, ...] = ()
    """What must be said with it."""

    @property
    def found(self) -> bool:
        """Whether the difference is found."""
        return not self.reasons

    @property
    def word(self) -> str:
        """ "found" or "not resolved"."""
        return FOUND if self.found else UNRESOLVED


def verdict(record: Record) -> Verdict:
    """Return the verdict on a comparison.

    Args:
        record: the columns of `records_of` with those of `evidence`: of the line, with the prefix "reference_" of the
            reference, and of their difference. A column that is missing counts as not recorded.
    """
    better = _better(record)
    reasons = [reason for rule in RULES for reason in rule(record, better)]
    notes = []
    worse = {"line": "reference_", "reference": ""}.get(better)
    if worse is not None and record.get(f"{worse}at_chance"):
        notes.append(f"{_count(record[f'{worse}at_chance'])} of the worse line at chance")
    return Verdict(better, tuple(reasons), tuple(notes))


def verdicts(records: Iterable[Record]) -> list[tuple[Record, Verdict]]:
    """Return every record of a table that has a reference, with its verdict."""
    return [(record, verdict(record)) for record in records if record.get("reference")]


def _better(record: Record) -> str:
    higher, mean = record.get("higher_is_better"), record.get("difference_mean")
    if higher is None or not mean:
        return ""
    return "line" if (mean > 0) == higher else "reference"


def _tuning(record: Record, better: str) -> list[str]:
    tuned = record.get("tuned"), record.get("reference_tuned")
    if None in tuned:
        return ["it is not recorded whether both lines are tuned"]
    if not all(tuned):
        return ["not tuned"]
    budgets = record.get("budget"), record.get("reference_budget")
    if None in budgets:
        return ["the budgets of tuning are not recorded"]
    return [] if budgets[0] == budgets[1] else [f"unequal budgets of tuning: {budgets[0]} and {budgets[1]} trials"]


def _multiplicity(record: Record, better: str) -> list[str]:
    p, count = record.get("p_holm"), record.get("comparisons")
    if p is None:
        return ["no p-value: one seed, or no spread"]
    return [] if p < LEVEL else [f"p = {p:.2g} after Holm's correction for {count} comparisons"]


def _intervals(record: Record, better: str) -> list[str]:
    parts = (("difference_", "seeds"), ("difference_both_", "seeds and test samples"))
    reasons = []
    for prefix, over in parts:
        low, high = record.get(f"{prefix}low"), record.get(f"{prefix}high")
        if low is None or high is None:
            reasons.append(f"no interval over {over}")
        elif low <= 0 <= high:
            reasons.append(f"the interval over {over} holds zero")
    return reasons


def _runs(record: Record, better: str) -> list[str]:
    seeds = record.get("difference_n") or 0
    reasons = [] if seeds >= SEEDS else [f"{seeds} seeds in common, {SEEDS} are needed"]
    for prefix, name in (("", "the line"), ("reference_", "the reference")):
        diverged, chance = record.get(f"{prefix}diverged"), record.get(f"{prefix}at_chance")
        if diverged is None:
            reasons.append(f"it is not recorded whether runs of {name} diverged")
        elif diverged:
            reasons.append(f"{_count(diverged)} of {name} diverged, and in no mean")
        if chance is None:
            reasons.append(f"it is not recorded whether {name} is better than a guess")
        elif chance and better in ("", name.removeprefix("the ")):
            reasons.append(f"{_count(chance)} of {name} at chance")
    return reasons


def _edges(record: Record, better: str) -> list[str]:
    if not (record.get("tuned") and record.get("reference_tuned")):
        return []  # said already
    reasons = []
    for prefix, name in (("", "line"), ("reference_", "reference")):
        if name == better:
            continue
        edge = record.get(f"{prefix}edge")
        if edge is None:
            reasons.append(f"it is not recorded whether a choice of the {name} lies at the edge of its range")
        elif edge:
            reasons.append(f"the {name}'s choice lies at the edge of its range: {edge}")
    return reasons


def _baseline(record: Record, better: str) -> list[str]:
    baseline = record.get("baseline")
    mean = record.get("reference_mean" if better == "reference" else "mean")
    if baseline is None or mean is None or mean >= baseline:
        return []
    return [f"the better line is below the pixel baseline ({100 * baseline:.1f} %)"]


def _count(runs: int) -> str:
    return f"{runs} {'run' if runs == 1 else 'runs'}"


RULES: tuple[Callable[[Record, str], list[str]], ...] = (
    _tuning,
    _multiplicity,
    _intervals,
    _runs,
    _edges,
    _baseline,
)
"""Each returns the reasons for which a comparison fails it; `better` is as in `Verdict`."""
