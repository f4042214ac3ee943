"""What a table is: texts in blocks, and the same in full precision."""

from dataclasses import dataclass, field
from typing import Any

NOTHING = "—"
"""What stands in a cell without a value."""
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Cell:
    """A table's cell: its text, whether it stands out, and a note in smaller type ("n = 3")."""

    text: str
    bold: bool = False
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table in blocks. The first cell of a line names it; the others are below `header`."""

    name: str
    """Of its files, without a suffix."""
    title: str
    caption: str
    corner: str
    """What the first column holds."""
    span: str
    """What the header's other columns are values of; may be empty."""
    header: list[str]
    blocks: list[tuple[str, list[list[Cell]]]]
    """A heading (may be empty) and the lines below it."""
    records: list[dict[str, Any]] = field(default_factory=list)
    """The same in full precision, one statistic a column."""
