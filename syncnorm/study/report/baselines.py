"""The table of a study's pixel baselines, beside the best of its own lines on the same data."""

import json
from collections import defaultdict
from statistics import fmean
from typing import Any

from syncnorm.study.baselines import family_of
from syncnorm.study.report.analysis.baselines import METRIC, accuracies
from syncnorm.study.report.analysis.labels import listing, setting
from syncnorm.study.report.runs import settings_words
from syncnorm.study.rows import Results, Row, diverged
from syncnorm.study.table import NOTHING, Cell, Table

NAMED = ("count", "domains", "skew", "alpha", "noise", "held_out", "unseen")
"""Fields of a world that tell data apart."""
UNREACHED = "No line reaches the best baseline"
"""Start of the warning."""
SETTINGS = 3
"""Number of chosen settings of a baseline in the caption."""


def baseline_table(results: Results) -> Table | None:
    """Return the table of baselines; None if the study has none on its finished runs' data."""
    families: defaultdict[str, list[Row]] = defaultdict(list)
    for row in results.finished:
        if results.about.runs[row["run_id"]].get("role") != ["tuning"]:
            families[family_of(row["config"])].append(row)
    names = list(dict.fromkeys(one.words for one in results.baselines))
    rows, records, lost = [], [], []
    for found in families.values():
        if not (means := accuracies(found, results)):
            continue
        data, best = _data_words(found[0]), _best(found)
        cells = [Cell(f"{100 * means[name]:.1f}" if name in means else NOTHING) for name in names]
        rows.append([Cell(data), *cells, Cell(f"{100 * best[0]:.1f}", note=best[1]) if best else Cell(NOTHING)])
        records.append({"data": data, **means, "best": best and best[0], "best_line": best and best[1]})
        if best and best[0] < max(means.values()):
            lost.append(data)
    if not rows:
        return None
    return Table(
        name="baselines",
        title="Pixel baselines",
        caption=" ".join([*_warning(lost, len(rows)), "Accuracy (%), mean over seeds.", *_how(results)]),
        corner="data",
        span="",
        header=[*names, "best line"],
        blocks=[("", rows)],
        records=records,
    )


def _warning(lost: list[str], of: int) -> list[str]:
    if not lost:
        return []
    where = "" if len(lost) == of else f" on {'; '.join(lost)}"
    return [f"{UNREACHED}{where}: these networks are not trained well enough to be compared."]


def _how(results: Results) -> list[str]:
    """Say on how many samples each baseline was trained, and which settings it chose."""
    parts = []
    for words in dict.fromkeys(one.words for one in results.baselines):
        own = [one for one in results.baselines if one.words == words]
        capped = sorted({f"{one.used:,} of {one.of:,}" for one in own if one.used < one.of})
        chosen = [one for one in dict.fromkeys(one.settings for one in own) if one]
        said = [f"trained on {listing(capped)} samples"] if capped else []
        more = f" and {len(chosen) - SETTINGS} more" if len(chosen) > SETTINGS else ""
        said += [f"chose {'; '.join(chosen[:SETTINGS])}{more}"] if chosen else []
        parts += [f"{words}: {', '.join(said)}."] if said else []
    return parts


def _best(rows: list[Row]) -> tuple[float, str] | None:
    """Return the largest mean accuracy over the seeds of a run, and the words for the run."""
    groups: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if not diverged(row) and row["metrics"].get(METRIC) is not None:
            groups[json.dumps({**row["config"], "seed": 0}, sort_keys=True)].append(row)
    means = [(fmean(row["metrics"][METRIC] for row in group), settings_words(group[0])) for group in groups.values()]
    return max(means, default=None)


def _data_words(row: Row) -> str:
    data, world = row["config"]["data"], row["config"]["world"]
    parts: list[Any] = [] if world.get("domains") else [data["name"]]
    parts += [setting(name, data[name]) for name in ("size", "train_limit") if data.get(name) is not None]
    if world["kind"] != "devices":
        parts += [setting(name, world[name]) for name in NAMED if world.get(name) not in (None, [], 0, 0.0)]
    return ", ".join(parts)
