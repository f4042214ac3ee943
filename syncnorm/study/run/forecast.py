"""Dry run of a study: groups of runs, finished runs, runs to train, and the expected time."""

from collections import defaultdict
from collections.abc import Sequence
from math import prod
from pathlib import Path
from statistics import fmean
from typing import Any

from syncnorm.config import Run, describe
from syncnorm.progress import counted, span
from syncnorm.study.plan.spec import Grid, Study, field_path, flatten, grids_of, has_field
from syncnorm.study.plan.trials import plan_of
from syncnorm.study.rows import Row, read_rows
from syncnorm.study.run.changes import changed_rows, stale_ids
from syncnorm.study.run.executors.local import default_jobs
from syncnorm.study.run.schedule import Schedule


def forecast(study: Study, out: Path, *, jobs: int | None = None, keep: bool = False, on: str = "local") -> str:
    """Describe what `run_study` would do with the same arguments; nothing is trained or written.

    The time of each run to train is estimated by the mean of the finished runs in `out` that differ from it only in
    the seed and in what the study tunes, or else of all finished runs. How many runs another executor than "local"
    trains at once is not known before it is asked, unless `jobs` says it.
    """
    plan = plan_of(study)
    rows = read_rows(out)
    changes = changed_rows([one.run for one in Schedule(plan, rows).known.values()], rows)
    schedule = Schedule(plan, rows, stale_ids(changes, keep))
    total, done, todo = schedule.total, schedule.done, _ahead(schedule)
    lines = [f"{study.name}: {counted(total, 'run')}, {done} finished, {total - done} to train"]
    for number, grid in enumerate(grids_of(study)):
        lines.append(f"  {'main grid' if not number else f'grid {number + 1}'}: {_axes(study, grid)}")
    lines += _budget(schedule)
    lines += [f"  {change.sentence(keep)}" for change in changes]
    if todo:
        lines.append(f"  {_time(todo, rows, jobs or (default_jobs() if on == 'local' else None), _apart(study))}")
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


def _ahead(schedule: Schedule) -> list[Run]:
    """Return the runs to train; those whose values are not chosen yet have the base's own."""
    waiting = [
        run
        for members, now in schedule.plan.standings(schedule.rows)
        if now.choice is None
        for run, seeds in members.points
        for _ in range(seeds)
    ]
    return [*schedule.todo(), *waiting]


def _budget(schedule: Schedule) -> list[str]:
    """Say what tuning costs: lines, trials, seeds, and runs."""
    plan, tune = schedule.plan, schedule.plan.study.tune
    if tune is None:
        return []
    chosen = sum(now.choice is not None for _, now in plan.standings(schedule.rows))
    runs = sum(tune.budget(len(one.trials)) * len(one.trials[0]) // tune.seeds for one in plan.lines)
    reported = sum(seeds for one in plan.lines for _, seeds in one.points)
    own = f", and as many at the base's own values ({len(plan.fixed)})" if tune.shared else ""
    most = max(len(one.trials) for one in plan.lines)
    trials = f"{counted(most, 'trial')} x {counted(tune.seeds, 'seed')}"
    return [
        f"  tuning {', '.join(tune.fields())}: {counted(len(plan.lines), 'line')} x {trials}"
        f"{', successively halved' if tune.halve else ''}: {counted(runs, 'run')}; {chosen} of the lines are tuned",
        f"  then {counted(reported, 'run')} with the chosen values{own}",
    ]


def _apart(study: Study) -> set[str]:
    """Return the dotted paths of the fields by which alike runs may differ: the seed, and what is tuned."""
    base = study.base
    tuned = study.tune.fields() if study.tune else []
    return {"seed", *(".".join(field_path(base, name)) for name in tuned if has_field(base, name))}


def _time(todo: Sequence[Run], rows: dict[str, Row], jobs: int | None, apart: set[str]) -> str:
    """Return the expected time of the runs to train, or why it is not known."""
    seconds: defaultdict[str, list[float]] = defaultdict(list)
    everything: list[float] = []
    for row in rows.values():
        if "metrics" in row:
            seconds[_alike(row["config"], apart)].append(row["seconds"])
            everything.append(row["seconds"])
    if not everything:
        return "time: not known before a run has finished; --quick is the study's own small version"
    known = [seconds.get(_alike(describe(run), apart)) for run in todo]
    total = sum(fmean(found or everything) for found in known)
    alike = sum(found is not None for found in known)
    what = "the seed" if len(apart) == 1 else "the seed and what is tuned"
    basis = f"from {counted(len(everything), 'finished run')}; {alike} of {len(todo)} differ in {what} alone"
    shared = f", {span(total / min(jobs, len(todo)))} with {counted(jobs, 'worker')}" if jobs else ""
    return f"time: about {span(total)} of training{shared} ({basis})"


def _alike(config: dict[str, Any], apart: set[str]) -> str:
    """Return a text that is equal for runs that differ in the fields `apart` alone."""
    return str(sorted((name, value) for name, value in flatten(config).items() if name not in apart))
