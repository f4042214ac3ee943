"""Dry run of a study: groups of runs, finished runs, runs to train, and the expected time."""

from collections import defaultdict
from collections.abc import Sequence
from math import prod
from pathlib import Path
from statistics import fmean
from typing import Any

from syncnorm.config import Run, describe, run_id
from syncnorm.progress import counted, span
from syncnorm.study.plan.spec import Grid, Study, expand, grids_of
from syncnorm.study.rows import ROWS, Row, read_rows
from syncnorm.study.run.changes import changed_rows, stale_ids
from syncnorm.study.run.runner import default_jobs


def forecast(study: Study, out: Path, *, jobs: int | None = None, keep: bool = False) -> str:
    """Describe what `run_study` would do with the same arguments; nothing is trained or written.

    The time of each run to train is estimated by the mean of the finished runs in `out` that differ from it only in
    the seed, or else of all finished runs.
    """
    runs = expand(study)
    rows = read_rows(out) if (out / ROWS).exists() else {}
    done = {run for run, row in rows.items() if "metrics" in row}
    changes = changed_rows(runs, rows)
    stale = stale_ids(changes, keep)
    todo = [run for run in runs if run_id(run) not in done or run_id(run) in stale]
    lines = [f"{study.name}: {counted(len(runs), 'run')}, {len(runs) - len(todo)} finished, {len(todo)} to train"]
    for number, grid in enumerate(grids_of(study)):
        lines.append(f"  {'main grid' if not number else f'grid {number + 1}'}: {_axes(study, grid)}")
    lines += [f"  {change.sentence(keep)}" for change in changes]
    if todo:
        lines.append(f"  {_time(todo, rows, jobs or default_jobs())}")
    lines.append(f"  results: {out}")
    return "\n".join(lines)


def _axes(study: Study, grid: Grid) -> str:
    """Return a grid as text: its fields with their values, and the number of runs."""
    seeds = study.seeds if grid.seeds is None else grid.seeds
    axes = [f"{name} ({', '.join(map(_text, values))})" for name, values in grid.vary.items()]
    points = prod(len(values) for values in grid.vary.values())
    return f"{' x '.join([*axes, counted(seeds, 'seed')])}: {counted(points * seeds, 'run')}"


def _text(value: Any) -> str:
    name = getattr(value, "name", None)
    return str(name if isinstance(name, str) else getattr(value, "kind", value))


def _time(todo: Sequence[Run], rows: dict[str, Row], jobs: int) -> str:
    """Return the expected time of the runs to train, or why it is not known."""
    seconds: defaultdict[str, list[float]] = defaultdict(list)
    everything: list[float] = []
    for row in rows.values():
        if "metrics" in row:
            seconds[_without_seed(row["config"])].append(row["seconds"])
            everything.append(row["seconds"])
    if not everything:
        return "time: not known before a run has finished; --quick is the study's own small version"
    known = [seconds.get(_without_seed(describe(run))) for run in todo]
    total = sum(fmean(found or everything) for found in known)
    alike = sum(found is not None for found in known)
    basis = f"from {counted(len(everything), 'finished run')}; {alike} of {len(todo)} differ in the seed alone"
    shared = span(total / min(jobs, len(todo)))
    return f"time: about {span(total)} of training, {shared} with {counted(jobs, 'worker')} ({basis})"


def _without_seed(config: dict[str, Any]) -> str:
    return str(sorted((key, value) for key, value in config.items() if key != "seed"))
