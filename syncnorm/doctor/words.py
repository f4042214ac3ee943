"""Numbers and names in findings."""

from __future__ import annotations

from collections.abc import Sequence


def percent(share: float) -> str:
    """Return a share in percent, with two digits that count.

    >>> percent(0.1234), percent(0.00567), percent(1.5)
    ('12 %', '0.57 %', '150 %')
    """
    value = 100 * share
    return f"{value:.0f} %" if value >= 10 else f"{value:.2g} %"


def number(value: float) -> str:
    """Return a number of values: whole if it is.

    >>> number(8.0), number(2.5)
    ('8', '2.5')
    """
    return f"{value:.0f}" if value == int(value) else f"{value:.1f}"


def some(names: Sequence[str], most: int = 3) -> str:
    """Return the first of some names, quoted, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(f"'{name}'" for name in names[:most]) + more
