"""All findings about a model."""

from __future__ import annotations

from typing import Any

from syncnorm.doctor.finding import ORDER, Finding
from syncnorm.doctor.output.table import table


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
        return table(self, self.subject, len(self.checked), self.skipped)
