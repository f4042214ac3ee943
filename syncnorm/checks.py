"""Type checks of a study and its runs against the annotations of their fields.

An experiment file is Python, and a run over Flower comes as JSON, so nothing else would catch `lr="0.1"` before
training.
"""

import json
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from syncnorm.config import Data, Run
from syncnorm.errors import UserError, unknown, with_article

KINDS: dict[Any, tuple[Any, str]] = {
    Any: (object, "anything"),
    Literal: (object, "one of its names"),
    bool: (bool, "True or False"),
    int: (int, "a whole number"),
    float: (int | float, "a number"),
    str: (str, "a text"),
    dict: (dict, "a dict"),
    tuple: (Sequence, "a tuple"),
}
ELSEWHERE = {
    "precision": {
        **dict.fromkeys(("float16", "fp16", "half", "16", "amp"), "16-mixed"),
        **dict.fromkeys(("bfloat16", "bf16"), "bf16-mixed"),
        **dict.fromkeys(("fp32", "32", "32-true", "single"), "float32"),
        **dict.fromkeys(("fp64", "64", "64-true", "double"), "float64"),
    }
}
"""By field, names that PyTorch and Lightning use, and the name here."""


def check_types(node: Any, owner: str = "") -> None:
    """Raise `UserError` for a field of a dataclass, or of a nested one, with a value of the wrong type.

    The message names the field after `owner`: "optim.lr is 'high': it must be a number."
    """
    for name, hint in _hints(type(node)).items():  # type: ignore[arg-type]
        check_value(getattr(node, name), hint, f"{owner}{name}")


def check_run(run: Any) -> None:
    """Raise `UserError` if `run` is not a run, or one of its fields has a value of the wrong type."""
    if not isinstance(run, Run):
        raise UserError(
            f"this is {with_article(type(run).__name__)}, not a run: write Run(...) from syncnorm.config."
        )
    check_types(run)
    _check_validation(run)


def check_fraction(data: Data) -> None:
    """Raise `UserError` for a validation fraction out of range."""
    if not 0 <= data.validation < 1:
        raise UserError(f"data.validation is {data.validation}: it must be from 0 to below 1.")


def _check_validation(run: Run) -> None:
    """Raise `UserError` for a validation fraction out of range, and for a choice by validation without one."""
    check_fraction(run.data)
    if run.select == "best" and run.data.validation == 0:
        raise UserError(
            "select is best but data.validation is 0, so there is nothing to choose by: set data.validation, e.g. to "
            "0.2, or leave select at last."
        )


def check_value(value: Any, hint: Any, name: str) -> None:
    """Raise `UserError` for a value that is not of the type `hint`; the message calls it `name`."""
    choices = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if value is None and NoneType in choices:
        return
    kinds = [choice for choice in choices if choice is not NoneType]
    fitting = [kind for kind in kinds if _is_one(value, kind)]
    if not fitting:
        wanted = " or ".join(_kind(kind)[1] for kind in kinds)
        raise UserError(f"{name} is {_shown(value)}: it must be {wanted}{_instead(value, kinds, name)}.")
    hint = fitting[0]
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise unknown(name, str(value), get_args(hint), elsewhere=ELSEWHERE.get(name, {}))
    elif is_dataclass(value):
        check_types(value, f"{name}.")
    elif get_origin(hint) is tuple:
        for item in value:
            check_value(item, get_args(hint)[0], f"one of {name}")
    elif hint == dict[str, Any]:
        _check_plain(value, name)


def _is_one(value: Any, hint: Any) -> bool:
    """Return whether a value is of a kind; True is not a number, and a text is not a tuple."""
    kind, _ = _kind(hint)
    exact = bool if isinstance(value, bool) else str if isinstance(value, str) else kind
    return isinstance(value, kind) and kind in (exact, object)


def _shown(value: Any) -> str:
    """Return a value as messages show it; only its kind if its text would be long."""
    text = repr(value)
    return text if len(text) <= 60 and "\n" not in text else with_article(type(value).__name__)


def _instead(value: Any, kinds: Sequence[Any], name: str) -> str:
    """Return what to write instead, if the value shows what was meant."""
    kind: Any = kinds[0]
    if isinstance(value, str) and len(kinds) == 1 and is_dataclass(kind) and "name" in _hints(kind):  # type: ignore[arg-type]
        return f", so write {kind.__name__}({value!r})"  # type: ignore[union-attr]
    if name == "model" and not isinstance(value, int | float):
        return ", so write 'package.module:factory', or register a function that builds it (syncnorm.register_model)"
    return ""


def _kind(hint: Any) -> tuple[Any, str]:
    """Return the classes of a hint, and the words for them in messages."""
    origin = get_origin(hint) or hint
    return KINDS.get(origin, (origin, with_article(getattr(origin, "__name__", str(origin)))))


def _check_plain(value: Any, name: str) -> None:
    """Check that options are plain data: they are part of a run's id, and are stored with it."""
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} is {value!r}: it must hold plain numbers, texts, lists and dicts.") from error


@cache
def _hints(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {item.name: hints[item.name] for item in fields(kind)}
