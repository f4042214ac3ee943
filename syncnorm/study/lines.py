"""Names for the lines of a figure, such that no two rows of one seed share a point."""

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from syncnorm.study.labels import setting, value_label
from syncnorm.study.spec import Curve, flatten, value_at
from syncnorm.study.store import Row


def place(curve: Curve, fields: dict[str, Any]) -> tuple[Any, str, Any]:
    """Return (panel, line, x) from the values of a figure's fields; what is no plain value becomes text."""
    panel = fields[curve.panel] if curve.panel else None
    return _plain(panel), value_label(_plain(fields[curve.line])), _plain(fields[curve.x])


def row_place(curve: Curve, row: Row) -> tuple[Any, str, Any]:
    """Return (panel, line, x) of a row."""
    return place(curve, {name: value_at(row["config"], name) for name in curve.fields})


def line_names(curve: Curve, rows: Sequence[Row]) -> list[str]:
    """Return the name of every row's line: the value of the line's field, and what else tells rows apart.

    Two group norms that differ in an option are "gn (groups 1)" and "gn (groups 8)", never their mean.
    """
    members: defaultdict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        members[row_place(curve, row)[1]].append(index)
    names = [""] * len(rows)
    for line, indices in members.items():
        flat = [flatten(rows[index]["config"]) for index in indices]
        spots = [(*row_place(curve, rows[index]), rows[index]["config"]["seed"]) for index in indices]
        extra = _telling_fields(flat, spots)
        for index, config in zip(indices, flat, strict=True):
            words = ", ".join(setting(name, _plain(config.get(name))) for name in extra)
            names[index] = f"{line} ({words})" if words else line
    return names


def _telling_fields(configs: list[dict[str, Any]], spots: list[tuple[Any, ...]]) -> list[str]:
    """Return few fields whose values tell apart the configs that share a spot."""
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


def _plain(value: Any) -> Any:
    return json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else value
