"""The lines of a study that tunes: which points share a choice, and which runs try which values."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from syncnorm.checks import check_types
from syncnorm.config import Run, describe, run_id
from syncnorm.errors import UserError, unknown
from syncnorm.study.plan.spec import (
    KIND,
    Study,
    base_of,
    field_path,
    grids_of,
    has,
    has_field,
    points_of,
    value_at,
    with_fields,
)
from syncnorm.study.plot import agrees
from syncnorm.study.tuning.choose import Line, Trial
from syncnorm.study.tuning.ranges import Range
from syncnorm.study.tuning.tune import Tune

Points = Sequence[tuple[Run, int]]
"""Runs with seed 0, each with its number of seeds."""


@dataclass(frozen=True)
class Members:
    """A line with the runs behind it."""

    line: Line
    points: Points
    """Its points at the base's own values."""
    trials: tuple[tuple[Run, ...], ...]
    """The runs of every trial, seed after seed."""
    probes: tuple[Run, ...]
    """Runs that try its ranges' ends and middle, or all values of a choice, at every point; never trained."""


def lines_of(study: Study, tune: Tune, points: Points) -> list[Members]:
    """Return the lines of a study that tunes, in the order of their first points.

    Raises:
        UserError: a field or value that no line has, a tuned field that is varied, seeds that are also reported.
    """
    _check_seeds(study, tune, max(seeds for _, seeds in points))
    _check_varied(study, tune)
    grouped: dict[str, list[tuple[Run, int]]] = {}
    fields: dict[str, dict[str, Any]] = {}
    for name in (*tune.per, *tune.fields()):
        if name != KIND and not any(has_field(run, name) for run, _ in points):
            field_path(points[0][0], name)  # raises the error
    for run, seeds in points:
        config = describe(run)
        own = {name: value_at(config, name) for name in tune.per if has(config, name)}
        name = ", ".join(f"{field.rpartition('.')[2]} {_text(value)}" for field, value in own.items()) or "all runs"
        grouped.setdefault(name, []).append((run, seeds))
        fields[name] = own
    _check_own(tune, list(fields.values()))
    ranges = {name: _ranges(tune, fields[name], members) for name, members in grouped.items()}
    at = {name: _tried(tune, name, members) for name, members in grouped.items() if ranges[name]}
    tune = tune.paid([len(runs) for runs in at.values()])
    return [
        _members(study, tune, Named(name, fields[name], ranges[name]), tuple(members), at.get(name, []))
        for name, members in grouped.items()
    ]


def line_values(study: Study, tune: Tune) -> list[str]:
    """Return the texts of all values of the fields that make lines: what `Tune.own` may name."""
    configs = [describe(run) for run, _ in points_of(study)]
    values = [_text(value_at(config, name)) for config in configs for name in tune.per if has(config, name)]
    return list(dict.fromkeys(values))


@dataclass(frozen=True)
class Named:
    """What distinguishes a line."""

    name: str
    fields: dict[str, Any]
    """The values of the fields that make it a line."""
    ranges: dict[str, Range]
    """What it tunes."""


def _ranges(tune: Tune, fields: dict[str, Any], points: Points) -> dict[str, Range]:
    """Return the ranges of a line: those of every line and its own, as far as all its points have the field."""
    texts = [_text(value) for value in fields.values()]
    more = [ranges for value, ranges in tune.own.items() if value in texts]
    ranges = {field: one for given in (tune.ranges, *more) for field, one in given.items()}
    return {field: one for field, one in ranges.items() if all(has_field(run, field) for run, _ in points)}


def _tried(tune: Tune, name: str, points: Points) -> list[Run]:
    """Return the points at which a line's trials train."""
    chosen = [run for run, _ in points if _is_at(run, tune.at)]
    if not chosen:
        raise UserError(
            f"no point of the line with {name} has the values of tune.at ({tune.at}): name some that every line has."
        )
    return chosen


def _members(study: Study, tune: Tune, named: Named, points: Points, chosen: list[Run]) -> Members:
    """Return a line with its trials' runs; one without ranges has nothing to try."""
    name, fields, ranges = named.name, named.fields, named.ranges
    if not ranges:  # one trial without runs, which is chosen at once
        return Members(Line(name, fields, {}, (Trial({}, ((),) * tune.seeds),), len(points)), points, ((),), ())
    values = tune.trial_values(study.name, ranges)
    seeds = range(tune.first_seed, tune.first_seed + tune.seeds)
    runs = [
        [[replace(run, seed=seed) for run in at] for seed in seeds]
        for at in ([with_fields(run, one) for run in chosen] for one in values)
    ]
    trials = tuple(
        Trial(one, tuple(tuple(map(run_id, at)) for at in by_seed)) for one, by_seed in zip(values, runs, strict=True)
    )
    line = Line(name, fields, {field: one.plain() for field, one in ranges.items()}, trials, len(points))
    flat = tuple(tuple(chain.from_iterable(by_seed)) for by_seed in runs)
    return Members(line, points, flat, _probes(ranges, points))


def _probes(ranges: dict[str, Range], points: Points) -> tuple[Run, ...]:
    """Return runs at the ranges' ends and middle for every point: all first ends together, and so on."""
    values = {name: one.probes() for name, one in ranges.items()}
    found = []
    for run, _ in points:
        for number in range(max(map(len, values.values()))):
            probe = with_fields(run, {name: some[min(number, len(some) - 1)] for name, some in values.items()})
            check_types(probe)
            found.append(probe)
    return tuple(found)


def _is_at(run: Run, at: dict[str, Any]) -> bool:
    """Return whether a point has the values of `at`, in the fields that its world has."""
    config = describe(run)
    own = {name: value_at(config, name) for name in at if has(config, name)}
    return agrees(own, {name: at[name] for name in own})


def _check_seeds(study: Study, tune: Tune, seeds: int) -> None:
    first, last = max(study.first_seed, tune.first_seed), min(study.first_seed + seeds, tune.first_seed + tune.seeds)
    if first < last:
        raise UserError(
            f"study '{study.name}' tunes on seed {first} and reports it too: choose another first_seed, of the study "
            "or of tune."
        )


def _check_varied(study: Study, tune: Tune) -> None:
    """Raise `UserError` for a tuned field that the study varies, or that makes its lines."""
    for grid in grids_of(study):
        own = base_of(grid.vary, study.base)
        varied = {field_path(own, key): key for key in grid.vary}
        for name in tune.fields():
            if has_field(own, name) and field_path(own, name) in varied:
                raise UserError(f"study '{study.name}' both varies and tunes {name}: leave it out of one of them.")
    for name in tune.fields():
        if name in tune.per:
            raise UserError(f"tune.per has {name}, which is tuned: name the fields that tell lines apart.")


def _check_own(tune: Tune, fields: list[dict[str, Any]]) -> None:
    """Raise `UserError` for a value in `own` that no line has, and for one in `at` that no point has."""
    known = list(dict.fromkeys(_text(value) for own in fields for value in own.values()))
    for value in tune.own:
        if value not in known:
            raise unknown("value of a line, in tune.own,", value, known)


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else str(value)
