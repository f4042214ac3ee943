"""Multi-label classification: several labels a sample, each there or not."""

from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from syncnorm.errors import UserError
from syncnorm.tasks.task import Task, Values


class MultiLabel(Task):
    """Any number of K labels a sample: binary cross-entropy of each, judged by a sample's F1.

    Outputs are logits (N, K), targets int64 (N, K) of zeros and ones. A sample's loss is the mean over its labels, in
    nats. A label is predicted where its logit is above 0. `f1` is the mean over samples of 2 |A and B| / (|A| + |B|),
    for the predicted labels A and the true ones B, and 1 if both are empty (example-based F1: Godbole & Sarawagi
    2004). `label_accuracy` is the share of all labels that are right.
    """

    metric: ClassVar[str] = "f1"
    also: ClassVar[tuple[str, ...]] = ("label_accuracy",)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return each sample's binary cross-entropy in nats, the mean over its labels: (N,)."""
        return F.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype), reduction="none").mean(1)

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return each sample's F1: (N,)."""
        said = outputs > 0
        both, total = (said & (targets > 0)).sum(1).double(), (said.sum(1) + targets.sum(1)).double()
        return torch.where(total > 0, 2 * both / total.clamp(min=1), 1.0)

    def more(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the share of labels that are right."""
        return {"label_accuracy": ((outputs > 0) == (targets > 0)).double().mean().item()}

    def targets(self, values: Values, where: str) -> Values:
        """Return the labels as int64 (N, K)."""
        if values.ndim != 2 or values.dtype.kind not in "biuf" or not np.isin(values, (0, 1)).all():
            raise UserError(
                f"{where}: multi_label needs one number a label as targets, (N, labels): 1 if the sample has it, "
                "else 0."
            )
        return values.astype(np.int64)

    def strata(self, targets: Tensor) -> Tensor:
        """Return each sample's rarest label; K for a sample without any."""
        order = targets.sum(0).argsort(stable=True)
        rarest = order[targets[:, order].argmax(1)]
        return torch.where(targets.sum(1) > 0, rarest, targets.shape[1])

    def strata_names(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Return the labels, and "none"."""
        return *names, "none"
