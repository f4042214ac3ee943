"""Whether a forward is a recomputation, whose batch the running statistics have already counted."""

import torch


def recomputing() -> bool:
    """Return whether this forward runs inside a backward, as activation checkpointing makes it."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def refuse_recomputation(layer: str) -> None:
    """Raise `ValueError` inside a recomputation: for layers whose output follows from statistics that moved since."""
    if recomputing():
        raise ValueError(
            f"{layer} under activation checkpointing would be recomputed with statistics that have moved since: "
            "leave it out of the checkpointed part, or choose another norm."
        )
