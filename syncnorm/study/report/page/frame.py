"""The frame of a page: head, contents, sections. Pages are self-contained, and work without JavaScript."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files


@dataclass(frozen=True)
class Section:
    """A section of a page, with a heading to which the contents link."""

    heading: str
    """Its short name: "Figure 1". Its anchor follows from it."""
    body: str
    """HTML."""
    title: str = ""
    """What is in it, beside its name."""

    @property
    def anchor(self) -> str:
        """Its id: "figure-1"."""
        return "-".join("".join(sign if sign.isalnum() else " " for sign in self.heading.lower()).split())

    def html(self) -> str:
        """Return the section as HTML."""
        title = f' <span class="title">{escape(self.title)}</span>' if self.title else ""
        return f'<section id="{self.anchor}">\n<h2>{escape(self.heading)}{title}</h2>\n{self.body}\n</section>'


def page(title: str, head: str, sections: Sequence[Section]) -> str:
    """Return a page: its head as HTML, the contents, and its sections."""
    style, script = (
        files("syncnorm.study.report.page").joinpath(f"page.{kind}").read_text() for kind in ("css", "js")
    )
    body = "\n".join([head, _contents(sections), "<main>", *(section.html() for section in sections), "</main>"])
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n{body}\n<script>\n{script}</script>\n</body>\n</html>\n"
    )


def _contents(sections: Sequence[Section]) -> str:
    if len(sections) < 3:
        return ""
    items = "\n".join(
        f'<li><a href="#{section.anchor}"><b>{escape(section.heading)}</b> {escape(section.title)}</a></li>'
        for section in sections
    )
    return f'<nav aria-label="Contents">\n<ol>\n{items}\n</ol>\n</nav>'
