"""Tables: cells of text in blocks, and the same data in full precision."""

from dataclasses import dataclass, field
from typing import Any

NOTHING = "—"
"""Text of a cell without a value."""
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Cell:
    """A table's cell: its text, whether it is bold, and a note in smaller type ("n = 3")."""

    text: str
    bold: bool = False
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table in blocks. The first cell of a row is its name; the others are below `header`."""

    name: str
    """Name of its files, without a suffix."""
    title: str
    caption: str
    corner: str
    """Heading of the first column."""
    span: str
    """Heading above the other columns; may be empty."""
    header: list[str]
    blocks: list[tuple[str, list[list[Cell]]]]
    """Pairs of a heading (may be empty) and the rows below it."""
    records: list[dict[str, Any]] = field(default_factory=list)
    """The same data in full precision, one statistic per column."""
