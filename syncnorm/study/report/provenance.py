"""Warnings about the origin of rows."""

from collections import Counter, defaultdict

from syncnorm.study.baselines import problem_of
from syncnorm.study.report.analysis.labels import listing
from syncnorm.study.rows import Results, Row
from syncnorm.worlds import SAMPLES

DIRTY = "-dirty"
"""Suffix of the commit of a working tree with changes."""


def provenance(results: Results) -> list[str]:
    """Return one sentence for each reason to doubt that all rows come from the same source code and data."""
    return [*_dirty(results.finished), *_fingerprints(results.finished)]


def _dirty(rows: list[Row]) -> list[str]:
    commits = Counter(row["environment"].get("commit", "") for row in rows)
    found = {commit: count for commit, count in commits.items() if commit.endswith(DIRTY)}
    if not found:
        return []
    return [
        f"{sum(found.values())} of {len(rows)} finished runs were made from a working tree with uncommitted changes "
        f"({listing(found)}): no commit holds their source."
    ]


def _fingerprints(rows: list[Row]) -> list[str]:
    """Report items with several fingerprints, such as "model mynet": the same name had several versions.

    Samples are compared among runs on the same data with the same seed: other data have others.
    """
    seen: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for row in rows:
        for name, value in (row.get("fingerprints") or {}).items():
            seen[name, problem_of(row["config"]) if name == SAMPLES else ""][str(value)[:12]] += 1
    said = [
        f"Different versions of {name} made these runs: "
        f"{listing(f'{value} ({count} runs)' for value, count in found.items())}. Means over them mix versions."
        for (name, _), found in seen.items()
        if len(found) > 1
    ]
    return list(dict.fromkeys(said))
