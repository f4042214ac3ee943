"""Finished runs that other source or other data made than the present: which, and what changed."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from syncnorm.config import Run, run_id
from syncnorm.study.rows import Row
from syncnorm.worlds import fingerprints

MISSING = "missing"
"""What a metric was that a row does not have."""


@dataclass(frozen=True)
class Change:
    """Something that finished runs were made with, and that has changed since."""

    what: str
    """E.g. "model mynet"."""
    was: str
    now: str
    runs: tuple[str, ...]
    """Ids of the runs."""

    def sentence(self, keep: bool) -> str:
        """Say what changed, and what becomes of the runs."""
        count = f"{len(self.runs)} finished run{'s' if len(self.runs) != 1 else ''}"
        then = "kept as --keep says" if keep else "to be trained again (--keep shows them as they are)"
        return f"{self.what} has changed ({self.was} is now {self.now}): {count}, {then}"


def changed_rows(runs: Sequence[Run], rows: dict[str, Row]) -> list[Change]:
    """Return what has changed since the finished ones of `runs` were made.

    A row without a fingerprint, and one that has no other to compare it with, counts as made by the present.
    """
    found: defaultdict[tuple[str, str, str], list[str]] = defaultdict(list)
    for run in runs:
        row = rows.get(run_id(run), {})
        if "metrics" not in row or "fingerprints" not in row:
            continue
        now = fingerprints(run)
        before = row["fingerprints"]
        for what, is_now in now.items():
            was = before.get(what, MISSING if what.startswith("metric ") else is_now)
            if was != is_now:
                found[what, was, is_now].append(run_id(run))
    return [Change(*key, tuple(ids)) for key, ids in found.items()]
