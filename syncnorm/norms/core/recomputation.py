"""Detect the recomputation of activation checkpointing, so that running statistics count each batch once."""

import torch

from syncnorm._torch import in_backward


def recomputing() -> bool:
    """Return whether this forward runs inside a backward, as activation checkpointing makes it."""
    return not torch.compiler.is_compiling() and in_backward()


def refuse_recomputation(layer: str) -> None:
    """Raise `ValueError` inside a recomputation: for layers whose output follows from statistics that moved since."""
    if recomputing():
        raise ValueError(
            f"{layer} under activation checkpointing would be recomputed with statistics that have moved since: "
            "leave it out of the checkpointed part, or choose another norm."
        )
