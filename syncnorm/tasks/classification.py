"""Classification: one class a sample."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from syncnorm.errors import UserError
from syncnorm.tasks.task import Task, Values, where

Labels = NDArray[np.int64]
PER_CLASS = 2
"""Minimum mean number of samples per class: labels with fewer are row numbers or measured values."""


class Classification(Task):
    """One class a sample: cross-entropy, judged by accuracy.

    Outputs are logits (N, classes), targets int64 (N,) from 0; losses are in nats.
    """

    metric: ClassVar[str] = "accuracy"

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return each sample's cross-entropy in nats: (N,)."""
        return F.cross_entropy(outputs, targets, reduction="none")

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of the batch, in nats."""
        return F.cross_entropy(outputs, targets)

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return whether each sample's largest logit is that of its class: bool (N,)."""
        return outputs.argmax(1) == targets

    def read(
        self, splits: Mapping[str, Values], what: str, names: Sequence[str] | None = None
    ) -> tuple[dict[str, Values], tuple[str, ...]]:
        """Return labels as 0 .. classes - 1 and the class names; see `class_indices`."""
        return class_indices(splits, what, names)

    def strata(self, targets: Tensor) -> Tensor:
        """Return the labels."""
        return targets


def class_indices(
    labels: Mapping[str, Values], what: str, class_names: Sequence[str] | None = None
) -> tuple[dict[str, Values], tuple[str, ...]]:
    """Return labels as 0 .. classes-1, and the class names; without given names, these are the sorted label values.

    Raises `UserError` for labels that are missing, not whole or negative, for one class alone, and for about as many
    different labels as samples.
    """
    plain = {name: _plain(values, where(what, name)) for name, values in labels.items()}
    kinds = {values.dtype.kind for values in plain.values()}
    if len(kinds) > 1:
        raise UserError(f"{what}: labels are numbers in one split and words in the other: write them alike.")
    everything = np.concatenate(list(plain.values()))
    found = np.unique(everything)
    if found.dtype.kind == "i" and found[0] < 0:
        raise UserError(f"{what}: label {found[0]} stands for no class; leave out the samples without a label.")
    if len(found) > 2 and PER_CLASS * len(found) > len(everything):
        raise UserError(
            f"{what}: {len(found)} different labels on {len(everything)} samples look like numbers of rows or "
            "measured values, not like classes: name the column of classes in data.label, or leave out classes with "
            "one sample."
        )
    trained = np.unique(plain["whole" if "whole" in plain else "train"])
    if len(trained) == 1:
        raise UserError(
            f"{what}: every training sample has the label '{_name(trained[0], class_names)}', and a classifier needs "
            "two classes or more: give data of other classes too."
        )
    if class_names is None:
        return {name: np.searchsorted(found, values).astype(np.int64) for name, values in plain.items()}, tuple(
            str(value) for value in found
        )
    return {name: _named(values, tuple(class_names), what) for name, values in plain.items()}, tuple(class_names)


def _plain(values: Values, where: str) -> Values:
    """Return labels as int64 or text."""
    if values.ndim != 1:
        raise UserError(
            f"{where}: labels have shape {values.shape}: give one class a sample, its number or its name, or "
            "set task (to segmentation, multi_label or regression, say)."
        )
    if values.dtype.kind == "O":
        values = np.array(values.tolist())
    if values.dtype.kind == "f":
        _check_whole(values, where)
    elif values.dtype.kind not in "biuUT":
        raise UserError(f"{where}: labels are of type {values.dtype}: give the number or the name of a class.")
    return values.astype(str) if values.dtype.kind in "UT" else values.astype(np.int64)


def _check_whole(values: Values, where: str) -> None:
    if np.isnan(values).any():
        raise UserError(f"{where}: row {int(np.flatnonzero(np.isnan(values))[0])} has no label: leave such rows out.")
    fractions = values[values != np.floor(values)]
    if len(fractions):
        raise UserError(
            f"{where}: label {fractions[0]:g} is no whole number: labels must be classes, so turn measured values "
            "into classes first, or set task to regression."
        )


def _named(values: Values, class_names: tuple[str, ...], what: str) -> Labels:
    """Return labels as positions in `class_names`; they are such positions or names."""
    if values.dtype.kind == "i":
        if values.max() >= len(class_names):
            raise UserError(
                f"{what}: label {values.max()} is beyond the {len(class_names)} class names: labels count from 0."
            )
        return values
    strange = set(values.tolist()) - set(class_names)
    if strange:
        raise UserError(f"{what}: label '{min(strange)}' is not among the class names {', '.join(class_names)}.")
    place = {name: index for index, name in enumerate(class_names)}
    return np.array([place[value] for value in values.tolist()], dtype=np.int64)


def _name(value: Any, class_names: Sequence[str] | None) -> str:
    if class_names is None or isinstance(value, str) or not 0 <= value < len(class_names):
        return str(value)
    return str(class_names[value])
