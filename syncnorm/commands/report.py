"""`syncnorm report DIR`: rewrite tables, figures and page from the rows in a folder."""

from dataclasses import dataclass
from pathlib import Path

from syncnorm.commands.options import given_options, read_options, show_help
from syncnorm.commands.show import show
from syncnorm.errors import UserError
from syncnorm.study.plan.load import load_study
from syncnorm.study.rows import read

PROG = "syncnorm report DIR"


@dataclass(frozen=True)
class ReportOptions:
    """Rewrite tables, figures and pages from the rows in a results folder DIR, the --out folder of a run.

    If DIR holds several results folders, each is reported, and DIR/index.html leads to them.
    """

    study: Path | None = None
    """The study's file; needed if the report uses plots that it registers."""
    formats: tuple[str, ...] = ("png",)
    """Formats of the figures: png, pdf, svg. The page shows the PNG, which is always written."""


def report(arguments: list[str]) -> int:
    """Run the command; return its exit code."""
    from syncnorm.study.report.page.site import studies_in
    from syncnorm.study.report.report import write_report, write_site

    if set(arguments) & {"-h", "--help"}:
        show_help(ReportOptions(), PROG)
    if not arguments or arguments[0].startswith("-"):
        raise UserError("write the results folder first: syncnorm report DIR.")
    directory, *rest = arguments
    options = read_options(ReportOptions(), given_options(rest, PROG), PROG)
    plots_of(options.study)
    formats = [name for text in options.formats for name in text.split(",")]
    if studies := studies_in(Path(directory)):
        print(write_site(directory, studies, formats), flush=True)
        return 0
    results = read(directory)
    write_report(directory, formats, results)
    return show(Path(directory), results)


def plots_of(study: Path | None) -> None:
    """Load a study's file, if one is given, so that the plots that it registers are known."""
    if study:
        load_study(str(study))
