"""What README and manual say was found stands in the tables of the studies."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
RESULT = re.compile(r"-?\d+\.\d+ (?:± \d+\.\d+|\[[^\]]+\])")
"""A mean with its interval, as in "54.5 ± 6.0" and "89.0 [74.3, 105.7]"."""


def plain(text: str) -> str:
    """Return Markdown with plain minus signs and brackets, and nothing bold."""
    return text.replace("\N{MINUS SIGN}", "-").replace("\\[", "[").replace("\\]", "]").replace("**", "")


def test_numbers_of_findings_stand_in_tables() -> None:
    _, *sections = re.split(r"^## ", plain((DOCS / "findings.md").read_text()), flags=re.M)
    sections += re.split(r"^## ", plain((DOCS / "choose.md").read_text()), flags=re.M)[1:]
    sections += re.findall(r"^## (What it found\n.*?)(?=^## )", plain(README.read_text()), flags=re.M | re.S)
    checked = 0
    for section in sections:
        if section.startswith("What to doubt"):  # of runs whose rows are not kept
            continue
        folders = dict.fromkeys(re.findall(r"results/(\w+)/", section))
        tables = "\n".join(plain(file.read_text()) for name in folders for file in tables_of(name))
        for number in RESULT.findall(section):
            assert number in tables, f"{section.splitlines()[0]}: {number}"
            checked += 1
    assert checked > 50


def tables_of(study: str) -> list[Path]:
    return sorted((ROOT / "results" / study / "tables").glob("*.md"))


def test_the_finding_of_the_readme_is_that_of_its_tables() -> None:
    tables = ROOT / "results/contradiction/tables"
    text = README.read_text()
    measured = plain((tables / "2-global_accuracy-local_steps-norm-skew_options_alpha.md").read_text())
    for norm in ("bn", "gn"):
        said = re.search(rf"^\| `{norm}` \|(.+)\|$", text, flags=re.M)
        assert said
        rows = re.findall(rf"^\| {norm} \|(.+)\|$", measured, flags=re.M)
        assert RESULT.findall(said[1]) == [RESULT.findall(row)[0] for row in rows], (
            "one local step is the first column"
        )
    claims = [
        line for line in plain((tables / "verdicts.md").read_text()).splitlines() if "gn better than bn" in line
    ]
    found = [RESULT.findall(line)[0] for line in claims if "| found |" in line]
    assert tuple(found) == re.findall(r"by (\S+ ± \S+) and (\S+ ± \S+) points", text)[0]
