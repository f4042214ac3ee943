"""`syncnorm report DIR`: write tables, figures and page again from the rows in a folder."""

from dataclasses import dataclass
from pathlib import Path

from syncnorm.commands.options import given_options, read_options, show_help
from syncnorm.commands.show import show
from syncnorm.errors import UserError

PROG = "syncnorm report DIR"


@dataclass(frozen=True)
class ReportOptions:
    """Write tables, figures and page again from the rows of a results folder DIR: the --out folder of a run."""


def report(arguments: list[str]) -> int:
    """Run the command; return its exit code."""
    from syncnorm.study.report.report import write_report

    if set(arguments) & {"-h", "--help"}:
        show_help(ReportOptions(), PROG)
    if not arguments or arguments[0].startswith("-"):
        raise UserError("write the results folder first: syncnorm report DIR.")
    directory, *rest = arguments
    read_options(ReportOptions(), given_options(rest, PROG), PROG)
    write_report(Path(directory))
    return show(Path(directory))
