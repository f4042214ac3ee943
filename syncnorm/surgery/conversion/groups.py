"""Groups of ranks that share statistics, by size: one group of neighbours for all layers of a model."""

from typing import Any

import torch.distributed as dist

from syncnorm.errors import UserError
from syncnorm.norms import norm_spec
from syncnorm.norms.make import norm_options


def with_group(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return a norm's options with `process_group` in place of `group_size`, if that is given.

    Ranks 0 to group_size - 1 are the first group, the next ones the second, and so on: with as many ranks on each
    machine, those of a machine. Every rank has to call this.

    Raises:
        UserError: a norm without a `process_group`; both of them; a size that is no whole number, or does not divide
            the number of ranks; ranks that have not joined yet.
    """
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
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise UserError(f"group_size is {size!r}: it must be a whole number of ranks, at least 1.")
    if not dist.is_available() or not dist.is_initialized():
        raise UserError("group_size needs the ranks: call torch.distributed.init_process_group() before convert.")
    ranks = dist.get_world_size()
    if ranks % size:
        raise UserError(f"group_size is {size}, which does not divide the {ranks} ranks: give a divisor of {ranks}.")
    group, _ = dist.new_subgroups(size)  # type: ignore[no-untyped-call]
    return {**rest, "process_group": group}
