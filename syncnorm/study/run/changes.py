"""Finished runs that were made with other source code or data: which, and what changed."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from syncnorm.config import Run, run_id
from syncnorm.progress import counted
from syncnorm.registry import registry_of
from syncnorm.study.rows import Row
from syncnorm.worlds import fingerprints

MISSING = "missing"
"""Former version of a metric that a row does not have."""


@dataclass(frozen=True)
class Change:
    """Something that finished runs used, and that has changed since."""

    what: str
    """E.g. "model mynet"."""
    was: str
    now: str
    runs: tuple[str, ...]
    """Ids of the affected runs."""

    def sentence(self, keep: bool) -> str:
        """Say what changed, and what happens to the runs."""
        count = counted(len(self.runs), "finished run")
        then = "kept as --keep says" if keep else "to be trained again (--keep shows them as they are)"
        return f"{self.what} has changed ({self.was} is now {self.now}): {count}, {then}"


def changed_rows(runs: Sequence[Run], rows: dict[str, Row]) -> list[Change]:
    """Return what has changed since the finished ones of `runs` were made.

    A row without a fingerprint, or without one to compare it with, counts as unchanged.
    """
    present: dict[tuple[Any, ...], dict[str, str]] = {}
    found: defaultdict[tuple[str, str, str], list[str]] = defaultdict(list)
    for run in runs:
        row = rows.get(run_id(run), {})
        if "metrics" not in row or "fingerprints" not in row:
            continue
        made_of = (
            run.model,
            run.norm.name,
            run.data,
            run.seed if _is_registered(run) else None,  # it draws the split
            *run.world.names(),
        )  # shared by many runs
        if made_of not in present:
            present[made_of] = fingerprints(run)
        now = present[made_of]
        before = row["fingerprints"]
        for what, is_now in now.items():
            was = before.get(what, MISSING if what.startswith("metric ") else is_now)
            if was != is_now:
                found[what, was, is_now].append(run_id(run))
    return [Change(*key, tuple(ids)) for key, ids in found.items()]


def _is_registered(run: Run) -> bool:
    """Return whether samples are part of what is compared."""
    names = [run.data.name, *(name for kind, name in run.world.names() if kind == "data")]
    data = registry_of("data")
    return any(name in data and data.source(name) for name in names)


def stale_ids(changes: Sequence[Change], keep: bool) -> set[str]:
    """Return the ids of finished runs that are to be trained again; none if they are to be kept."""
    return set() if keep else {run for change in changes for run in change.runs}
