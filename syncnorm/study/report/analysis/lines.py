"""A run's place in a chart: its panel, line and x, such that no two rows of a seed share a point."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

from syncnorm.study.plan.spec import flatten, has, path_in
from syncnorm.study.plot import Axis
from syncnorm.study.report.analysis.labels import choice_label, setting, takes_all, value_label
from syncnorm.study.rows import Row

Place = tuple[Any, str, Any]
"""(panel, line, x)"""


def axis_value(axis: Axis | None, fields: Mapping[str, Any], base: Mapping[str, Any]) -> Any:
    """Return a run's value on an axis: None without an axis, infinity for "all".

    Values that are not plain become text, as do several fields that share an axis (see `choice_label`).
    """
    if axis is None:
        return None
    if not isinstance(axis, str):
        return choice_label(axis, fields, base)
    return inf if fields[axis] is None and takes_all(axis) else _plain(fields[axis], axis)


def line_names(
    rows: Sequence[Row], places: Sequence[Place], cases: Sequence[str] | None = None, tuned: Sequence[str] = ()
) -> list[str]:
    """Return the name of every row's line: the value of the line's field, and further fields that distinguish rows.

    Two group norms that differ in an option are "gn (groups 1)" and "gn (groups 8)", and are never averaged. Rows may
    share a point if they are different `cases`, which are averaged. Fields that a study tunes (`tuned`) distinguish
    nothing: every line has its own values of them.
    """
    members: defaultdict[str, list[int]] = defaultdict(list)
    for index, (_, line, _) in enumerate(places):
        members[line].append(index)
    names = [""] * len(rows)
    for line, indices in members.items():
        flat = [_without(rows[index]["config"], tuned) for index in indices]
        spots = [
            (*places[index], rows[index]["config"]["seed"], *(cases or [])[index : index + 1]) for index in indices
        ]
        extra = _telling_fields(flat, spots)
        for index, config in zip(indices, flat, strict=True):
            words = ", ".join(setting(name, _plain(config.get(name))) for name in extra)
            names[index] = f"{line} ({words})" if line and words else line or words
    return names


def _without(config: dict[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    """Return a flat config without these fields, where it has them."""
    left_out = {".".join(path_in(config, name)) for name in fields if has(config, name)}
    return {name: value for name, value in flatten(config).items() if name not in left_out}


def _telling_fields(configs: list[dict[str, Any]], spots: list[tuple[Any, ...]]) -> list[str]:
    """Return a small set of fields whose values distinguish configs at the same spot."""
    first: dict[tuple[Any, ...], dict[str, Any]] = {}
    differing: set[str] = set()
    for config, spot in zip(configs, spots, strict=True):
        other = first.setdefault(spot, config)
        differing |= {name for name in config.keys() | other.keys() if config.get(name) != other.get(name)}

    def distinct(fields: list[str]) -> int:
        keys = zip(spots, ([_plain(config.get(name)) for name in fields] for config in configs), strict=True)
        return len({(*spot, *values) for spot, values in keys})

    chosen: list[str] = []
    for name in sorted(differing):
        if distinct([*chosen, name]) > distinct(chosen):
            chosen.append(name)
    return chosen


def _plain(value: Any, axis: str = "") -> Any:
    return value_label(value, axis) if isinstance(value, list | dict) else value
