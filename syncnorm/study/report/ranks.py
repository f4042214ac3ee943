"""What each rank did in the runs over ranks of a torchrun: a table, and a sentence where one was slower."""

from collections import defaultdict
from dataclasses import dataclass
from statistics import median
from typing import Any

from syncnorm.progress import counted, span
from syncnorm.study.rows import Results, Row
from syncnorm.study.table import NOTHING, Cell, Table

SLOW = 1.25
"""A rank is called slow if it worked so many times as long as the median of the others, in all runs together."""
LEAST = 1.0
"""And at least so many seconds longer."""
MIB = 1 << 20


@dataclass(frozen=True)
class Rank:
    """One rank, or several launches' ranks of one number on one machine and device, over all its runs."""

    number: int
    host: str
    device: str
    runs: int
    seconds: float
    waited: float
    samples: int
    peak_memory: int


def ranks_table(results: Results) -> Table | None:
    """Return what each rank did, by number of ranks, with a record for each rank of each run; None without any."""
    by_size = _by_size(results.finished)
    if not by_size:
        return None
    blocks = [(counted(size, "rank"), [_cells(rank, _slow(ranks)) for rank in ranks]) for size, ranks in by_size]
    said = slow_ranks(results)
    return Table(
        name="ranks",
        title="What each rank did",
        caption=(
            f"{' '.join(said) or 'No rank was slow.'} Numbers are sums over runs, of memory the largest. Own time is "
            f"that without waiting for other ranks; it is bold, and the rank called slow, at {SLOW:g} times the "
            f"others' median if that is {LEAST:g} s more. Of an interrupted run, numbers count from its last start."
        ),
        corner="rank",
        span="",
        header=["machine", "device", "runs", "own time (s)", "waiting (s)", "samples", "samples/s", "memory (MiB)"],
        blocks=blocks,
        records=[
            {"run_id": row["run_id"], "ranks": len(row["ranks"]), **one}
            for row in results.finished
            for one in row.get("ranks", [])
        ],
    )


def slow_ranks(results: Results) -> list[str]:
    """Return one sentence for each rank that was slow: the others waited for it."""
    said = []
    for size, ranks in _by_size(results.finished):
        for rank in _slow(ranks):
            others = [other for other in ranks if other.number != rank.number]
            least, most = (pick(other.samples for other in others) for pick in (min, max))
            theirs = f"{least:,}" if least == most else f"{least:,} to {most:,}"
            said.append(
                f"Rank {rank.number} of {size} on {rank.host} was slow: it worked {span(rank.seconds)} on "
                f"{rank.samples:,} samples, and the others {span(median(o.seconds for o in others))} on {theirs}."
            )
    return said


def _by_size(rows: list[Row]) -> list[tuple[int, list[Rank]]]:
    """Return the ranks of all runs, by number of ranks."""
    found: defaultdict[tuple[int, int, str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        for one in row.get("ranks", []):
            found[len(row["ranks"]), one["rank"], one["host"], one["device"]].append(one)
    by_size: defaultdict[int, list[Rank]] = defaultdict(list)
    for (size, number, host, device), records in sorted(found.items()):
        seconds, waited, samples = (sum(one[name] for one in records) for name in ("seconds", "waited", "samples"))
        peak = max(one["peak_memory"] for one in records)
        by_size[size].append(Rank(number, host, device, len(records), seconds, waited, samples, peak))
    return sorted(by_size.items())


def _slow(ranks: list[Rank]) -> list[Rank]:
    """Return the ranks for which the others wait; seconds are compared by run, as not all ranks need have all."""
    found = []
    for rank in ranks:
        others = [other.seconds / other.runs for other in ranks if other.number != rank.number]
        if not others:
            continue
        usual = median(others)
        mine = rank.seconds / rank.runs
        if mine > SLOW * usual and (mine - usual) * rank.runs > LEAST:
            found.append(rank)
    return found


def _cells(rank: Rank, slow: list[Rank]) -> list[Cell]:
    pace = f"{rank.samples / rank.seconds:,.0f}" if rank.seconds else NOTHING
    return [
        Cell(str(rank.number)),
        Cell(rank.host),
        Cell(rank.device),
        Cell(str(rank.runs)),
        Cell(f"{rank.seconds:,.1f}", bold=rank in slow),
        Cell(f"{rank.waited:,.1f}"),
        Cell(f"{rank.samples:,}"),
        Cell(pace),
        Cell(f"{rank.peak_memory / MIB:,.0f}"),
    ]
