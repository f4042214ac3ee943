"""Exact gradient accumulation in a Lightning training: each batch in parts, with norms that see all of it."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import lightning.pytorch as pl
from torch import Tensor, nn

from syncnorm.errors import UserError
from syncnorm.surgery.accumulation.accumulate import accumulated_loss


class ExactAccumulation(pl.Callback):
    """Train each batch in micro-batches with the statistics of the whole batch: `syncnorm.accumulate` for Lightning.

        Trainer(callbacks=[ExactAccumulation(4)])

    The loader gives the batches of a step, so leave `accumulate_grad_batches` at 1. Each batch is split along the
    first dimension of its tensors, and `training_step` is called once for each part. It returns the mean loss of its
    part, and the step's loss is their mean, weighted by samples. What it logs is that of the last part.

    Args:
        micro_batches: number of parts, at most; at least 1. A batch of fewer samples has as many parts as samples.

    Raises:
        UserError: a number below 1; manual optimisation; a training on several ranks, where Lightning's own
            DistributedDataParallel would send gradients before they are whole (write a loop with
            `syncnorm.accumulate`, which averages them); a batch without tensors; what `accumulate` raises.
    """

    def __init__(self, micro_batches: int) -> None:
        super().__init__()
        if isinstance(micro_batches, bool) or not isinstance(micro_batches, int) or micro_batches < 1:
            raise UserError(f"micro_batches is {micro_batches!r}: it must be a whole number, at least 1.")
        self._count = micro_batches

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the split around `training_step`."""
        if not pl_module.automatic_optimization:
            raise UserError("ExactAccumulation needs automatic optimisation: call syncnorm.accumulate yourself.")
        if trainer.world_size > 1:
            raise UserError(
                "ExactAccumulation is for one rank: for several, write a loop with syncnorm.accumulate, which "
                "averages their gradients."
            )
        step: Callable[..., Any] = pl_module.training_step

        def in_parts(batch: Any, *rest: Any) -> Tensor:
            size = _samples(batch)
            parts = min(self._count, size)
            bounds = [size * part // parts for part in range(parts + 1)]
            pieces = [(_slice(batch, size, *pair), pair) for pair in pairwise(bounds)]

            def loss(_model: nn.Module, piece: Any) -> Tensor:
                part, (start, end) = piece
                returned = step(part, *rest)
                of_part: Tensor = returned["loss"] if isinstance(returned, Mapping) else returned
                weighted: Tensor = of_part * ((end - start) / size)
                return weighted

            return accumulated_loss(pl_module, pieces, loss)

        pl_module.training_step = in_parts  # type: ignore[method-assign]

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the module its own `training_step` back."""
        self._release(pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the module its own `training_step` back."""
        self._release(pl_module)

    def _release(self, pl_module: pl.LightningModule) -> None:
        vars(pl_module).pop("training_step", None)


def _samples(batch: Any) -> int:
    """Return the number of samples of a batch: the length of its first tensor."""
    if isinstance(batch, Tensor) and batch.dim() > 0:
        return len(batch)
    inner = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    for part in inner:
        try:
            return _samples(part)
        except UserError:
            continue
    raise UserError(
        f"a batch ({type(batch).__name__}) has no tensor to split: give tensors, or dicts and lists of them."
    )


def _slice(batch: Any, size: int, start: int, end: int) -> Any:
    """Return samples `start` to `end` of `size`: of tensors, and of lists that hold one value for each sample."""
    if isinstance(batch, Tensor):
        return batch[start:end] if batch.dim() > 0 else batch
    if isinstance(batch, Mapping):
        return {key: _slice(part, size, start, end) for key, part in batch.items()}
    if not isinstance(batch, list | tuple):
        return batch
    if len(batch) == size and not any(isinstance(part, Tensor | Mapping | list | tuple) for part in batch):
        return batch[start:end]
    parts = [_slice(part, size, start, end) for part in batch]
    if isinstance(batch, list):
        return parts
    return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)
