"""A diagnosis as SARIF 2.1.0, which code review reads (OASIS, sarif-v2.1.0-os)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from syncnorm.doctor.finding import Finding

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def sarif(
    found: Sequence[Finding], checks: Mapping[str, str], version: str, file: str = "", line: int = 1
) -> dict[str, Any]:
    """Return the log of one run; `checks` are those that were asked for, with what each finds.

    version: of syncnorm.
    file, line: where the model is built, relative to the working directory.
    """
    rules = [{"id": name, "shortDescription": {"text": f"{summary}."}} for name, summary in checks.items()]
    driver = {"name": "syncnorm doctor", "version": version, "rules": rules}
    results = [_result(finding, file, line) for finding in found]
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}


def _result(finding: Finding, file: str, line: int) -> dict[str, Any]:
    location: dict[str, Any] = {
        "logicalLocations": [{"fullyQualifiedName": finding.layer or "model", "kind": "member"}]
    }
    if file:
        location["physicalLocation"] = {"artifactLocation": {"uri": file}, "region": {"startLine": line}}
    layer = f"layer '{finding.layer}': " if finding.layer else ""
    cost = f" Cost: {finding.cost}." if finding.cost else ""
    return {
        "ruleId": finding.check,
        "level": finding.severity,
        "message": {"text": f"{layer}{finding.what}.{cost} Instead: {finding.remedy}."},
        "locations": [location],
        "properties": {"certainty": finding.certainty},
    }
