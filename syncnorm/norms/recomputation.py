"""Whether a forward is a recomputation, whose batch the running statistics have already counted."""

import torch


def recomputing() -> bool:
    """Return whether this forward runs inside a backward, as activation checkpointing makes it."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
