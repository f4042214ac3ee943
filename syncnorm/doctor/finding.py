"""What a check finds: one thing about one layer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

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
