"""A diagnosis as a text of at most 80 columns."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence

from syncnorm.doctor.finding import ORDER, Finding
from syncnorm.doctor.words import some

WIDTH = 80
INDENT = "    "


def table(found: Sequence[Finding], subject: str, checked: int, skipped: Mapping[str, str]) -> str:
    """Return the findings as text: a headline, equal findings of several layers together, what was not checked."""
    lines = [_headline(found, subject, checked)]
    for findings in _groups(found):
        first = findings[0]
        lines += ["", f"{first.severity.upper()}  {first.check}  ({first.certainty})"]
        layers = list(dict.fromkeys(finding.layer for finding in findings))
        if layers != [""]:
            lines += _wrapped(f"{'layer' if len(layers) == 1 else f'{len(layers)} layers:'} {some(layers)}")
        same = len({finding.what for finding in findings}) == 1
        lines += _wrapped(first.what + ("" if same or len(layers) == 1 else f" (that of {some(layers[:1])})") + ".")
        if first.cost:
            lines += _wrapped(f"Cost: {first.cost}.")
        lines += _wrapped(f"Instead: {first.remedy}.")
    return "\n".join([*lines, *_skipped(skipped)])


def _headline(found: Sequence[Finding], subject: str, checked: int) -> str:
    counts = Counter(finding.severity for finding in found)
    told = ", ".join(f"{counts[one]} {one}{'s' if counts[one] > 1 else ''}" for one in ORDER if counts[one])
    return f"{subject}: {told or 'nothing found'} ({checked} checks)"


def _groups(found: Sequence[Finding]) -> list[list[Finding]]:
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for finding in found:
        alike = finding.severity, finding.check, finding.certainty, _rule(finding)
        groups.setdefault(alike, []).append(finding)
    return list(groups.values())


def _rule(finding: Finding) -> str:
    """Return what equal findings of several layers have in common: their words without numbers and names."""
    quoted = finding.what.split("'")
    return "".join(sign for sign in "".join(quoted[::2]) if not sign.isdigit())


def _skipped(skipped: Mapping[str, str]) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        by_reason.setdefault(reason, []).append(name)
    lines = ["", "Not checked:"] if by_reason else []
    for reason, names in by_reason.items():
        lines += _wrapped(f"{', '.join(names)}: {reason}.")
    return lines


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=INDENT, subsequent_indent=INDENT, break_on_hyphens=False)
