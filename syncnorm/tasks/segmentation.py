"""Semantic segmentation: the class of every position of a sample."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from syncnorm.errors import UserError
from syncnorm.tasks.task import Task, Values


class Segmentation(Task):
    """The class of every position: cross-entropy, judged by the mean IoU of an image.

    Outputs are logits (N, classes, H, W), targets int64 (N, H, W) from 0; class 0 is the background. (Signals:
    (N, classes, L) and (N, L).) A sample's loss is the mean over its positions, in nats.

    `mean_iou` is the mean over images of the mean over classes of intersection / union, where an image counts the
    classes that are in its target or in its prediction (mIoU^I of arXiv 2310.19252). `dataset_iou` adds
    intersections and unions over all images first, then takes the mean over classes (Pascal VOC), and
    `position_accuracy` is the share of positions that are right.
    """

    metric: ClassVar[str] = "mean_iou"
    also: ClassVar[tuple[str, ...]] = ("dataset_iou", "position_accuracy")
    moves: ClassVar[bool] = True

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return each sample's cross-entropy in nats, the mean over its positions: (N,)."""
        return F.cross_entropy(outputs, targets, reduction="none").flatten(1).mean(1)

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return each sample's mean IoU: (N,)."""
        overlap, union = intersections(outputs, targets)
        there = union > 0
        return torch.where(there, overlap / union.clamp(min=1), 0.0).sum(1) / there.sum(1)

    def more(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the pooled mean IoU, and the share of positions that are right."""
        overlap, union = (part.sum(0) for part in intersections(outputs, targets))
        there = union > 0
        right = (outputs.argmax(1) == targets).double().mean().item()
        return {"dataset_iou": (overlap / union)[there].mean().item(), "position_accuracy": right}

    def targets(self, values: Values, where: str) -> Values:
        """Return the classes as int64 (N, H, W) or (N, L)."""
        if values.ndim == 4 and values.shape[1] == 1:
            values = values[:, 0]
        if values.ndim not in (2, 3) or 0 in values.shape:
            raise UserError(
                f"{where}: targets have shape {values.shape[1:]} a sample: segmentation needs the class of each "
                "position, (H, W) or (L,)."
            )
        if values.dtype.kind not in "biu" or values.min() < 0:
            raise UserError(f"{where}: segmentation needs whole numbers from 0 as targets, the classes of positions.")
        return values.astype(np.int64)

    def outputs(self, targets: Sequence[Values]) -> int:
        """Return the number of classes: the largest in any split plus 1, and at least 2."""
        return max(2, 1 + max(int(values.max()) for values in targets))

    def output_shape(self, targets: Tensor, outputs: int) -> tuple[int, ...]:
        """Return (N, classes, H, W)."""
        return len(targets), outputs, *targets.shape[1:]

    def strata(self, targets: Tensor) -> Tensor:
        """Return the class with most positions in each sample, without the background if there is another."""
        count = F.one_hot(targets.flatten(1)).sum(1)
        if count.shape[1] == 1:
            return count.new_zeros(len(targets))
        main = count[:, 1:].argmax(1) + 1
        return torch.where(count[:, 1:].sum(1) > 0, main, 0)


def intersections(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return intersection and union of prediction and target, in positions: float64 (N, classes) each."""
    classes, said = outputs.shape[1], outputs.argmax(1)
    offset = classes * torch.arange(len(targets), device=targets.device).view(-1, *[1] * (targets.dim() - 1))

    def counts(chosen: Tensor) -> Tensor:
        return torch.bincount(chosen.flatten(), minlength=classes * len(targets)).view(-1, classes).double()

    overlap = counts((targets + offset)[said == targets])
    return overlap, counts(said + offset) + counts(targets + offset) - overlap
