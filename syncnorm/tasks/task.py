"""The base of all tasks: which loss a run minimises, which metric judges it, and what its targets may be."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from syncnorm.errors import UserError

Values = NDArray[Any]


class Task:
    """What a run learns. A subclass defines `metric`, `losses` and `scores`; the rest has defaults.

    Loss and main metric are means over samples. So a batch's gradient is the mean of its devices' gradients, virtual
    ranks equal real ones, a client's test samples can be weighted, and a test set can be resampled. A loss or a
    metric of a whole batch (a pooled Dice coefficient, say) has no such parts and is no task's.
    """

    metric: ClassVar[str]
    """Name of the main metric, the mean of `scores` over the test samples. Larger is better."""
    also: ClassVar[tuple[str, ...]] = ()
    """Names of the further metrics that `more` returns."""
    moves: ClassVar[bool] = False
    """Whether targets are images, so that an augmentation of the sample would have to move them as well."""

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return each sample's loss, (N,), for outputs of shape `output_shape` and targets (N, ...)."""
        raise NotImplementedError

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean of `losses` over the batch, a single number; this is what training minimises."""
        return self.losses(outputs, targets).mean()

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return each sample's contribution to the main metric, (N,), for a whole test set."""
        raise NotImplementedError

    def more(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return further metrics of a whole test set, by the names in `also`."""
        return {}

    def targets(self, values: Values, where: str) -> Values:
        """Return the targets of a split in the form in which they are kept: float32, or int64 of whole numbers.

        `where` names the split in messages. Floats become float32 (N, K), with K = 1 for values (N,).

        Raises:
            UserError: targets that are no numbers, or not finite.
        """
        if values.dtype.kind not in "biuf":
            raise UserError(f"{where}: targets are of type {values.dtype}: give numbers.")
        if values.dtype.kind != "f":
            return values.astype(np.int64)
        check_finite(values, where)
        return (values if values.ndim > 1 else values[:, None]).astype(np.float32)

    def outputs(self, targets: Sequence[Values]) -> int:
        """Return the number of a model's outputs (`classes` of a model's factory) for the targets of all splits."""
        return int(targets[0].shape[1]) if targets[0].ndim > 1 else 1

    def output_shape(self, targets: Tensor, outputs: int) -> tuple[int, ...]:
        """Return the shape that a model's output must have for targets (N, ...): by default (N, outputs)."""
        return len(targets), outputs

    def strata(self, targets: Tensor) -> Tensor:
        """Return what stratified splits and label skew go by: int64 (N,) from 0, for targets (N, ...) of all splits.

        By default they are the targets if these are whole numbers (N,), else one stratum.
        """
        plain = targets.dim() == 1 and not targets.is_floating_point()
        return targets if plain else torch.zeros(len(targets), dtype=torch.int64, device=targets.device)

    def strata_names(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Return the names of the strata, given those of the outputs."""
        return names

    def read(
        self, splits: Mapping[str, Values], what: str, names: Sequence[str] | None = None
    ) -> tuple[dict[str, Values], tuple[str, ...]]:
        """Return the targets of each split as they are kept, and the names of the outputs.

        Splits are "train" and "test", or "whole". `what` names the data in messages, and `names` are the data's own
        names of the outputs, if it has any.

        Raises:
            UserError: targets that the task cannot learn; another number of names than outputs.
        """
        found = {split: self.targets(values, where(what, split)) for split, values in splits.items()}
        shapes = {split: values.shape[1:] for split, values in found.items()}
        if len(set(shapes.values())) > 1:
            raise UserError(
                f"{what}: training targets have shape {shapes['train']} and test targets {shapes['test']}: give both "
                "the same."
            )
        count = self.outputs(list(found.values()))
        own = tuple(names) if names is not None else tuple(map(str, range(count)))
        if len(own) < count:
            raise UserError(f"{what} has {len(own)} class names for {count} outputs: name each.")
        return found, own

    def stratify(self, train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
        """Return the strata of training and test targets, numbered alike; int64 (N,) each, on the targets' device."""
        both = self.strata(torch.cat([train, test]))
        return both[: len(train)], both[len(train) :]

    def named(self, name: str) -> str:
        """Return the name of a metric of this task, given that of classification: "accuracy_rank0", say."""
        return name.replace("accuracy", self.metric, 1)


def where(what: str, split: str) -> str:
    """Return the words for a split of the data in messages."""
    return what if split == "whole" else f"{what}, split {split}"


def check_finite(values: Values, where: str) -> None:
    """Raise `UserError` for targets (N, ...) that are not finite."""
    fine = np.isfinite(values).reshape(len(values), -1).all(1)
    if not fine.all():
        row = int(np.flatnonzero(~fine)[0])
        raise UserError(f"{where}: the target of sample {row} is not finite: leave such samples out.")
