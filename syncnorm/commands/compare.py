"""`syncnorm compare DIR DIR`: two results folders of one study side by side."""

from dataclasses import dataclass
from pathlib import Path

from syncnorm.commands.options import given_options, read_options, show_help
from syncnorm.commands.report import plots_of
from syncnorm.errors import UserError
from syncnorm.study.rows import read

PROG = "syncnorm compare DIR DIR"


@dataclass(frozen=True)
class CompareOptions:
    """Compare two results folders of one study: from two machines, two versions, or with other seeds.

    Prints which means differ by more than their spread, and what becomes of the differences that are found in one of
    them. The exit code is 0 whatever it finds.
    """

    out: Path | None = None
    """A folder for the tables, as Markdown, LaTeX, and CSV in full precision."""
    study: Path | None = None
    """The study's file; needed if the report uses plots that it registers."""


def compare(arguments: list[str]) -> int:
    """Run the command; return its exit code."""
    if set(arguments) & {"-h", "--help"}:
        show_help(CompareOptions(), PROG)
    folders = arguments[:2]
    if len(folders) < 2 or any(text.startswith("-") for text in folders):
        raise UserError(f"write the two results folders first: {PROG}.")
    options = read_options(CompareOptions(), given_options(arguments[2:], PROG), PROG)
    plots_of(options.study)
    _show([Path(folder) for folder in folders], options.out)
    return 0


def _show(folders: list[Path], out: Path | None) -> None:
    # These import scipy, which is slow to start.
    from syncnorm.study.report.console import plain
    from syncnorm.study.report.side_by_side import Side, side_by_side
    from syncnorm.study.report.table_formats import write_tables

    tables = side_by_side(*(Side(str(folder), read(folder)) for folder in folders))
    for table in tables:
        print(f"\n{plain(table)}\n{table.caption}")
    if out:
        write_tables(tables, [], out)
        print(f"\n{out / 'findings.md'}")
