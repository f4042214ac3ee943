"""Groups of ranks that share statistics, for all layers of a model: by size, by node, or of one's own."""

from __future__ import annotations

import os
import socket
from typing import Any

import torch.distributed as dist
from torch.distributed import ProcessGroup

from syncnorm.errors import UserError
from syncnorm.norms import norm_spec
from syncnorm.norms.core.ranks.collectives import gather_objects
from syncnorm.norms.core.ranks.groups import as_group
from syncnorm.norms.make import norm_options

NODE = "node"


def with_group(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return a norm's options with the `process_group` that `group_size` means in place of it, if that is given.

    A number: ranks 0 to group_size - 1 are the first group, the next ones the second, and so on. "node": the ranks of
    each machine, or of each agent of torchrun if a machine has several. Every rank has to call this.

    Raises:
        UserError: a norm without a `process_group`; both of them; a size that is no whole number, or does not divide
            the number of ranks; ranks that have not joined yet; a `process_group` that is none (see `as_group`).
    """
    shares = "process_group" in norm_options(name)
    if "process_group" in options and shares:
        options = {**options, "process_group": as_group(options["process_group"], f"norm '{name}'")}
    if "group_size" not in options:
        return options
    rest = {key: value for key, value in options.items() if key != "group_size"}
    size = options["group_size"]
    if "process_group" not in norm_options(name):
        why = norm_spec(name).not_shared() or "has no process_group"
        raise UserError(f"norm '{name}' {why}: leave group_size out.")
    if rest.get("sync") is False:
        raise UserError("convert got both group_size and sync=False: give one of them.")
    if "process_group" in rest:
        raise UserError("convert got both group_size and process_group: give one of them.")
    whole = isinstance(size, int) and not isinstance(size, bool) and size >= 1
    if not whole and size != NODE:
        raise UserError(f"group_size is {size!r}: it must be a whole number of ranks, at least 1, or 'node'.")
    if not dist.is_available() or not dist.is_initialized():
        raise UserError("group_size needs the ranks: call torch.distributed.init_process_group() before convert.")
    return {**rest, "process_group": _of_node() if size == NODE else _of_size(size)}


def _of_size(size: int) -> ProcessGroup:
    ranks = dist.get_world_size()
    if ranks % size:
        raise UserError(f"group_size is {size}, which does not divide the {ranks} ranks: give a divisor of {ranks}.")
    group: ProcessGroup = dist.new_subgroups(size)[0]  # type: ignore[no-untyped-call]
    return group


def _of_node() -> ProcessGroup:
    """Return the ranks that run where this one does; every rank makes every group, as torch.distributed wants it."""
    nodes = gather_objects((socket.gethostname(), os.environ.get("GROUP_RANK", "")), None)
    made = {
        node: dist.new_group([rank for rank, at in enumerate(nodes) if at == node]) for node in dict.fromkeys(nodes)
    }
    group: ProcessGroup = made[nodes[dist.get_rank()]]
    return group
