"""The page of all claims, and the README beside it: both from rows alone."""

from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from textwrap import fill

from experiments.claims.catalogue import GROUPS
from experiments.claims.claim import MISSING, UNTESTABLE, VERDICTS, Judged, Measured, Region
from experiments.claims.evidence import Evidence
from experiments.claims.figures import courses, strip
from experiments.claims.steps import CHANGED
from syncnorm.files import write_file
from syncnorm.study.report.page.frame import Section, page
from syncnorm.study.rows import Row

TITLE = "What is claimed of batch norm, and what holds here"
KINDS = {"seeds": "95 % t interval over {n} seeds", "repetitions": "95 % t interval over {n} repetitions"}
EXACT = "smallest and largest of {n}: nothing else varies"
STRIPS = (
    "The strip of each claim below: green is where it holds, dots are single values, the diamond with its line is "
    "their mean and its interval, and the broken line is the number claimed."
)
RULE = (
    "A claim holds if the interval of what was measured lies in the region that its rule names, and does not hold "
    "here if it lies outside. Where values are those of seeds or repetitions, five of them are needed, and the "
    "p-value must stay below 5 % after Holm's correction for all {count} claims that have one. Otherwise the "
    "claim is not resolved, which does not mean that it is wrong. Verdicts are computed from the rows, never "
    "written by hand."
)
DOUBT = (
    "Everything here is small: digits of 8 to 16 pixels a side (one row: CIFAR-10 at 16x16), networks of up to 20 "
    'layers, one CPU. "Does not hold here" says no more than that. The perceptron of the study claim_networks '
    "is far from trained without batch norm when its 456 steps end, so that what is compared with it there is "
    "mostly speed; and none of its lines reaches a support vector machine on pixels, so that by the stricter rule "
    'for studies none of its differences is called found. The rules of "Whose samples share statistics" were '
    "written when those studies had been trained and their results were known; the other rules before their rows "
    "were measured, but after trials with other seeds and rates had shown that the measurements work. After such "
    "trials the threshold of the largest stable rate was loosened, and the smoothness of the loss was followed for "
    "600 steps, not 150. Times were taken a second time, on a machine that did nothing else: a busy one had given "
    "21.8 % [19.0, 24.7] for the overhead and -2.6 % [-8.0, 2.8] for the folded network. Rates were "
    "tuned with eight trials a line over three decades. No interval covers another network, data set or processor."
)


def write_pages(folder: Path, judged: Sequence[Judged], rows: Sequence[Row], evidence: Evidence, quick: bool) -> Path:
    """Write index.html and README.md; return the path of the first."""
    write_file(folder / "README.md", readme(judged, rows, quick))
    return write_file(folder / "index.html", html(judged, rows, evidence, quick))


def number(value: float, unit: str) -> str:
    """Return a number with as many digits as its unit deserves."""
    return f"{value:.1f}" if unit in ("points", "%") else f"{value:.3g}"


def words(measured: Measured, unit: str) -> str:
    """Return e.g. "3.9 points [2.8, 4.9]"."""
    one = measured.estimate
    low, high = one.interval or (one.value, one.value)
    unit = f" {unit}" if unit else ""
    bounds = [number(end, unit.strip()) for end in (low, high)]
    inner = "" if one.n == 1 or bounds[0] == bounds[1] else f" [{', '.join(bounds)}]"
    return f"{number(one.value, unit.strip())}{unit}{inner}"


def covers(measured: Measured) -> str:
    """Say what the interval is."""
    text = KINDS.get(measured.kind, EXACT).format(n=len(measured.values))
    return f"{text}, of logarithms" if measured.log else text


def rule(region: Region, unit: str) -> str:
    """Return the rule in words: "from 2.3 times on"."""
    low, high = (None if end is None else f"{end:g}" for end in (region.low, region.high))
    unit = f" {unit}" if unit else ""
    if low is None:
        return f"up to {high}{unit}"
    if high is None:
        return f"from {low}{unit} on"
    return f"exactly {low}{unit}" if low == high else f"from {low} to {high}{unit}"


def anchor(verdict: str) -> str:
    """Return the class of a verdict's badge."""
    return verdict.split()[0] if verdict in VERDICTS[:1] else verdict.replace(" ", "-")


def html(judged: Sequence[Judged], rows: Sequence[Row], evidence: Evidence, quick: bool) -> str:
    """Return the page."""
    by_name = {one.claim.name: one for one in judged}
    sections = [Section("All claims", _list(judged))]
    for group, claims in GROUPS.items():
        drawing, caption = courses(group, evidence)
        figure = _figure(drawing, caption) if drawing else ""
        sections.append(Section(group, figure + "\n".join(_article(by_name[claim.name]) for claim in claims)))
    sections.append(
        Section(
            "Rules, and what to doubt",
            f"<p>{escape(_rule(judged))}</p><p>{escape(DOUBT)}</p><p>{escape(CHANGED)}</p>",
        )
    )
    sections.append(Section("Machine", f"<p>{escape(machine(rows, quick))}</p><pre>{command(quick)}</pre>"))
    return page(TITLE, _head(judged, quick), sections)


def _head(judged: Sequence[Judged], quick: bool) -> str:
    counts = Counter(one.verdict for one in judged)
    items = "".join(f"<li><b>{counts[word]}</b>{escape(word)}</li>" for word in VERDICTS if counts[word])
    small = '<p class="warn">The quick form: two seeds, which resolve nothing.</p>' if quick else ""
    return (
        f'<header>\n<p class="eyebrow">syncnorm</p>\n<h1>{escape(TITLE)}</h1>\n'
        f'<p class="question">{len(judged)} claims, each with its source, a measurement and a verdict by rule.</p>\n'
        f'<ul class="status">{items}</ul>{small}\n</header>'
    )


def _list(judged: Sequence[Judged]) -> str:
    items = "\n".join(
        f'<li>{_badge(one)} <a href="#{escape(one.claim.name)}">{escape(one.claim.text)}</a>'
        f"<small>{escape(_short(one))}</small></li>"
        for one in judged
    )
    return f'<ul class="claims">\n{items}\n</ul>\n<p class="caption">{escape(STRIPS)}</p>'


def _short(one: Judged) -> str:
    claimed = f"claimed: {one.claim.published}" if one.claim.published else ""
    here = f"here: {words(one.measured, one.claim.unit)}" if one.measured else ""
    return "; ".join(filter(None, (here, claimed)))


def _badge(one: Judged) -> str:
    return f'<b class="verdict {anchor(one.verdict)}">{escape(one.verdict)}</b>'


def _article(one: Judged) -> str:
    claim = one.claim
    facts = {"Source": claim.source, "Claimed": claim.published}
    if one.verdict != UNTESTABLE:
        facts |= {"Measured": claim.how, "Rule": f"it holds {rule(claim.region, claim.unit)}"}
    if one.measured:
        facts["Here"] = f"{words(one.measured, claim.unit)} ({covers(one.measured)})"
        facts["Note"] = one.measured.note
        facts["p after Holm"] = "" if one.p_holm is None else f"{one.p_holm:.2g}"
    items = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in facts.items() if text)
    why = f" {escape(one.why)}" if one.why else ""
    drawing = strip(one)
    figure = f'<div class="drawing">{drawing}</div>' if drawing else ""
    return (
        f'<article id="{escape(claim.name)}"><h3>{escape(claim.text)}</h3>\n<p>{_badge(one)}{why}</p>\n'
        f"{figure}<dl>{items}</dl></article>"
    )


def _figure(drawing: str, caption: str) -> str:
    return f'<figure><div class="drawing">{drawing}</div><figcaption>{escape(caption)}</figcaption></figure>\n'


def _rule(judged: Sequence[Judged]) -> str:
    return RULE.format(count=sum(one.p_holm is not None for one in judged))


def command(quick: bool) -> str:
    """Return the command that wrote the page."""
    return f"python -m experiments.claims{' --quick' * quick}"


def machine(rows: Sequence[Row], quick: bool) -> str:
    """Return one sentence about the processor, the versions, the commits and the time of the rows."""
    if not rows:
        return "No row yet."
    known = {name: ", ".join(sorted({row["environment"][name] for row in rows})) for name in rows[0]["environment"]}
    return (
        f"{len(rows)} rows of {known['cpu']}, {known['cores']} cores, {known['platform']}, Python {known['python']}, "
        f"torch {known['torch']}, commit {known['commit']}; {sum(row['seconds'] for row in rows) / 60:.0f} minutes, "
        "beside the rows of studies, which name their own."
    )


def readme(judged: Sequence[Judged], rows: Sequence[Row], quick: bool) -> str:
    """Return the README: the claims in tables, by group."""
    by_name = {one.claim.name: one for one in judged}
    counts = Counter(one.verdict for one in judged)
    said = ", ".join(f"{counts[word]} {word}" for word in VERDICTS if counts[word])
    parts = [
        "# claims: what is claimed of batch norm, and what holds here",
        f"    {command(quick)}     # measures what is missing, and writes this page and index.html",
        f"{len(judged)} claims: {said}. The [page](index.html) has a figure of each, and how it is measured. "
        "This file is written by the command, from the rows.",
        _rule(judged),
        f"**To doubt.** {DOUBT} {CHANGED}",
        f"**Machine.** {machine(rows, quick)}",
    ]
    for group, claims in GROUPS.items():
        lines = [_row(by_name[claim.name]) for claim in claims]
        head = "| claim | number claimed | here | verdict |\n| --- | --- | --- | --- |"
        parts += [f"## {group}", "\n".join([head, *lines])]
    plain = [part if part.startswith(("#", "|", " ")) else fill(part, 120, break_on_hyphens=False) for part in parts]
    return "\n\n".join(plain) + "\n"


def _row(one: Judged) -> str:
    here = words(one.measured, one.claim.unit) if one.measured else ""
    verdict = f"**{one.verdict}**" if one.verdict != MISSING else one.verdict
    cells = [f"[{one.claim.text}](index.html#{one.claim.name})", one.claim.published, here, verdict]
    if one.why:
        cells[3] += f": {one.why}"
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
