"""The report of a results folder: tables, figures and one page that needs nothing but itself."""

import re
from collections import Counter
from html import escape
from importlib.resources import files
from pathlib import Path

from syncnorm.files import write_file
from syncnorm.study.exhibits import Exhibit
from syncnorm.study.plan.spec import flatten
from syncnorm.study.report.figures import write_image
from syncnorm.study.report.labels import listing, value_label
from syncnorm.study.report.partitions import partitions, write_partition
from syncnorm.study.report.points import fits
from syncnorm.study.report.render import show
from syncnorm.study.report.table_formats import html, write_tables
from syncnorm.study.report.tables import Table, agreement_table, failures, run_records
from syncnorm.study.rows import ROWS, Results, Row, read


def write_report(directory: str | Path) -> Path:
    """Write `tables/`, `figures/` and `report.html` into a results folder; return the page's path.

    A study that is still running is reported as far as it is. A folder that is none, or cannot be written,
    raises `UserError`.
    """
    folder = Path(directory)
    results = read(folder)
    parts = [_head(results)]
    tables: list[Table] = []
    for exhibit in results.about.figures:
        if not any(fits(exhibit, fields) for fields in results.about.runs.values()):
            continue  # the study was changed from the command line, and has no run that this shows
        section, own = _exhibit(exhibit, results, folder / "figures")
        parts.append(section)
        tables += own
    parts += _partitions(results, folder / "figures")
    if results.about.agreements:
        table = agreement_table(results)
        parts.append(f"<h2>{escape(table.title)}</h2>{_table(table)}")
        tables.append(table)
    if results.failed:
        table = failures(results.failed)
        parts.append(f"<h2>{escape(table.title)}</h2>{_table(table)}{_tracebacks(results.failed)}")
        tables.append(table)
    parts += [_settings(results), _environment(results), _reproduce(results, folder)]
    write_tables(tables, run_records(results), folder / "tables")
    return write_file(folder / "report.html", _page(results.about.study, "\n".join(parts)))


def inline(svg: str, prefix: str) -> str:
    """Return an SVG file's text for use inside a page: without prolog and metadata, its ids made unique."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", body)
    return re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", body, count=1))


def _page(title: str, body: str) -> str:
    style = files("syncnorm.study.report").joinpath("report.css").read_text()
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _head(results: Results) -> str:
    about = results.about
    finished, failed, missing = len(results.finished), len(results.failed), len(results.missing)
    total = len(about.runs)
    state = f"{total - missing} of {total} runs so far." if missing else f"All {total} runs have ended."
    if results.strangers:
        state += f" {results.strangers} further runs in the folder are not part of the study as it is now."
    hours = sum(row["seconds"] for row in results.finished) / 3600
    numbers = [
        ("finished", str(finished), ""),
        ("failed", str(failed), "warn" if failed else ""),
        ("missing", str(missing), "warn" if missing else ""),
        ("seeds", str(len({point["seed"] for point in about.runs.values()})), ""),
        ("hours of computing", f"{hours:.2g}", ""),
    ]
    items = "".join(f'<li class="{kind}"><b>{value}</b>{words}</li>' for words, value, kind in numbers)
    share = 100 * finished / max(total, 1)
    return (
        f'<header>\n<p class="eyebrow">syncnorm study</p>\n<h1>{escape(about.study)}</h1>\n'
        f'<p class="question">{escape(about.question)}</p>\n<ul class="status">{items}</ul>\n'
        f'<div class="bar"><div style="width: {share:.1f}%"></div></div>\n<p>{state}</p>\n</header>'
    )


def _exhibit(exhibit: Exhibit, results: Results, folder: Path) -> tuple[str, list[Table]]:
    """Write an exhibit's figure, if it has one; return its part of the page, and its tables."""
    shown = show(exhibit, results)
    svg = write_image(shown.drawing, folder, shown.name) if shown.drawing else ""
    figure = _figure(svg, shown.name, shown.title, shown.panels) if svg else ""
    titled = "\n".join(f"<h3>{escape(table.title)}</h3>{_table(table)}" for table in shown.tables)
    return f"<h2>{'Figure' if svg else 'Table'} {shown.number}</h2>\n{figure}\n{titled}", shown.tables


def _figure(svg: str, name: str, title: str, panels: int) -> str:
    narrow = ' class="narrow"' if panels < 2 else ""
    image = inline(svg, f"figure{name.partition('-')[0]}-")
    image = image.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)
    return f"<figure{narrow}>{image}{_links('figures', name, ('png', 'svg', 'pdf'))}</figure>"


def _partitions(results: Results, folder: Path) -> list[str]:
    """Return the part of the page that says who held what: the first way of dealing, and the others folded."""
    parts = []
    for number, (words, card) in enumerate(partitions(results), start=1):
        name = f"partition{number}"
        figure = _figure(write_partition(card, folder, name), f"{name}", f"Who holds what: {words}", 1)
        shown = f"<p>{escape(words)}</p>{figure}"
        parts.append(shown if number == 1 else f"<details><summary>{escape(words)}</summary>{figure}</details>")
    return ["<h2>Who holds what</h2>", *parts] if parts else []


def _table(table: Table) -> str:
    formats = ("md", "tex", "csv") if table.records else ("md", "tex")
    return f'<div class="wide">{html(table)}</div>{_links("tables", table.name, formats)}'


def _links(folder: str, name: str, suffixes: tuple[str, ...]) -> str:
    links = [f'<a href="{escape(f"{folder}/{name}.{suffix}")}">{suffix.upper()}</a>' for suffix in suffixes]
    return f'<p class="files">{" · ".join(links)}</p>'


def _tracebacks(failed: list[Row]) -> str:
    """Return every different traceback once, with the runs that it ended."""
    runs: dict[str, list[str]] = {}
    for row in failed:
        if row.get("traceback"):
            runs.setdefault(row["traceback"], []).append(row["run_id"])
    return "".join(
        f"<details><summary>Traceback of {escape(listing(ids))}</summary><pre>{escape(text)}</pre></details>"
        for text, ids in runs.items()
    )


def _settings(results: Results) -> str:
    """Return what all finished runs have in common."""
    configs = [flatten(row["config"]) for row in results.finished]
    if not configs:
        return ""
    same = {name: value for name, value in configs[0].items() if all(name in c and c[name] == value for c in configs)}
    return f"<h2>The same in all runs</h2>{_definitions({name: value_label(value) for name, value in same.items()})}"


def _environment(results: Results) -> str:
    """Return where the runs ran; where that differs between runs, how many ran where."""
    rows = results.finished
    if not rows:
        return ""
    counts = {
        name: Counter(row["environment"].get(name, "not recorded") for row in rows) for name in rows[0]["environment"]
    }
    words = {
        name: next(iter(count)) if len(count) == 1 else "; ".join(f"{value} ({n} runs)" for value, n in count.items())
        for name, count in counts.items()
    }
    return f"<h2>Environment</h2>{_definitions(words)}"


def _reproduce(results: Results, folder: Path) -> str:
    command = results.about.command
    again = f"<p>The study:</p><pre>{escape(command)}</pre>" if command else ""
    finished = [row["finished"] for row in results.rows.values()]
    when = f" The latest row is of {escape(max(finished))}." if finished else ""
    return (
        f"<h2>Reproduce</h2>{again}<p>This page, its tables and its figures, from <code>{ROWS}</code>:</p>"
        f"<pre>syncnorm report {escape(folder.name)}</pre>"
        "<p>A run is named by the hash of its configuration: the same run has the same name anywhere.</p>"
        f"<details><summary>The study's {len(results.about.runs)} run ids</summary>"
        f"<pre>{escape(' '.join(results.about.runs))}</pre></details>"
        f"<footer>Written by syncnorm from {len(results.finished)} rows.{when}</footer>"
    )


def _definitions(words: dict[str, str]) -> str:
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in words.items())
    return f"<dl>{items}</dl>"
