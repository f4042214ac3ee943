"""Look at a model's norms as a Lightning training starts."""

from __future__ import annotations

import logging
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from syncnorm.doctor.diagnose import diagnose
from syncnorm.doctor.diagnosis import Diagnosis
from syncnorm.errors import UserError

_LOG = logging.getLogger("syncnorm.doctor")


class CheckNorms(pl.Callback):
    """Run `syncnorm.diagnose` as a fit starts: `Trainer(callbacks=[CheckNorms((3, 32, 32), batch_size=32)])`.

    It knows the number of devices and the first optimiser from the trainer. What it finds is logged on rank 0
    (logger "syncnorm.doctor"), and kept in `diagnosis`. Training goes on, whatever it finds, unless `stop` says so;
    a model that it cannot run on the input is a warning in the log.

    Args:
        inputs: what `diagnose` takes; None takes `example_input_array` of the module, if it has one.
        batch_size: samples on one device, the batch size of the loader.
        stop: raise a `UserError` where something is worse than a note.
    """

    def __init__(self, inputs: Any = None, *, batch_size: int | None = None, stop: bool = False) -> None:
        super().__init__()
        self._inputs, self._batch_size, self._stop = inputs, batch_size, stop
        self.diagnosis: Diagnosis | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the module, and log what is found."""
        if trainer.global_rank != 0:
            return
        given = pl_module.example_input_array if self._inputs is None else self._inputs
        if isinstance(given, Tensor):
            given = given.to(pl_module.device)
        pl_module.trainer = None  # a copy of the module would hold a copy of the trainer, and of all data
        try:
            self.diagnosis = diagnose(
                pl_module,
                given,
                batch_size=self._batch_size,
                world_size=trainer.world_size,
                accumulate=trainer.accumulate_grad_batches,
                optimizer=next(iter(trainer.optimizers), None),
            )
        except UserError as error:
            _LOG.warning("the norms were not looked at: %s", error)
            return
        finally:
            pl_module.trainer = trainer
        _LOG.log(logging.WARNING if self.diagnosis.wrong else logging.INFO, "%s", self.diagnosis)
        if self._stop and self.diagnosis.wrong:
            raise UserError(f"CheckNorms found something wrong, and was asked to stop then.\n{self.diagnosis}")
