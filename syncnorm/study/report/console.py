"""The summary of a study on a terminal: its main table as plain text, with notes."""

import sys

from syncnorm.study.plot import Plot
from syncnorm.study.report.analysis.tuning import chosen_table
from syncnorm.study.report.baselines import UNREACHED, baseline_table
from syncnorm.study.report.ranks import slow_ranks
from syncnorm.study.report.render import LeftOut, render, stored_plots
from syncnorm.study.rows import Results, at_chance, diverged
from syncnorm.study.table import MINUS, Table

ASCII = {"±": "+-", MINUS: "-", "—": "-", "†": "^", "…": "...", "“": '"', "”": '"'}
"""Replacements for characters that a terminal cannot show."""


def main_table(results: Results, encoding: str | None = None) -> str:
    """Return the first table with any run as text, with notes on what is left out; empty without either.

    `encoding` is the terminal's, by default that of stdout; characters that it lacks are replaced.
    """
    encoding = encoding or sys.stdout.encoding or "ascii"
    table, notes = "", []
    for found in stored_plots(results.reported):
        if isinstance(found, LeftOut):
            notes.append(f"plot {found.number} is left out: {found.why}")
        elif not table:
            table = _table(*found, results.reported, encoding)
    if (scores := baseline_table(results)) and scores.caption.startswith(UNREACHED):
        notes.append(f"{scores.caption.partition('. ')[0]}.")
    if lost := sum(diverged(row) for row in results.finished):
        notes.append(f"{lost} of {len(results.finished)} finished runs diverged: they are in no mean.")
    reported = results.reported.finished
    if guesses := sum(bool(at_chance(row)) for row in reported if not diverged(row)):
        notes.append(f"{guesses} of {len(reported)} reported runs are at chance, no better than a guess.")
    notes += [f"{said[0].lower()}{said[1:]}" for said in slow_ranks(results)]
    return "\n\n".join(part for part in (table, "\n".join(showable(note, encoding) for note in notes)) if part)


def choices(results: Results) -> str:
    """Return what every line of the study chose, as text; empty if it tunes nothing."""
    return plain(chosen_table(results), sys.stdout.encoding or "ascii") if results.about.tuning else ""


def layers_found(results: Results) -> str:
    """Say how many batch norms the models of client runs have, by norm; empty if no run has such a count.

    Federated methods find batch norms by type, so an unexpected number is worth checking.
    """
    found = {
        f"{row['config']['model']} with {row['config']['norm']['name']} {row['metrics']['batch_norms']:.0f}": None
        for row in results.finished
        if row["metrics"].get("batch_norms") is not None
    }
    said = f"batch norms, found by type: {', '.join(found)}" if found else ""
    return showable(said, sys.stdout.encoding or "ascii")


def plain(table: Table, encoding: str = "utf-8") -> str:
    """Return a table with aligned columns; a star marks bold cells."""

    def show(text: str) -> str:
        return showable(text, encoding)

    lines = [[show(f"{table.corner} \\ {table.span}" if table.span else table.corner), *map(show, table.header)]]
    headings: dict[int, str] = {}
    for heading, block in table.blocks:
        if heading:
            headings[len(lines)] = show(heading)
        for cells in block:
            texts = [show(f"{cell.text} ({cell.note})" if cell.note else cell.text) for cell in cells]
            lines.append([f"{text}*" if cell.bold else text for text, cell in zip(texts, cells, strict=True)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    parts = [show(table.title)]
    for number, line in enumerate(lines):
        if number in headings:
            parts.append(headings[number])
        padded = [text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True)]
        parts.append("  ".join([line[0].ljust(widths[0]), *padded]).rstrip())
    return "\n".join(parts)


def showable(text: str, encoding: str) -> str:
    """Return a text in characters of an encoding only: "+-" for "±", and "?" where there is no replacement."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = "".join(ASCII.get(sign, sign) for sign in text)
        return text.encode(encoding, errors="replace").decode(encoding)
    return text


def _table(number: int, plot: Plot, results: Results, encoding: str) -> str:
    """Return the first table of a plot as text; empty if it contains no run."""
    found = render(number, plot, results)
    if isinstance(found, LeftOut):
        return ""  # the page says why
    view, tables = found
    return plain(tables[0], encoding) if tables and not view.empty else ""
