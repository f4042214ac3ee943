"""What the people of a study say of it: the README.md of its results folder, as a section of its page."""

from pathlib import Path

from syncnorm.study.report.page.frame import Section

NAME = "README.md"


def findings(folder: Path) -> Section | None:
    """Return the section of the folder's README.md, without its title and its images; None without one.

    HTML in it is shown as text, and links that begin with `javascript:` are none.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    from markdown_it import MarkdownIt

    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if not line.startswith(("# ", "!["))]
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render("\n".join(kept))
    whole = body.replace(" ± ", "\u00a0±\u00a0")  # on a phone, a number and its interval stay on one line
    return Section("Findings", f'<div class="prose">{whole}</div>')
