"""`syncnorm merge DIR DIR ... --out DIR`: results of one study from several machines in one folder."""

from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from syncnorm.commands.options import given_options, read_options, show_help
from syncnorm.commands.report import plots_of
from syncnorm.commands.show import show
from syncnorm.errors import UserError
from syncnorm.study.rows import read
from syncnorm.study.run.merge import TOLERANCE, merge

PROG = "syncnorm merge DIR DIR ..."


@dataclass(frozen=True)
class MergeOptions:
    """Merge results folders of one study, from several machines, into a new one, and report it.

    A run that several folders have must have the same metrics in all of them; the first folder's row is taken.
    """

    out: Path | None = None
    """The new results folder."""
    tolerance: float = TOLERANCE
    """How far metrics a and b of one run may be apart: |a - b| / max(1, |a|, |b|)."""
    study: Path | None = None
    """The study's file; needed if the report uses plots that it registers."""


def merged(arguments: list[str]) -> int:
    """Run the command; return its exit code."""
    from syncnorm.study.report.report import write_report  # imports plotting, which is slow to start

    if set(arguments) & {"-h", "--help"}:
        show_help(MergeOptions(), PROG)
    folders = list(takewhile(lambda text: not text.startswith("-"), arguments))
    if len(folders) < 2:
        raise UserError(f"write two results folders or more first: {PROG} --out DIR.")
    options = read_options(MergeOptions(), given_options(arguments[len(folders) :], PROG), PROG)
    if options.out is None:
        raise UserError(f"write where the merged results go: {PROG} --out DIR.")
    plots_of(options.study)
    made = merge(folders, options.out, options.tolerance)
    for note in made.notes:
        print(note)
    results = read(made.folder)
    write_report(made.folder, results=results)
    return show(made.folder, results)
