"""Which ranks share statistics: what a `process_group` may be."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from syncnorm.errors import UserError, with_article

Group = ProcessGroup | DeviceMesh | None
"""A ProcessGroup, a DeviceMesh of one dimension (`mesh["shard"]`), or None for all ranks."""


def as_group(given: Any, layer: str) -> ProcessGroup | None:
    """Return the process group that `given` means, of a mesh of one dimension its own.

    Raises:
        UserError: anything else, or a mesh of several dimensions.
    """
    if given is None or not dist.is_available():
        return None
    if isinstance(given, ProcessGroup):
        return given
    if given == dist.GroupMember.NON_GROUP_MEMBER:
        outside: ProcessGroup = given  # such a rank is told so when it communicates
        return outside
    if isinstance(given, DeviceMesh):
        if given.ndim == 1:
            return given.get_group()
        names = given.mesh_dim_names
        one = f"mesh['{names[-1]}']" if names else "a dimension (name them with mesh_dim_names)"
        listed = f" ({', '.join(map(repr, names))})" if names else ""
        raise UserError(
            f"{layer}: process_group is a mesh of {given.ndim} dimensions{listed}: choose the one whose ranks share "
            f"statistics, {one}, or leave process_group out for all ranks."
        )
    what = repr(given) if isinstance(given, str | int | torch.device) else with_article(type(given).__name__)
    raise UserError(
        f"{layer}: process_group is {what}: it must be a group of torch.distributed, a DeviceMesh of one dimension "
        "or None. (In a layer's arguments the device comes after it: device=...)"
    )
