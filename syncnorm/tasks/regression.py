"""Regression: numbers instead of classes."""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from syncnorm.errors import UserError
from syncnorm.tasks.task import Task, Values, check_finite

STRATA = 10


class Regression(Task):
    """K numbers a sample: mean squared error, judged by R^2.

    Outputs and targets are (N, K). They are not scaled: give targets of unit size. A sample's loss is the mean over
    its K squared errors. `r2` is 1 - (mean squared error) / (variance of the targets), the variance over the test set
    at hand, and the mean over outputs: 1 is perfect, 0 as good as the mean. So a sample's score is 1 minus its
    squared errors in units of the variance. An output without variance counts 1 if it is met exactly, else 0.
    `mse` is the mean squared error.
    """

    metric: ClassVar[str] = "r2"
    also: ClassVar[tuple[str, ...]] = ("mse",)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return each sample's mean squared error over its K numbers: (N,)."""
        return (outputs - targets).square().mean(1)

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return each sample's 1 - squared error / variance, the mean over outputs: (N,)."""
        errors, variance = (outputs.double() - targets.double()).square(), targets.double().var(0, correction=0)
        varied = variance > 0
        constant = (errors == 0).double()
        return torch.where(varied, 1 - errors / torch.where(varied, variance, 1.0), constant).mean(1)

    def more(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the mean squared error."""
        return {"mse": (outputs.double() - targets.double()).square().mean().item()}

    def targets(self, values: Values, where: str) -> Values:
        """Return the numbers as float32 (N, K)."""
        if values.ndim not in (1, 2) or values.dtype.kind not in "biuf":
            raise UserError(
                f"{where}: regression needs numbers as targets, (N,) or (N, outputs), and these have shape "
                f"{values.shape} and type {values.dtype}."
            )
        check_finite(values, where)
        return (values if values.ndim == 2 else values[:, None]).astype(np.float32)

    def strata(self, targets: Tensor) -> Tensor:
        """Return the tenth of the samples in which each one's target is (the mean over outputs): 0 to 9."""
        place = targets.double().mean(1).argsort(stable=True).argsort()
        return place * STRATA // len(targets)

    def strata_names(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Return "tenth 1" to "tenth 10"."""
        return tuple(f"tenth {number + 1}" for number in range(STRATA))
