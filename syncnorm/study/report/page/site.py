"""One page that leads to several studies: `syncnorm report DIR` of a folder of results folders."""

import re
from html import escape
from pathlib import Path

from syncnorm.study.report.claims import judgements
from syncnorm.study.report.page.frame import page
from syncnorm.study.rows import ABOUT, Results, read


def studies_in(folder: Path) -> list[Path]:
    """Return the results folders in a folder that is none itself; empty if it is one."""
    if (folder / ABOUT).exists() or not folder.is_dir():
        return []
    return sorted(path.parent for path in folder.glob(f"*/{ABOUT}"))


def index_page(folder: Path, studies: list[Path]) -> str:
    """Return the page with each study's question, size and number of found differences.

    A subfolder that is no study and has an index.html of its own is linked by its title.
    """
    others = [path for path in sorted(folder.glob("*/index.html")) if not (path.parent / ABOUT).exists()]
    items = "\n".join([*map(_other, others), *(_entry(study, read(study)) for study in studies)])
    head = f'<header>\n<p class="eyebrow">syncnorm</p>\n<h1>{escape(folder.resolve().name)}</h1>\n</header>'
    return page(folder.resolve().name, f'{head}\n<main>\n<ul class="studies">\n{items}\n</ul>\n</main>', [])


def _other(path: Path) -> str:
    """Return the entry of a page that is no study's; its title is HTML already."""
    found = re.search(r"<title>([^<]*)</title>", path.read_text(encoding="utf-8"))
    name = escape(path.parent.name)
    title = found[1] if found else ""
    return f'<li><h2><a href="{name}/index.html">{name}</a></h2><p>{title}</p></li>'


def _entry(study: Path, results: Results) -> str:
    judged = [said for _, _, verdicts in judgements(results.reported) for _, said in verdicts]
    found = sum(said.found for said in judged)
    runs, planned = len(results.finished), len(results.about.runs)
    state = f"{runs} runs" if runs == planned else f"{runs} of {planned} runs"
    claims = f"{found} of {len(judged)} differences found" if judged else "no line competes"
    return (
        f'<li><h2><a href="{escape(study.name)}/report.html">{escape(results.about.study)}</a></h2>'
        f'<p>{escape(results.about.question)}</p><p class="files">{state}, {claims}</p></li>'
    )
