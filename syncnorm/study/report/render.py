"""The stored plots of a results folder, rendered from its rows."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from syncnorm.errors import UserError
from syncnorm.study.plot import Plot, View
from syncnorm.study.report.drawing.style import write_image
from syncnorm.study.report.plots import PLOTS, from_plain
from syncnorm.study.rows import Results
from syncnorm.study.table import Table

Done = TypeVar("Done")


@dataclass(frozen=True)
class Drawn:
    """A written figure, or none."""

    name: str
    """Name of its files, without a suffix."""
    there: bool


@dataclass(frozen=True)
class LeftOut:
    """A plot that is not shown."""

    number: int
    why: str
    """A sentence."""


def stored_plots(results: Results) -> Iterator[tuple[int, Plot] | LeftOut]:
    """Yield the plots of a study with their numbers; a `LeftOut` says why a plot cannot be made.

    A plot that shows none of the runs is skipped: the study was changed on the command line.
    """
    for number, plain in enumerate(results.about.figures, start=1):
        kind = str(plain.get("kind", "curve"))
        if kind not in PLOTS:
            yield LeftOut(number, _unregistered(kind, results.about.command))
            continue
        try:
            plot = from_plain(plain)
        except UserError as error:
            yield LeftOut(number, str(error))
            continue
        if any(plot.fits(fields) for fields in results.about.runs.values()):
            yield number, plot


def _unregistered(kind: str, command: str) -> str:
    again = f"start the study's own command again, which trains only what is missing ({command})"
    way = again if command else "import the module that registers it and call write_report, or install it as a plugin"
    return f"nothing that is imported here registers plots of kind '{kind}': {way}."


def render(number: int, plot: Plot, results: Results) -> tuple[View, list[Table]] | LeftOut:
    """Collect the rows of a plot, and return its view and its tables, named by its number."""

    def collected() -> tuple[View, list[Table]]:
        view = plot.collect(results)
        return view, [replace(table, name=f"{number}-{table.name}") for table in view.tables()]

    if number not in results.views:
        results.views[number] = _guarded(number, plot, collected)
    made: tuple[View, list[Table]] | LeftOut = results.views[number]
    return made


def draw(number: int, plot: Plot, view: View, folder: Path, formats: Sequence[str]) -> Drawn | LeftOut:
    """Write the figure of a plot's view into `folder`, if it has one."""
    name = f"{number}-{view.name}"
    return _guarded(number, plot, lambda: Drawn(name, write_image(view.figure, folder, name, formats)))


def _guarded(number: int, plot: Plot, action: Callable[[], Done]) -> Done | LeftOut:
    """Return the result of `action`; a user's plot that raises is left out, and the others are still shown.

    The others are still shown.
    """
    try:
        return action()
    except UserError:
        raise
    except Exception as error:
        if PLOTS.source(plot.kind) is None:
            raise
        return LeftOut(number, f"the plot '{plot.kind}' raised {type(error).__name__}: {error}.")
