"""Say what `convert` would do with each layer of a model, without changing the model."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from syncnorm.errors import UserError
from syncnorm.norms.make import check_options
from syncnorm.surgery.conversion.convert import candidates, check_layer, converted_layers
from syncnorm.surgery.conversion.where import Where, selected
from syncnorm.surgery.layers.preconditions import FOREIGN, check_changeable, foreign_norms
from syncnorm.surgery.layers.sharded import check_shards
from syncnorm.surgery.layers.substitute import original, substitute


@dataclass(frozen=True)
class ConvertReport:
    """What `convert` does with each batch norm of a model, and with the convolutions of a norm of weights.

    converted: for each replaced layer, the classes before and after, "BatchNorm2d -> SyncBatchNorm".
    left: for each other layer, why it stays.
    refused: for each layer that `convert` would refuse, in its sentence; it then changes no layer at all.
    """

    converted: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Count the replaced layers by class, and list the others by reason; a line each."""
        lines = [f"{count} x {change}" for change, count in Counter(self.converted.values()).items()]
        for what, layers in (("stay", self.left), ("cannot be converted", self.refused)):
            by_reason: dict[str, list[str]] = defaultdict(list)
            for name, reason in layers.items():
                by_reason[reason].append(f"'{name}'")
            for reason, names in by_reason.items():
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                lines.append(f"{len(names)} {what} ({reason.rstrip('.')}): {', '.join(names[:3])}{more}")
        return "\n".join(lines) or "no layer to convert"


def convert_report(model: nn.Module, name: str, *, where: Where | None = None, **options: Any) -> ConvertReport:
    """Return what `convert(model, name, where=where, **options)` would do, without changing the model.

    Raises:
        UserError: what `convert` raises of the model as a whole, the norm, its options and `where`.
    """
    check_changeable(model)
    check_options(name, options)
    report = ConvertReport()
    layers = candidates(model, name)
    chosen = selected(model, layers, where)
    report.left.update(
        {there: FOREIGN for there in foreign_norms(model) if there not in converted_layers(model).values()}
    )
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    for layer, there in layers.items():
        if layer not in chosen:
            report.left[there] = "where does not select it"
            continue
        try:
            rest = check_layer(there, layer, name)
            with torch.random.fork_rng(devices=devices):  # a norm of weights may draw its start
                new = substitute(original(layer, model), name, options, rest)
            check_shards(model, {layer: new}, {layer: there})
        except UserError as error:
            report.refused[there] = str(error)
        else:
            report.converted[there] = f"{type(layer).__name__} -> {type(new).__name__}"
    return report
