"""Checks of a model before clients train it: its output, and whether its batch norms can be found."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from syncnorm.config import Run
from syncnorm.errors import UserError
from syncnorm.training.building import check_outputs


class _Statistics(TorchFunctionMode):
    """Records the running statistics that batch norms normalise with."""

    def __init__(self) -> None:
        super().__init__()
        self.used: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Record the call's statistics, then make the call."""
        if func is torch.nn.functional.batch_norm:
            given = [*args[1:3], *((kwargs or {}).get(name) for name in ("running_mean", "running_var"))]
            self.used += [value for value in given if isinstance(value, Tensor)]
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def inspect_model(model: nn.Module, images: Tensor, targets: Tensor, classes: int, run: Run) -> None:
    """Run a few images through a model in evaluation mode, and check that clients can train it.

    Raises:
        UserError: a model whose output does not fit the task; a model with a batch norm in a plain list or
            dict, which no module registers: clients would share it, and no policy would apply to it.
    """
    was_training = model.training
    with _Statistics() as statistics:
        outputs = model.eval()(images)
    model.train(was_training)
    check_outputs(run, outputs, targets, classes)
    known = {buffer.data_ptr() for buffer in model.buffers()}
    hidden = [value for value in statistics.used if value.data_ptr() not in known]
    if hidden:
        raise UserError(
            f"model '{run.model}' uses a batch norm of {len(hidden[0])} channels that none of its modules lists, "
            "kept in a plain list or dict perhaps: keep it in an nn.ModuleList or nn.ModuleDict, or clients cannot "
            "have their own."
        )
