"""Norms that a model's modules do not list, or that conversion cannot replace."""

from __future__ import annotations

from collections.abc import Iterator

from syncnorm.doctor.case import Case
from syncnorm.doctor.finding import Finding, Severity
from syncnorm.surgery import batch_norms, convert_report


def unlisted(case: Case) -> Iterator[Finding]:
    """A norm that the forward uses and no module lists: kept in a plain list, a closure, a global variable."""
    told = set()
    for call in case.training.calls:
        if call.module is None or call.listed or id(call.module) in told:
            continue
        told.add(id(call.module))
        learns = any(True for _ in call.module.parameters())
        yield Finding(
            call.name,
            f"the forward uses a {call.what} that no module lists, kept in a plain list, dict, closure or global "
            "variable: .parameters(), .to(), .eval(), state_dict() and convert do not reach it"
            + (", so an optimiser does not train it" if learns else ""),
            "keep it in an attribute of the module, an nn.ModuleList or an nn.ModuleDict",
            "error",
        )


def unconvertible(case: Case) -> Iterator[Finding]:
    """A norm over the batch that `syncnorm.convert` and PyTorch's converter cannot replace."""
    severity: Severity = "warning" if case.world_size > 1 else "note"
    told = set()
    listed = batch_norms(case.model)
    for call in case.training.of("batch"):
        if call.module is None and call.by_batch and call.name not in told and call.name not in listed:
            told.add(call.name)
            yield Finding(
                call.name,
                f"it normalises over the batch ({call.what}), and is no torch.nn batch norm: convert, fold, freeze, "
                "recalibrate and SyncBatchNorm's converter do not find it",
                "use nn.BatchNorm1d, 2d or 3d there, or derive the class from one",
                severity,
                "measured",
            )
    for name, reason in convert_report(case.model, "sync_bn").refused.items():
        if name not in told:
            what, _, remedy = reason.rstrip(".").rpartition(": ")
            yield Finding(name, what, remedy, severity)
