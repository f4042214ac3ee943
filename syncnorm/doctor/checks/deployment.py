"""Deployment: what could be folded, and what that saves."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator

import torch
from torch import nn

from syncnorm.doctor.case import Case
from syncnorm.doctor.finding import Finding
from syncnorm.doctor.watch.quiet import same_chance
from syncnorm.doctor.words import percent
from syncnorm.surgery import fold, fold_report
from syncnorm.surgery.layers.preconditions import uncompiled

PAIRS = 15
"""How often both models are timed, in turn; the least time of each counts, which other work on the machine disturbs
least."""


def unfolded(case: Case) -> Iterator[Finding]:
    """A batch norm that folds into the layer before it, and has not been folded."""
    before = case.copy().eval()
    report = fold_report(before)
    if not report.folded:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        after = fold(case.copy().eval())
    pairs = [(_seconds(before, case), _seconds(after, case)) for _ in range(PAIRS)]
    one, other = (min(times) for times in zip(*pairs, strict=True))
    share = (one - other) / one
    saved = f"all of them together save {percent(share)} of the time" if share > 0 else "no time is saved"
    cost = f"{saved}: {1000 * one:.3g} to {1000 * other:.3g} ms for {case.given.count} samples, the least of {PAIRS}"
    for name, sources in report.folded.items():
        yield Finding(
            name,
            f"it folds into '{sources[0]}', and has not been folded",
            "deploy syncnorm.fold(model), with the same outputs",
            "note",
            "certain",
            cost,
        )


def _seconds(model: nn.Module, case: Case) -> float:
    with torch.no_grad(), same_chance(model), uncompiled():
        started = time.perf_counter()
        case.given.call(model)
        return time.perf_counter() - started
