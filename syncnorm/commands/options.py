"""Options of a command: read a dataclass from a command line.

tyro shows the help. We parse the values ourselves, so that a value of the wrong type gives the same message as
everywhere else.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar, get_args, get_type_hints

import tyro

from syncnorm.config import Run
from syncnorm.errors import UserError, unknown
from syncnorm.study.plan.override import read_value, with_option

Options = TypeVar("Options")


@dataclass(frozen=True)
class Given:
    """An option as written: its `name` as a dotted path ("optim.lr"), and the texts after it."""

    name: str
    texts: tuple[str, ...]

    @property
    def flag(self) -> str:
        """The option as a user writes it."""
        return f"--{self.name.replace('_', '-')}"


def given_options(arguments: Sequence[str], prog: str) -> list[Given]:
    """Return the options on a command line, in order; an option may occur several times.

    Raises:
        UserError: a text that belongs to no option.
    """
    found: list[Given] = []
    for text in arguments:
        if text.startswith("--") and len(text) > 2:
            name, equals, value = text[2:].partition("=")
            found.append(Given(name.replace("-", "_"), (value,) if equals else ()))
        elif not found:
            raise UserError(f"'{text}' belongs to no option: see {prog} --help.")
        else:
            found[-1] = replace(found[-1], texts=(*found[-1].texts, text))
    return found


def read_options(default: Options, given: Sequence[Given], prog: str) -> Options:
    """Return `default` with the given options set; the fields of a field that is a `Run` are options too.

    Raises:
        UserError: an unknown option, a repeated option, or a value of the wrong type.
    """
    hints = get_type_hints(type(default))
    known = list(option_names(default))
    base = next((item.name for item in fields(default) if isinstance(getattr(default, item.name), Run)), "")  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    once: set[str] = set()
    for one in given:
        switch = _without_no(one.name)
        name = switch if switch in known and one.name not in known else one.name
        if name not in known:
            raise _unknown(one, known)
        own = name in hints and name != base
        several = own and "tuple" in str(hints[name])
        if name in once and not several:
            raise UserError(f"{one.flag} is there twice: write it once.")
        once.add(name)
        texts = one.texts if name == one.name else ("false",)
        _check_leftover(one, hints.get(name) if own else None, default, name, base, prog)
        if not own:
            values[base] = with_option(values.get(base, getattr(default, base)), name, texts)
        elif several:
            if not texts:
                raise UserError(f"{one.flag} needs a value: see {prog} --help.")
            kind = get_args(hints[name])[0]
            values[name] = (*values.get(name, ()), *(read_value(kind, [text], one.flag) for text in texts))
        else:
            values[name] = read_value(hints[name], texts, one.flag)
    changed: Options = replace(default, **values)  # type: ignore[type-var]
    return changed


def show_help(default: Any, prog: str) -> None:
    """Print the options with their defaults, and exit with 0.

    The seed of a single run is left out: a study has --seeds and --first-seed.
    """
    shown = Run.__annotations__["seed"]
    Run.__annotations__["seed"] = tyro.conf.Suppress[int]
    try:
        tyro.cli(type(default), args=["--help"], prog=prog, default=default, config=(tyro.conf.AvoidSubcommands,))
    finally:
        Run.__annotations__["seed"] = shown


def option_names(node: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of the options of a dataclass and of those nested in it."""
    for item in fields(node):
        value = getattr(node, item.name, None)
        if is_dataclass(value):
            yield from option_names(value, "" if isinstance(value, Run) else f"{prefix}{item.name}.")
        elif not isinstance(value, dict):  # options of models and layers can be set in the file only
            yield prefix + item.name


def _without_no(name: str) -> str:
    """Return the switch that "no_switch" or "owner.no_switch" turns off."""
    owner, dot, last = name.rpartition(".")
    return f"{owner}{dot}{last.removeprefix('no_')}"


def _unknown(one: Given, known: Sequence[str]) -> UserError:
    flags = [f"--{name.replace('_', '-')}" for name in known]
    ends = [flag for flag in flags if flag.rpartition(".")[2] == one.name.replace("_", "-")]
    if len(ends) == 1 and "." in ends[0]:
        return UserError(f"unknown option '{one.flag}': write {ends[0]}.")
    return unknown("option", one.flag, flags)


def _check_leftover(one: Given, hint: Any, default: Any, name: str, base: str, prog: str) -> None:
    """Raise `UserError` for a text after a switch, which takes none."""
    value: Any = getattr(default, name, None) if hint is not None else getattr(default, base, None)
    if hint is None:
        for part in name.split("."):
            value = getattr(value, part, None)
    if isinstance(value, bool) and one.texts and one.texts[0].lower() not in ("true", "false"):
        raise UserError(f"'{one.texts[0]}' belongs to no option: see {prog} --help.")
