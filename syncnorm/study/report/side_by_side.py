"""Two results folders of one study side by side: which means differ, and which findings turn.

The folders come from two machines, two versions, or other seeds.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from syncnorm.errors import UserError
from syncnorm.study.report.analysis.labels import listing, metric_label
from syncnorm.study.report.analysis.lines import Place
from syncnorm.study.report.analysis.points import Points
from syncnorm.study.report.analysis.tables import mean_text
from syncnorm.study.report.claims import charts, judgements, place_words
from syncnorm.study.report.inference.comparisons import Comparison
from syncnorm.study.report.inference.shift import Shift, shifts
from syncnorm.study.report.inference.verdict import Verdict
from syncnorm.study.rows import Results, Row, diverged
from syncnorm.study.table import MINUS, NOTHING, Cell, Table

HOLDS, WEAKER, LEANS, TURNED, ABSENT = (
    "found in both",
    "same sign, not resolved",
    "opposite sign, not resolved",
    "found with the opposite sign",
    "not compared there",
)
"""What becomes of a difference found in one folder, in the other one."""


@dataclass(frozen=True)
class Side:
    """A results folder and its name in the tables."""

    name: str
    results: Results


@dataclass(frozen=True)
class Found:
    """A comparison with its verdict, and its words."""

    words: str
    size: str
    said: Verdict
    sign: float


def side_by_side(first: Side, second: Side) -> list[Table]:
    """Return the tables that compare two folders: origin, same runs, means that differ, and findings.

    Raises:
        UserError: the folders have no reported line in common.
    """
    moved, compared = _means(first, second)
    if not compared:
        names = f"'{first.results.about.study}' and '{second.results.about.study}'"
        raise UserError(
            f"{first.name} and {second.name} have no finished line in common, so there is nothing to compare: their "
            f"studies are {names}. Give two results folders of one study."
        )
    same = _same_runs(first, second)
    return [_origins(first, second), *([same] if same else []), moved, _findings(first, second)]


def _origins(first: Side, second: Side) -> Table:
    """Return who made the reported runs of both folders: seeds, processors, versions."""
    rows = [side.results.reported.finished for side in (first, second)]
    seeds = [{row["config"]["seed"] for row in side} for side in rows]
    facts = [("reported runs", [str(len(side)) for side in rows])]
    facts.append(("seeds", [listing(map(str, sorted(some))) for some in seeds]))
    for name, key in (("processor", "cpu"), ("device", "device"), ("torch", "torch"), ("commit", "commit")):
        facts.append((name, [_values(side, key) for side in rows]))
    return Table(
        name="origins",
        title="Where the rows are from",
        caption=f"{len(seeds[0] & seeds[1])} seeds are in both.",
        corner="",
        span="",
        header=[first.name, second.name],
        blocks=[("", [[Cell(name), *map(Cell, texts)] for name, texts in facts])],
    )


def _values(rows: list[Row], key: str) -> str:
    counts = Counter(str(row["environment"].get(key, "not recorded")) for row in rows)
    return "; ".join(f"{value} ({count})" if len(counts) > 1 else value for value, count in counts.most_common())


def _same_runs(first: Side, second: Side) -> Table | None:
    """Compare the runs with the same configuration and seed, metric by metric; None if there are none."""
    ours, theirs = ({row["run_id"]: row for row in side.results.finished} for side in (first, second))
    both = [run for run in ours if run in theirs and not diverged(ours[run]) and not diverged(theirs[run])]
    names = dict.fromkeys(name for _, points in charts(first.results.reported) for name in points.across.names)
    lines, records = [], []
    for name in names:
        pairs = [(ours[run]["metrics"].get(name), theirs[run]["metrics"].get(name)) for run in both]
        gaps = [abs(b - a) for a, b in pairs if a is not None and b is not None]
        if not gaps:
            continue
        metric = metric_label(name)
        apart = sum(gap > 0 for gap in gaps)
        sizes = [f"{value * metric.scale:.2g}" for value in (sum(gaps) / len(gaps), max(gaps))]
        lines.append([Cell(metric.words), Cell(str(len(gaps))), Cell(str(apart)), *map(Cell, sizes)])
        records.append({"metric": name, "runs": len(gaps), "apart": apart, "largest": max(gaps)})
    if not lines:
        return None
    return Table(
        name="same-runs",
        title="Runs with the same configuration and seed in both folders, trials included",
        caption="Differences without their sign, in percentage points where the metric is in percent.",
        corner="metric",
        span="",
        header=["runs in both", "of them differ", "mean difference", "largest"],
        blocks=[("", lines)],
        records=records,
    )


def _means(first: Side, second: Side) -> tuple[Table, int]:
    """Return the table of means that differ by more than their spread, and the number of means compared."""
    there = dict(charts(second.results.reported))
    pairs, where = {}, {}
    for number, points in charts(first.results.reported):
        other = there.get(number)
        for at, values in points.values.items():
            if other and at in other.values:
                pairs[number, at] = values, other.values[at]
                where[number, at] = points, other
    found = shifts(pairs)
    apart = [key for key, one in found.items() if one.real]
    paired = sum(one.paired for one in found.values())
    lines = [_mean_cells(*where[key], key[1], found[key]) for key in apart]
    return Table(
        name="means-apart",
        title="Means that differ by more than their spread",
        caption=f"{len(apart) or 'None'} of {len(found)} means, by p < 0.05 after Holm's correction for all of them. "
        f"{paired} are compared by seed, the others as independent (Welch).",
        corner="line",
        span="",
        header=[first.name, second.name, "difference"],
        blocks=[("", lines)],
        records=[_mean_record(number, *where[number, at], at, one) for (number, at), one in found.items()],
    ), len(found)


def _mean_cells(points: Points, other: Points, at: Place, shift: Shift) -> list[Cell]:
    metric = points.metric(at[2])
    sides = [mean_text(summary, metric) for one in (points, other) if (summary := one.summary(*at))]
    size = f"{shift.value * metric.scale:+.{metric.decimals}f}".replace("-", MINUS)
    spread = f" ± {shift.half_width * metric.scale:.{metric.decimals}f}" if shift.half_width is not None else ""
    return [Cell(f"{at[1]}, {place_words(points, at)}"), *map(Cell, sides), Cell(size + spread)]


def _mean_record(number: int, points: Points, other: Points, at: Place, shift: Shift) -> dict[str, Any]:
    first, second = points.summary(*at), other.summary(*at)
    return {
        "plot": number,
        "panel": at[0],
        "line": at[1],
        "x": at[2],
        "first_mean": first.mean if first else None,
        "second_mean": second.mean if second else None,
        "difference": shift.value,
        "half_width": shift.half_width,
        "paired": shift.paired,
        "p": shift.p,
        "p_holm": shift.adjusted,
        "differs": shift.real,
    }


def _findings(first: Side, second: Side) -> Table:
    """Return what becomes of each difference that is found in one folder, in the other one."""
    ours, theirs = (dict(_judged(side.results.reported)) for side in (first, second))
    fates: Counter[str] = Counter()
    lines, records = [], []
    for key in dict.fromkeys((*ours, *theirs)):
        sides = ours.get(key), theirs.get(key)
        claims = [one for one in sides if one and one.said.found]
        if not claims:
            continue
        fate = _fate(*sides)
        if sides[0] and sides[0].said.found:
            fates[fate] += 1
        lines.append([Cell(claims[0].words), *(_claim_cell(one) for one in sides), Cell(fate)])
        records.append({"plot": key[0], "difference": claims[0].words, "fate": fate})
    return Table(
        name="findings",
        title="Differences that are found in one of the folders",
        caption=_told(fates, len(lines), first.name, second.name),
        corner="difference",
        span="",
        header=[first.name, second.name, "in both"],
        blocks=[("", lines)],
        records=records,
    )


def _told(fates: Counter[str], shown: int, first: str, second: str) -> str:
    """Count what becomes of the differences found in the first folder, and those found in the second one alone."""
    total = sum(fates.values())
    new = shown - total
    fate = listing(f"{count} {fate}" for fate, count in fates.most_common()) if fates else ""
    differences = "difference" if total == 1 else "differences"
    words = (
        f"Of {total} {differences} found in {first}, in {second}: {fate}." if fates else f"None is found in {first}."
    )
    return f"{words} {new} {'is' if new == 1 else 'are'} found in {second} alone."


def _judged(results: Results) -> Iterator[tuple[tuple[int, Place, str], Found]]:
    for number, points, judged in judgements(results):
        for record, said in judged:
            at: Place = record["place"]
            comparison: Comparison = points.comparisons[at]
            metric = points.metric(at[2])
            words = f"{at[1]} against {record['reference']}, {place_words(points, at)}"
            size = mean_text(comparison.difference, metric, sign="+")
            yield (number, at, record["reference"]), Found(words, size, said, comparison.difference.mean)


def _claim_cell(one: Found | None) -> Cell:
    return Cell(one.size, bold=one.said.found, note=one.said.word) if one else Cell(NOTHING)


def _fate(first: Found | None, second: Found | None) -> str:
    if first is None or second is None:
        return ABSENT
    same = first.sign * second.sign > 0
    if first.said.found and second.said.found:
        return HOLDS if same else TURNED
    return WEAKER if same else LEANS
