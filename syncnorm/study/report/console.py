"""What the terminal shows of a study: its main table as plain text, and how many batch norms its models have."""

from syncnorm.study.exhibits import Chart
from syncnorm.study.report.render import show
from syncnorm.study.report.tables import Table
from syncnorm.study.rows import Results


def main_table(results: Results) -> str:
    """Return the first table of the first exhibit that shows any run, as text; empty without one."""
    for exhibit in results.about.figures:
        if isinstance(exhibit, Chart) and not (shown := show(exhibit, results)).empty:
            return plain(shown.tables[0])
    return ""


def layers_found(results: Results) -> str:
    """Say how many batch norms the models of client runs have, by norm; empty where no run says so.

    Methods that speak of batch norm find it by type; a number that surprises is worth a look.
    """
    found = {
        f"{row['config']['model']} with {row['config']['norm']['name']} {row['metrics']['batch_norms']:.0f}": None
        for row in results.finished
        if "batch_norms" in row["metrics"]
    }
    return f"batch norms, found by type: {', '.join(found)}" if found else ""


def plain(table: Table) -> str:
    """Return a table with aligned columns; a star marks what is bold."""
    lines = [[f"{table.corner} \\ {table.span}" if table.span else table.corner, *table.header]]
    headings: dict[int, str] = {}
    for heading, block in table.blocks:
        if heading:
            headings[len(lines)] = heading
        for cells in block:
            texts = [f"{cell.text} ({cell.note})" if cell.note else cell.text for cell in cells]
            lines.append([f"{text}*" if cell.bold else text for text, cell in zip(texts, cells, strict=True)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    parts = [table.title]
    for number, line in enumerate(lines):
        if number in headings:
            parts.append(headings[number])
        padded = [text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True)]
        parts.append("  ".join([line[0].ljust(widths[0]), *padded]).rstrip())
    return "\n".join(parts)
