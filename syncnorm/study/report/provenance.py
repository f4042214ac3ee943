"""What a reader must know of where rows come from, beside their environment."""

import json
from collections import Counter, defaultdict

from syncnorm.study.report.analysis.labels import listing
from syncnorm.study.rows import Results, Row

DIRTY = "-dirty"
"""How the commit of a working tree with changes ends."""


def provenance(results: Results) -> list[str]:
    """Return a sentence for each doubt whether all rows come from the same source and data; none for no doubt."""
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
    """Say of what rows have several fingerprints, where runs have the same model or data."""
    seen: defaultdict[str, defaultdict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for row in rows:
        for name, value in (row.get("fingerprints") or {}).items():
            seen[name][_alike(name, row)][str(value)] += 1
    sentences = []
    for name, groups in seen.items():
        if differing := next((found for found in groups.values() if len(found) > 1), None):
            counts = listing(f"{value[:12]} ({count} runs)" for value, count in differing.items())
            sentences.append(
                f"Runs that should differ in their settings alone were made with different versions of their {name}: "
                f"{counts}. Compare them with care, or remove the rows of the older and start the study again."
            )
    return sentences


def _alike(name: str, row: Row) -> str:
    """Return what runs have in common that should have the same fingerprint of this name."""
    config = row["config"]
    if name == "data":
        return json.dumps([config["data"], config["world"].get("domains"), config["world"].get("unseen")])
    return str(config["model"]) if name == "model" else ""
