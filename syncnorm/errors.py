"""What a user's mistake gets: one sentence that says what was wrong and what to write instead."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """A mistake the user can mend. The command line prints its one sentence and no traceback."""


def unknown(what: str, got: str, known: Iterable[str], synopsis: Iterable[str] = ()) -> UserError:
    """Build the error for a name that is not in a table: the name, the nearest known one, all of them.

    A `synopsis` stands for the list of all where that is too long to read.

    >>> str(unknown("norm", "sync_nb", ["bn", "sync_bn"]))
    "unknown norm 'sync_nb': did you mean 'sync_bn'? Known: bn, sync_bn."
    """
    names = sorted(known)
    near = get_close_matches(got, names, n=1, cutoff=0.5)
    hint = f": did you mean '{near[0]}'?" if near else "."
    return UserError(f"unknown {what} '{got}'{hint} Known: {', '.join(synopsis or names)}.")
