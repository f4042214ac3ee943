"""What a check finds, and the list of all findings about a model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
Certainty = Literal["certain", "measured", "likely"]
ORDER: tuple[Severity, ...] = ("error", "warning", "note")
"""Severities, the worst first."""


@dataclass(frozen=True)
class Finding:
    """One thing about one layer.

    layer: its name in the model; empty for the model as a whole.
    what: what is wrong.
    remedy: what to write instead.
    severity: "error" for what fails or gives wrong numbers, "warning" for what costs accuracy or is hardly meant so,
        "note" for what is wasted or good to know. A note is no fault.
    certainty: "certain" if it follows from the model itself, "measured" if it was seen on the input, "likely" if it
        rests on a rule of thumb.
    cost: what it costs, measured, and on which input; empty if that was not measured.
    check: the name of the check; filled in by `diagnose`.
    """

    layer: str
    what: str
    remedy: str
    severity: Severity = "warning"
    certainty: Certainty = "certain"
    cost: str = ""
    check: str = ""

    def as_dict(self) -> dict[str, str]:
        """Return the fields by name, for JSON."""
        return asdict(self)


class Diagnosis(list[Finding]):
    """The findings about a model, the worst first: an ordinary list, empty if nothing was found.

    `print` shows it as a text of at most 80 columns.

    Args:
        findings: the findings.
        subject: what was looked at, for the headline.
        checked: the names of the checks that ran.
        skipped: for each check that did not run, why.
    """

    def __init__(
        self,
        findings: list[Finding] | None = None,
        subject: str = "model",
        checked: list[str] | None = None,
        skipped: dict[str, str] | None = None,
    ) -> None:
        super().__init__(sorted(findings or [], key=lambda finding: ORDER.index(finding.severity)))
        self.subject = subject
        self.checked = checked or []
        self.skipped = skipped or {}

    @property
    def wrong(self) -> bool:
        """Whether anything is worse than a note."""
        return any(finding.severity != "note" for finding in self)

    def of(self, check: str) -> list[Finding]:
        """Return the findings of one check."""
        return [finding for finding in self if finding.check == check]

    def as_dict(self) -> dict[str, Any]:
        """Return everything in plain types, for JSON."""
        return {
            "subject": self.subject,
            "findings": [finding.as_dict() for finding in self],
            "checked": self.checked,
            "skipped": self.skipped,
        }

    def __str__(self) -> str:
        from syncnorm.doctor.output.table import table

        return table(self)
