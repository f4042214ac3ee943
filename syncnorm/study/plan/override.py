"""Changes to a study from the command line: values of fields, written as text."""

import json
from collections.abc import Sequence
from dataclasses import is_dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from syncnorm.checks import check_value
from syncnorm.config import Run, describe
from syncnorm.errors import UserError
from syncnorm.study.plan.lines import line_values
from syncnorm.study.plan.spec import (
    Study,
    base_of,
    field_path,
    grids_of,
    has,
    has_field,
    points_of,
    value_at,
    varies,
    with_axis,
    with_field,
)
from syncnorm.study.plot import agrees


def with_vary(study: Study, axes: Sequence[str]) -> Study:
    """Return the study with axes like "norm=bn,gn" or "per-device-batch=2,32" instead of its own.

    Values are parsed by the type of their field; "none" is None, and "a+b" are the names a and b for a field that
    takes several.

    Raises:
        UserError: an unknown field, or a text that is not a value of it; `expand` checks fixed choices.
    """
    seen = set()
    before = study
    for axis in axes:
        name, equals, texts = axis.partition("=")
        name = name.replace("-", "_")
        if not equals or not texts:
            raise UserError(f"--vary {axis}: write a field and its values, such as norm=bn,gn.")
        own = _run_with(study, name)
        if (path := field_path(own, name)) in seen:
            raise UserError(f"--vary {axis}: {name} is there twice; write all of its values at once: {name}=A,B.")
        seen.add(path)
        study = with_axis(study, name, [parse(own, name, text) for text in texts.split(",")])
    return without_varied(study, before)


def quicker(study: Study) -> Study:
    """Return the study that `--quick` runs, with the fields in `study.quick` replaced.

    It tunes the lines and points that it still has.
    """
    quick = replace(study, **{"name": f"{study.name}-quick", **study.quick, "quick": {}})
    return without_varied(quick, replace(study, tune=quick.tune))


def without_varied(study: Study, before: Study) -> Study:
    """Return a study with changed axes that tunes what it does not vary, on the lines and points that it still has.

    `before` is the study without these changes: what it tunes in vain stays, and is refused later.
    """
    tune = study.tune
    if tune is None:
        return study
    varied = {path for grid in grids_of(study) for path in _paths(base_of(grid.vary, study.base), list(grid.vary))}
    own = [base_of(grid.vary, study.base) for grid in grids_of(study)]
    tune = tune.without([name for name in tune.fields() if any(set(_paths(run, [name])) & varied for run in own)])
    if tune is not None:
        lost = set(line_values(before, tune)) - set(line_values(study, tune))
        tune = replace(
            tune,
            own={value: ranges for value, ranges in tune.own.items() if value not in lost},
            at={name: kept for name, wanted in tune.at.items() if (kept := _still(study, name, wanted))},
        )
    return replace(study, tune=tune)


def _paths(run: Run, names: Sequence[str]) -> list[tuple[str, ...]]:
    return [field_path(run, name) for name in names if has_field(run, name)]


def _still(study: Study, name: str, wanted: Any) -> list[Any]:
    """Return those of the wanted values of a field that points of the study have."""
    values = wanted if isinstance(wanted, list) else [wanted]
    configs = [describe(run) for run, _ in points_of(study)]
    there = [value_at(config, name) for config in configs if has(config, name)]
    return [value for value in values if any(agrees({name: one}, {name: value}) for one in there)]


def refuse_varied(study: Study, options: Sequence[str]) -> None:
    """Raise `UserError` for an option like "norm.name" that would set a varied field for all runs."""
    for option in options:
        name = option.removesuffix(".name")
        whole = ["world"] if option.startswith("world.") else []  # a grid's world replaces the base's
        for grid in grids_of(study):
            if any(varies(grid.vary, study.base, field) for field in (option, name, *whole)):
                raise UserError(f"--{option} would set what the study varies: write --vary {name}=VALUE instead.")


def with_option(run: Run, name: str, texts: Sequence[str]) -> Run:
    """Return `run` with the field at the dotted path `name` set to the value of `--name TEXT ...`."""
    option = f"--{name.replace('_', '-')}"
    *owners, last = name.split(".")
    owner: Any = run
    for part in owners:
        owner = getattr(owner, part)
    if isinstance(getattr(owner, last, None), dict):
        raise UserError(f"{option}: a dict of options is written in the file, or varied: --vary {name}.OPTION=VALUE.")
    return with_field(run, name, read_value(get_type_hints(type(owner))[last], texts, option))


def parse(run: Run, name: str, text: str) -> Any:
    """Parse `text` as a value of the field `name`; for an option, as JSON or else as text."""
    *owners, last = field_path(run, name)
    owner: Any = run
    for part in owners:
        owner = getattr(owner, part)
    if isinstance(owner, dict):
        return _option(text)
    hint = get_type_hints(type(owner))[last]
    if any(is_dataclass(kind) for kind in _choices(hint)):
        return text  # the name of a norm or a data set
    several = any(get_origin(kind) is tuple for kind in _choices(hint))
    return read_value(hint, text.split("+") if several else [text], f"--vary {name}")


def read_value(hint: Any, texts: Sequence[str], name: str) -> Any:
    """Parse `texts` as a value of the type `hint`; messages call it `name`.

    "none" is None if the type allows it, or an empty tuple. A switch needs no text.

    Raises:
        UserError: a text that is not such a value, too many texts, or none.
    """
    kind = next((choice for choice in _choices(hint) if choice is not NoneType), str)
    empty = len(texts) == 1 and texts[0].lower() == "none"
    if get_origin(kind) is tuple:
        return () if empty else tuple(read_value(get_args(kind)[0], [text], name) for text in texts)
    if empty and NoneType in _choices(hint):
        return None
    if kind is bool and not texts:
        return True
    if len(texts) != 1:
        raise UserError(f"{name} needs {'a value' if not texts else 'one value, not ' + ' '.join(texts)}.")
    return _scalar(hint, kind, texts[0], name)


def _scalar(hint: Any, kind: Any, text: str, name: str) -> Any:
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise UserError(f"{name}: '{text}' is not {what}.") from None
    if kind is Path:
        return Path(text)
    if any(choice is str or get_origin(choice) is Literal for choice in _choices(hint)):
        if not any(choice is str for choice in _choices(hint)) and not name.startswith("--vary"):
            allowed = tuple(value for choice in _choices(hint) for value in get_args(choice))
            check_value(text, Literal[allowed], name)
        return text
    raise UserError(f"{name}: its values cannot be written on the command line, only in the file.")


def _choices(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _run_with(study: Study, name: str) -> Run:
    """Return the first run whose world has the field `name`: the main grid's, or that of an additional grid."""
    owners = [base_of(grid.vary, study.base) for grid in grids_of(study)]
    return next((run for run in owners if has_field(run, name)), owners[0])


def _option(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
