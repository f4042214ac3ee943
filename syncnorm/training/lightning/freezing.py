"""Freeze batch norms at a point of a Lightning training."""

from typing import Any

import lightning.pytorch as pl

from syncnorm.errors import UserError
from syncnorm.surgery import freeze, unfreeze
from syncnorm.surgery.conversion.where import Where


class FreezeNorms(pl.Callback):
    """Freeze batch norms from a step of the training on: `Trainer(callbacks=[FreezeNorms(from_share=0.5)])`.

    As `syncnorm.freeze`. The step is Lightning's count of optimiser steps, so a training that resumes from a
    checkpoint freezes at the same step. When the fit ends, the norms are released.

    Args:
        where: which batch norms; None is all.
        affine: freeze weight and bias as well. Under DDP this needs `strategy="ddp_find_unused_parameters_true"`.
        from_step: number of optimiser steps before the freeze.
        from_share: the same as a share of all steps, from 0 to 1, instead of `from_step`; FixBN (arXiv 2303.06530)
            freezes after a first part of the training as well.

    Raises:
        UserError: both or neither of `from_step` and `from_share`, or one out of range; what `freeze` raises.
    """

    def __init__(
        self,
        where: Where | None = None,
        *,
        affine: bool = False,
        from_step: int | None = None,
        from_share: float | None = None,
    ) -> None:
        super().__init__()
        if (from_step is None) == (from_share is None):
            raise UserError("FreezeNorms needs from_step or from_share, and not both.")
        if from_step is not None and from_step < 0:
            raise UserError(f"from_step is {from_step}: it must be at least 0.")
        if from_share is not None and not 0 <= from_share <= 1:
            raise UserError(f"from_share is {from_share}: it must be from 0 to 1.")
        self._where, self._affine = where, affine
        self._from_step, self._from_share = from_step, from_share
        self._held = False

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, index: int
    ) -> None:
        """Freeze the norms once their step has come."""
        if not self._held and trainer.global_step >= self._first(trainer):
            freeze(pl_module, self._where, affine=self._affine)
            self._held = True

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Release the norms."""
        if self._held:
            unfreeze(pl_module, self._where)
            self._held = False

    def _first(self, trainer: pl.Trainer) -> float:
        if self._from_step is not None:
            return self._from_step
        steps = trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise UserError("the training has no end, so from_share means nothing: give from_step, or max_steps.")
        return (self._from_share or 0.0) * steps
