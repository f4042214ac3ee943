"""Tables as Markdown, LaTeX (booktabs), HTML and CSV."""

import csv
import re
from collections.abc import Callable
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any

from syncnorm.files import write_file
from syncnorm.study.table import MINUS, Cell, Table

_MARKDOWN = str.maketrans({char: f"\\{char}" for char in "\\|*`<>[]"})
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    MINUS: "$-$",
    "—": "---",
    "†": r"$\dagger$",
    **{char: f"\\{char}" for char in "&%$#_{}"},
}


def write_tables(tables: list[Table], runs: list[dict[str, Any]], folder: Path) -> None:
    """Write every table as NAME.md, NAME.tex and, if it has records, NAME.csv; write rows, if any, as runs.csv."""
    for table in tables:
        write_file(folder / f"{table.name}.md", markdown(table))
        write_file(folder / f"{table.name}.tex", latex(table))
        if table.records:
            write_file(folder / f"{table.name}.csv", long_csv(table.records))
    if runs:
        write_file(folder / "runs.csv", long_csv(runs))


def markdown(table: Table) -> str:
    """Return a table as Markdown: one pipe table per block."""
    parts = [f"### {_in_markdown(table.title)}", _in_markdown(table.caption)]
    corner = f"{table.corner} ↓ {table.span} →" if table.span else table.corner
    rule = "|".join(["", " --- ", *(" ---: " if table.span else " --- " for _ in table.header), ""])
    for heading, lines in table.blocks:
        if heading:
            parts.append(f"**{_in_markdown(heading)}**")
        rows = [_markdown_row([corner, *table.header]), rule]
        rows += [_markdown_row([_flat(cell) for cell in line], [cell.bold for cell in line]) for line in lines]
        parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"


def latex(table: Table) -> str:
    r"""Return a table as a LaTeX `table` that needs \usepackage{booktabs}."""
    columns = len(table.header)
    body = [r"\toprule"]
    if table.span:
        body.append(rf" & \multicolumn{{{columns}}}{{c}}{{{_in_latex(table.span)}}} \\")
        body.append(rf"\cmidrule(lr){{2-{columns + 1}}}")
    body.append(_latex_row([table.corner, *table.header]))
    for heading, lines in table.blocks:
        body.append(r"\midrule")
        if heading:
            body.append(rf"\multicolumn{{{columns + 1}}}{{l}}{{\emph{{{_in_latex(heading)}}}}} \\")
        body += [_latex_row([_flat(cell) for cell in line], [cell.bold for cell in line]) for line in lines]
    align = "l" + ("r" if table.span else "l") * columns
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_in_latex(f'{table.title}. {table.caption}')}}}",
            rf"\label{{tab:{table.name}}}",
            rf"\begin{{tabular}}{{{align}}}",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def html(table: Table) -> str:
    """Return a table as HTML, without its title and caption: one `tbody` per block."""
    columns = len(table.header)
    kind = "numbers" if table.span else "words"
    head = [f'<th scope="col">{escape(table.corner)}</th>']
    head += [f'<th scope="col">{escape(name)}</th>' for name in table.header]
    rows = [f"<tr>{''.join(head)}</tr>"]
    if table.span:
        rows.insert(0, f'<tr class="span"><td></td><th colspan="{columns}">{escape(table.span)}</th></tr>')
    parts = [f'<table class="{kind}"><thead>{"".join(rows)}</thead>']
    for heading, lines in table.blocks:
        parts.append("<tbody>")
        if heading:
            parts.append(f'<tr class="block"><th colspan="{columns + 1}">{escape(heading)}</th></tr>')
        parts += [f"<tr>{_html_line(line)}</tr>" for line in lines]
        parts.append("</tbody>")
    return "\n".join([*parts, "</table>"])


def long_csv(records: list[dict[str, Any]]) -> str:
    """Return records as CSV in full precision; missing columns and None are empty."""
    columns = list(dict.fromkeys(name for record in records for name in record))
    text = StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _flat(cell: Cell) -> str:
    return f"{cell.text} ({cell.note})" if cell.note else cell.text


def _marked(texts: list[str], bold: list[bool] | None, quote: Callable[[str], str], mark: str) -> list[str]:
    """Return quoted texts, with `mark` (a format) around those that are bold."""
    return [
        mark.format(quote(text)) if stands_out else quote(text)
        for text, stands_out in zip(texts, bold or [False] * len(texts), strict=True)
    ]


def _markdown_row(texts: list[str], bold: list[bool] | None = None) -> str:
    return f"| {' | '.join(_marked(texts, bold, _in_markdown, '**{}**'))} |"


def _latex_row(texts: list[str], bold: list[bool] | None = None) -> str:
    return " & ".join(_marked(texts, bold, _in_latex, r"\textbf{{{}}}")) + r" \\"


def _html_line(line: list[Cell]) -> str:
    first, *others = line
    parts = [f'<th scope="row">{escape(first.text)}</th>']
    for cell in others:
        note = f" <small>{escape(cell.note)}</small>" if cell.note else ""
        text = f"<b>{escape(cell.text)}</b>" if cell.bold else escape(cell.text)
        parts.append(f"<td>{text}{note}</td>")
    return "".join(parts)


def _in_markdown(text: str) -> str:
    return " ".join(text.translate(_MARKDOWN).split())


def _in_latex(text: str) -> str:
    return " ".join(re.sub(f"[{re.escape(''.join(_LATEX))}]", lambda match: _LATEX[match[0]], text).split())
