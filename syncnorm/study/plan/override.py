"""Changes to a study from the command line: values that a field takes, written as text."""

import json
from collections.abc import Sequence
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from syncnorm.config import Run
from syncnorm.errors import UserError
from syncnorm.study.plan.spec import Study, field_path, varies, with_axis


def with_vary(study: Study, axes: Sequence[str]) -> Study:
    """Return the study with axes like "norm=bn,gn" or "per-device-batch=2,32" in place of its own.

    Values are read by the type of their field; "none" is None, and "a+b" are the names a and b of a field that takes
    several. `UserError`: no such field, or a text that is none of
    its values; of fixed choices, `expand` refuses it.
    """
    seen = set()
    for axis in axes:
        name, equals, texts = axis.partition("=")
        name = name.replace("-", "_")
        if not equals or not texts:
            raise UserError(f"--vary {axis}: write a field and its values, such as norm=bn,gn.")
        if (path := field_path(study.base, name)) in seen:
            raise UserError(f"--vary {axis}: {name} is there twice; write all of its values at once: {name}=A,B.")
        seen.add(path)
        study = with_axis(study, name, [parse(study.base, name, text) for text in texts.split(",")])
    return study


def refuse_varied(study: Study, options: Sequence[str]) -> None:
    """Raise `UserError` for an option like "norm.name" that sets, for all runs, what the study varies."""
    for option in options:
        name = option.removesuffix(".name")
        whole = ["world"] if option.startswith("world.") else []  # a grid's own world replaces the base's
        for vary in (study.vary, *(grid.vary for grid in study.also)):
            if any(varies(vary, study.base, field) for field in (option, name, *whole)):
                raise UserError(f"--{option} would set what the study varies: write --vary {name}=VALUE instead.")


def parse(run: Run, name: str, text: str) -> Any:
    """Return the value that `text` means for the field `name`; for an option, a JSON value or else a text."""
    *owners, last = field_path(run, name)
    owner: Any = run
    for part in owners:
        owner = getattr(owner, part)
    if isinstance(owner, dict):
        return _option(text)
    hint = get_type_hints(type(owner))[last]
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if NoneType in kinds and text.lower() == "none":
        return None
    kind = kinds[0]
    if get_origin(kind) is tuple:
        return () if text.lower() == "none" else tuple(text.split("+"))
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if is_dataclass(kind) or kind is str or get_origin(kind) is Literal:
        return text
    if kind not in (int, float):
        raise UserError(f"--vary {name}: its values cannot be written on the command line, only in the file.")
    try:
        return kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise UserError(f"--vary {name}: '{text}' is not {what}.") from None


def _option(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
