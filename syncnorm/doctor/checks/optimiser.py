"""What the optimiser does to weight and bias of norms."""

from __future__ import annotations

from collections.abc import Iterator

from syncnorm.doctor.case import Case
from syncnorm.doctor.finding import Finding
from syncnorm.doctor.words import percent


def decayed(case: Case) -> Iterator[Finding]:
    """Weight decay on weight and bias of norms."""
    assert case.optimizer is not None
    decays = {id(p): group.get("weight_decay", 0.0) for group in case.optimizer.param_groups for p in group["params"]}
    total = sum(p.numel() for p in case.model.parameters()) or 1
    for name, (_, layer) in case.norms.items():
        own = dict(layer.named_parameters(recurse=False))
        hit = {key: decays[id(p)] for key, p in own.items() if decays.get(id(p), 0.0) and p.requires_grad}
        if hit:
            share = sum(own[key].numel() for key in hit) / total
            yield Finding(
                name,
                f"weight decay of {max(hit.values()):g} pulls its {' and '.join(hit)} towards 0",
                "give the parameters of norms a group with weight_decay=0; many recipes do so, not all",
                "note",
                "certain",
                f"{percent(share)} of the model's parameters",
            )


def not_optimised(case: Case) -> Iterator[Finding]:
    """Parameters of a norm that the optimiser does not have, beside layers that it has."""
    assert case.optimizer is not None
    trained = {id(p) for group in case.optimizer.param_groups for p in group["params"]}
    own = {id(p) for _, layer in case.norms.values() for p in layer.parameters(recurse=False)}
    if not trained & ({id(p) for p in case.model.parameters()} - own):
        return
    for name, (_, layer) in case.norms.items():
        left = [key for key, p in layer.named_parameters(recurse=False) if p.requires_grad and id(p) not in trained]
        parent = case.model.get_submodule(name.rpartition(".")[0])
        beside = [p for p in parent.parameters() if p.requires_grad and id(p) not in own]
        if left and beside and all(id(p) in trained for p in beside):
            yield Finding(
                name,
                f"the optimiser does not have its {' and '.join(left)}, and has the layers beside it: it was made "
                "before the layer was replaced, perhaps",
                "build the optimiser after the model is complete, from model.parameters()",
                "warning",
                "likely",
            )
