"""Errors for users' mistakes: one sentence that says what was wrong and what to write instead."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType


class UserError(ValueError):
    """A mistake that the user can fix. The command line prints its sentence without a traceback."""


def unknown(
    what: str,
    got: str,
    known: Iterable[str],
    synopsis: Iterable[str] = (),
    elsewhere: Mapping[str, str] = MappingProxyType({}),
) -> UserError:
    """Build the error for a name that is not in a table: it gives the name, the nearest known one, and all of them.

    A `synopsis` replaces the list of all names when that is too long to read. `elsewhere` gives, for names that other
    libraries use, the known one that is meant, whatever its spelling.

    >>> str(unknown("norm", "sync_nb", ["bn", "sync_bn"]))
    "unknown norm 'sync_nb': did you mean 'sync_bn'? Known: bn, sync_bn."
    """
    names = sorted(known)
    near = [elsewhere[got]] if got in elsewhere else get_close_matches(got, names, n=1, cutoff=0.5)
    hint = f": did you mean '{near[0]}'?" if near else "."
    return UserError(f"unknown {what} '{got}'{hint} Known: {', '.join(synopsis or names)}.")


def with_article(noun: str) -> str:
    """Return a noun with its article.

    >>> with_article("int"), with_article("list")
    ('an int', 'a list')
    """
    return f"{'an' if noun[:1] in tuple('aeiouAEIOU') else 'a'} {noun}"


def where_raised(error: BaseException, without: Iterable[str] = ("syncnorm", "torch", "importlib")) -> str:
    """Return "file.py:line" of the innermost frame of `error` outside the packages `without`.

    If all frames are inside them, that of the innermost one.
    """
    found = innermost = ""
    skipped = tuple(without)
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        innermost = f"{Path(frame.f_code.co_filename).name}:{trace.tb_lineno}"
        if frame.f_globals.get("__name__", "").partition(".")[0] not in skipped:
            found = innermost
        trace = trace.tb_next
    return found or innermost
