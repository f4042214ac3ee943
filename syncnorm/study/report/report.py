"""The report of a results folder: tables, figures, and one self-contained page."""

from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path

from syncnorm.errors import unknown
from syncnorm.files import write_file
from syncnorm.study.plan.spec import flatten
from syncnorm.study.plot import Plot, View
from syncnorm.study.report.analysis.agreement import agreement_table
from syncnorm.study.report.analysis.labels import listing, value_label
from syncnorm.study.report.baselines import baseline_table
from syncnorm.study.report.claims import claims_table
from syncnorm.study.report.drawing.inline import inline_svg
from syncnorm.study.report.drawing.style import FORMATS, write_image
from syncnorm.study.report.page.findings import findings
from syncnorm.study.report.page.frame import Section, page
from syncnorm.study.report.page.run_list import runs_page
from syncnorm.study.report.page.site import index_page
from syncnorm.study.report.partitions import partitions, write_partition
from syncnorm.study.report.provenance import provenance
from syncnorm.study.report.ranks import ranks_table
from syncnorm.study.report.render import LeftOut, draw, render, stored_plots
from syncnorm.study.report.runs import divergences, failures, run_records
from syncnorm.study.report.table_formats import html, write_tables
from syncnorm.study.report.tuned import shared_tables, tuning_views
from syncnorm.study.rows import ROWS, TUNING, Results, Row, at_chance, diverged, read
from syncnorm.study.table import Table

SHOWN = "png"
"""The format of the figures that the page shows."""


def write_report(directory: str | Path, formats: Sequence[str] = (SHOWN,), results: Results | None = None) -> Path:
    """Write `tables/`, `figures/` and `report.html` into a results folder; return the page's path.

    A study that is still running is reported with its finished runs. A plot that cannot be made is left out, and the
    page says why.

    Args:
        directory: the results folder.
        formats: formats of the figures: "png", "pdf" or "svg". The page shows the PNG, which is always written, and
            links to the others.
        results: what `read(directory)` returned, if it is at hand.

    Raises:
        UserError: a folder without results or that cannot be written; another format.
    """
    folder = Path(directory)
    formats = _checked(formats)
    results = results or read(folder)
    sections: list[Section | None] = [findings(folder)]
    tables: list[Table] = []
    for found in stored_plots(results.reported):
        section, own = _plot(found, results, folder / "figures", formats)
        sections.append(section)
        tables += own
    for view in tuning_views(results):
        section, own = _view(view, folder / "figures", formats)
        sections.append(section)
        tables += own
    sections += _partitions(results.reported, folder / "figures", formats)
    for table, more in _about_runs(results):
        sections.append(Section(table.title, f"{_table(table)}{more}"))
        tables.append(table)
    sections += [_settings(results), _environment(results), _reproduce(results, folder)]
    write_tables(tables, run_records(results), folder / "tables")
    write_file(folder / "runs.html", runs_page(results))
    return write_file(
        folder / "report.html", page(results.about.study, _head(results), [part for part in sections if part])
    )


def write_site(directory: str | Path, studies: Sequence[Path], formats: Sequence[str] = (SHOWN,)) -> Path:
    """Write the report of each of several results folders, and one page that leads to them; return its path."""
    for study in studies:
        write_report(study, formats)
    return write_file(Path(directory) / "index.html", index_page(Path(directory), list(studies)))


def _checked(formats: Sequence[str]) -> tuple[str, ...]:
    """Return the formats, the page's own first."""
    for name in formats:
        if name not in FORMATS:
            raise unknown("format of figures", name, FORMATS)
    return tuple(dict.fromkeys((SHOWN, *formats)))


def _about_runs(results: Results) -> list[tuple[Table, str]]:
    """Return the tables of claims, baselines, agreements, ranks, failed and diverged runs, if any, each with the HTML
    after it."""
    found = [(table, "") for table in (claims_table(results.reported), baseline_table(results)) if table]
    found += [(agreement_table(results.reported), "")] if results.about.agreements else []
    found += [(table, "")] if (table := ranks_table(results)) else []
    if lost := [row for row in results.finished if diverged(row)]:
        found.append((divergences(lost), ""))
    if results.failed:
        found.append((failures(results.failed), _tracebacks(results.failed)))
    return found


def _head(results: Results) -> str:
    about = results.about
    finished, failed, missing = len(results.finished), len(results.failed), len(results.missing)
    lost = sum(map(diverged, results.finished))
    guesses = sum(bool(at_chance(row)) for row in results.reported.finished if not diverged(row))
    total = len(about.runs)
    state = f"{total - missing} of {total} runs so far." if missing else f"All {total} runs have ended."
    if results.orphans:
        state += f" {results.orphans} further runs in the folder are not part of the study as it is now."
    hours = sum(row["seconds"] for row in results.finished) / 3600
    numbers = [
        ("finished", str(finished), ""),
        ("failed", str(failed), "warn" if failed else ""),
        *([("diverged", str(lost), "warn")] if lost else []),
        *([("at chance", str(guesses), "warn")] if guesses else []),
        ("missing", str(missing), "warn" if missing else ""),
        *([("of them trials", str(len(results.of(TUNING).finished)), "")] if about.tuning else []),
        ("seeds", str(len({point["seed"] for point in results.reported.about.runs.values()})), ""),
        ("hours of computing", f"{hours:.2g}", ""),
    ]
    items = "".join(f'<li class="{kind}"><b>{value}</b>{words}</li>' for words, value, kind in numbers)
    share = 100 * finished / max(total, 1)
    return (
        f'<header>\n<p class="eyebrow">syncnorm study</p>\n<h1>{escape(about.study)}</h1>\n'
        f'<p class="question">{escape(about.question)}</p>\n<ul class="status">{items}</ul>\n'
        f'<div class="bar"><div style="width: {share:.1f}%"></div></div>\n<p>{state} '
        '<a href="runs.html">All runs in a table</a></p>\n</header>'
    )


def _plot(
    found: tuple[int, Plot] | LeftOut, results: Results, folder: Path, formats: Sequence[str]
) -> tuple[Section, list[Table]]:
    """Write a plot's figure, if it has one; return its part of the page, and its tables."""
    if isinstance(found, LeftOut):
        return _left_out(found), []
    number, plot = found
    rendered = render(number, plot, results.reported)
    if isinstance(rendered, LeftOut):
        return _left_out(rendered), []
    view, tables = rendered
    drawn = draw(number, plot, view, folder, formats)
    if isinstance(drawn, LeftOut):
        return _left_out(drawn), []
    figure = _figure(drawn.name, view, formats) if drawn.there else ""
    shared = shared_tables(number, plot, results)
    titled = "\n".join(_table(table, f"<h3>{escape(table.title)}</h3>") for table in [*tables, *shared])
    name = f"{'Figure' if figure else 'Table'} {number}"
    return Section(name, f"{figure}\n{titled}", view.title), [*tables, *shared]


def _view(view: View, folder: Path, formats: Sequence[str]) -> tuple[Section, list[Table]]:
    """Write the figure of a view that belongs to no plot; return its part of the page, and its tables."""
    figure = _figure(view.name, view, formats) if write_image(view.figure, folder, view.name, formats) else ""
    tables = view.tables()
    return Section(view.title, f"{figure}\n{''.join(map(_table, tables))}"), tables


def _left_out(plot: LeftOut) -> Section:
    return Section(f"Plot {plot.number}", f'<p class="warn">Left out: {escape(plot.why)}</p>')


def _figure(name: str, view: View, formats: Sequence[str]) -> str:
    """Return the HTML of a figure in the folder, with links to its files."""
    inline = inline_svg(view.figure, name, view.title)
    image = inline.svg or f'<img src="figures/{escape(name)}.{SHOWN}" alt="{escape(view.title)}">'
    caption = view.caption or inline.note
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><div class="drawing">{image}</div>{below}{_links("figures", name, formats)}</figure>'


def _partitions(results: Results, folder: Path, formats: Sequence[str]) -> list[Section | None]:
    """Return the partitions' part of the page: the first partition open, the others collapsed."""
    parts = []
    for number, (words, card) in enumerate(partitions(results), start=1):
        name = f"partition{number}"
        write_partition(card, folder, name, formats)
        figure = _figure(name, View(name=name, title=f"Who holds what: {words}"), formats)
        shown = f"<p>{escape(words)}</p>{figure}"
        parts.append(shown if number == 1 else f"<details><summary>{escape(words)}</summary>{figure}</details>")
    return [Section("Who holds what", "\n".join(parts))] if parts else []


def _table(table: Table, head: str = "") -> str:
    """Return the HTML of a table, which print keeps on one page with its head and its caption."""
    formats = ("md", "tex", "csv") if table.records else ("md", "tex")
    caption = f'<p class="caption">{escape(table.caption)}</p>' if table.caption else ""
    shown = f'<div class="wide" tabindex="0" role="region" aria-label="{escape(table.title)}">{html(table)}</div>'
    return f'<div class="whole">{head}{caption}{shown}{_links("tables", table.name, formats)}</div>'


def _links(folder: str, name: str, suffixes: Sequence[str]) -> str:
    links = [f'<a href="{escape(f"{folder}/{name}.{suffix}")}">{suffix.upper()}</a>' for suffix in suffixes]
    return f'<p class="files">{" · ".join(links)}</p>'


def _tracebacks(failed: list[Row]) -> str:
    """Return every distinct traceback once, with the runs that it ended."""
    runs: dict[str, list[str]] = {}
    for row in failed:
        if row.get("traceback"):
            runs.setdefault(row["traceback"], []).append(row["run_id"])
    return "".join(
        f"<details><summary>Traceback of {escape(listing(ids))}</summary><pre>{escape(text)}</pre></details>"
        for text, ids in runs.items()
    )


def _settings(results: Results) -> Section | None:
    """Return the settings that all finished runs share."""
    configs = [flatten(row["config"]) for row in results.finished]
    if not configs:
        return None
    same = {name: value for name, value in configs[0].items() if all(name in c and c[name] == value for c in configs)}
    return Section("The same in all runs", _definitions({name: value_label(value) for name, value in same.items()}))


def _environment(results: Results) -> Section | None:
    """Return the environment of the runs; if it differs between runs, with the number of runs of each."""
    rows = results.finished
    if not rows:
        return None
    names = dict.fromkeys(name for row in rows for name in row["environment"])
    counts = {name: Counter(row["environment"].get(name, "not recorded") for row in rows) for name in names}
    words = {
        name: next(iter(count)) if len(count) == 1 else "; ".join(f"{value} ({n} runs)" for value, n in count.items())
        for name, count in counts.items()
    }
    return Section("Environment", _definitions(words))


def _reproduce(results: Results, folder: Path) -> Section:
    command = results.about.command
    again = f"<p>The study:</p><pre>{escape(command)}</pre>" if command else ""
    finished = [row["finished"] for row in results.rows.values()]
    when = f" The latest row is of {escape(max(finished))}." if finished else ""
    return Section(
        "Reproduce",
        f"{again}<p>This page, its tables and its figures, from <code>{ROWS}</code>:</p>"
        f"<pre>syncnorm report {escape(folder.name)}</pre>"
        f"{''.join(f'<p>{escape(sentence)}</p>' for sentence in provenance(results))}"
        "<p>A run is named by the hash of its configuration: the same run has the same name anywhere.</p>"
        f"<details><summary>The study's {len(results.about.runs)} run ids</summary>"
        f"<pre>{escape(' '.join(results.about.runs))}</pre></details>"
        f"<footer>Written by syncnorm from {len(results.finished)} rows.{when}</footer>",
    )


def _definitions(words: dict[str, str]) -> str:
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in words.items())
    return f"<dl>{items}</dl>"
