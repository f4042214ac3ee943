"""Finished runs that were made with other source code or data: which, and what changed."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from syncnorm.config import Run, run_id
from syncnorm.environment import environment
from syncnorm.errors import UserError
from syncnorm.progress import counted
from syncnorm.registry import registry_of
from syncnorm.study.baselines import family_of, problem_of
from syncnorm.study.rows import Row
from syncnorm.worlds import SAMPLES, fingerprints, world_of

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
    """Return what has changed since the finished ones of `runs` were made: source, files, and samples.

    A row without a fingerprint, or without one to compare it with, counts as unchanged.

    Samples are compared where they could have changed and it matters: those of registered data always, and all others
    while a run is left to train, since only then rows of two contents could come into one folder. So a finished study
    loads no data, and a study that goes on loads what it is about to train on anyway.
    """
    present: dict[tuple[Any, ...], dict[str, str]] = {}
    found: defaultdict[tuple[str, str, str], list[str]] = defaultdict(list)
    finished = [run for run in runs if {"metrics", "fingerprints"} <= rows.get(run_id(run), {}).keys()]
    for run in finished:
        made_of = (run.model, run.norm.name, run.data, *run.world.names())  # shared by many runs
        if made_of not in present:
            present[made_of] = fingerprints(run)
        before = rows[run_id(run)]["fingerprints"]
        for what, is_now in present[made_of].items():
            was = before.get(what, MISSING if what.startswith("metric ") else is_now)
            if was != is_now and what != SAMPLES:
                found[what, was, is_now].append(run_id(run))
    stale = {run for ids in found.values() for run in ids}
    going_on = any("metrics" not in rows.get(run_id(run), {}) or run_id(run) in stale for run in runs)
    compared = [run for run in finished if going_on or _is_registered(run)]
    return [*(Change(*key, tuple(ids)) for key, ids in found.items()), *_changed_samples(compared, rows)]


def _changed_samples(runs: Sequence[Run], rows: dict[str, Row]) -> list[Change]:
    """Return the data of finished runs whose samples, labels or split are now others.

    Of all seeds on the same data, the first is loaded; the others only if it has changed.
    """
    families: defaultdict[str, dict[str, list[Run]]] = defaultdict(dict)
    for run in runs:
        config = rows[run_id(run)]["config"]
        families[family_of(config)].setdefault(problem_of(config), []).append(run)
    found: defaultdict[tuple[str, str, str], list[str]] = defaultdict(list)
    for problems in families.values():
        for group in problems.values():
            now = _samples(group[0])
            lost = [run for run in group if now and rows[run_id(run)]["fingerprints"].get(SAMPLES, now) != now]
            for run in lost:
                row = rows[run_id(run)]
                found[f"content of data {_data_words(run)}", row["fingerprints"][SAMPLES], now].append(run_id(run))
            if not lost:
                break
    return [
        Change(what, f"{was}{_drawn_by(rows[ids[0]]['environment'])}", f"{now}{_drawn_by(environment())}", tuple(ids))
        for (what, was, now), ids in found.items()
    ]


def _samples(run: Run) -> str:
    """Return the fingerprint of a run's data as they are now; empty if they cannot be loaded here."""
    try:
        return world_of(run).data(run).fingerprint
    except UserError:
        return ""


def _drawn_by(environment: dict[str, str]) -> str:
    """Return the version of the package that draws and decodes images, which may be what changed."""
    return f", by Pillow {environment['pillow']}" if environment.get("pillow") else ""


def _data_words(run: Run) -> str:
    domains = [name for kind, name in run.world.names() if kind == "data"]
    return ", ".join(domains) or run.data.name


def _is_registered(run: Run) -> bool:
    data = registry_of("data")
    names = [run.data.name, *(name for kind, name in run.world.names() if kind == "data")]
    return any(name in data and data.source(name) is not None for name in names)


def stale_ids(changes: Sequence[Change], keep: bool) -> set[str]:
    """Return the ids of finished runs that are to be trained again; none if they are to be kept."""
    return set() if keep else {run for change in changes for run in change.runs}
