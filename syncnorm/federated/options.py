"""Options of algorithms and aggregations: defaults, ranges, and the check of given values."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from numbers import Real
from typing import Any

from syncnorm.errors import UserError, unknown


@dataclass(frozen=True)
class Range:
    """Allowed numbers of an option, and the words for them in messages."""

    rule: str
    holds: Callable[[float], bool]


AT_LEAST_0 = Range("at least 0", lambda number: 0 <= number < inf)
ABOVE_0 = Range("above 0", lambda number: 0 < number < inf)
BELOW_1 = Range("from 0 to below 1", lambda number: 0 <= number < 1)
FROM_0_TO_1 = Range("from 0 to 1", lambda number: 0 <= number <= 1)


@dataclass(frozen=True)
class Option:
    """An option: its default, whose type makes it a number or a switch, and its range."""

    default: float | bool
    range: Range = AT_LEAST_0


def checked_options(owner: str, known: Mapping[str, Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `owner`, e.g. "the algorithm fedprox": the defaults, overridden by the `given` ones.

    Raises:
        UserError: an option that the owner does not have, or a value of the wrong type or out of range.
    """
    for option, value in given.items():
        if not known:
            raise UserError(f"{owner} takes no options: leave out '{option}'.")
        if option not in known:
            raise unknown(f"option of {owner}", option, known)
        switch = isinstance(known[option].default, bool)
        if switch != isinstance(value, bool) or not isinstance(value, Real):
            raise UserError(
                f"option {option} of {owner} is {value!r}: it must be {'true or false' if switch else 'a number'}."
            )
        if not switch and not known[option].range.holds(float(value)):
            raise UserError(f"option {option} of {owner} is {value!r}: it must be {known[option].range.rule}.")
    numbers: dict[str, Any] = {name: x if isinstance(x, int | float) else float(x) for name, x in given.items()}
    return {option: known[option].default for option in known} | numbers
