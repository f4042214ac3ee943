"""Check samples and targets of any kind, and number classes from 0.

All sources except generated ones use this, so that each mistake in labels gives the same message.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from syncnorm.data.mapped import chunks
from syncnorm.data.raw import Groups, Pixels, Signals
from syncnorm.errors import UserError
from syncnorm.tasks import task_named
from syncnorm.tasks.task import where

Values = NDArray[Any]
CHANGE_OF_LABELS = "labels that are whole numbers written as fractions are taken as classes"


class Split(NamedTuple):
    """Samples (N, ...), labels (numbers or words), and columns with each sample's origin."""

    x: Values
    y: Values
    natural: Values | None = None
    domain: Values | None = None


def assemble(
    splits: Mapping[str, Split],
    what: str,
    note: str,
    class_names: Sequence[str] | None = None,
    changes: Iterable[str] = (),
    task: str = "classification",
) -> Pixels | Signals:
    """Return the splits "train" and "test", or the one called "whole" as training samples without test samples.

    `what` names the data in errors. Without `class_names`, the classes are the sorted label values. With another
    `task` than classification, targets are what that task takes (`syncnorm.tasks`). Bytes and 16-bit numbers of shape
    (N, C, H, W) become `Pixels`, anything else `Signals`.

    Raises `UserError` for splits that are empty or differ in shape, and for labels that cannot be classes.
    """
    for name, split in splits.items():
        check_split(split, where(what, name))
    changed = list(changes)
    if task == "classification" and any(split.y.dtype.kind == "f" for split in splits.values()):
        changed.append(CHANGE_OF_LABELS)
    asked = task_named(task)
    labels, names = asked.read({name: split.y for name, split in splits.items()}, what, class_names)
    natural = _groups({name: split.natural for name, split in splits.items()}, what, "natural")
    domain = _groups({name: split.domain for name, split in splits.items()}, what, "domain")
    if "whole" in splits:
        x, y = splits["whole"].x, labels["whole"]
        samples = (x, y, x[:0], y[:0])
    else:
        shapes = {name: split.x.shape[1:] for name, split in splits.items()}
        if shapes["train"] != shapes["test"]:
            raise UserError(
                f"{what}: training samples have shape {shapes['train']} and test samples {shapes['test']}: give both "
                "the same."
            )
        types = {name: split.x.dtype for name, split in splits.items()}
        if types["train"] != types["test"]:
            raise UserError(
                f"{what}: training samples are of type {types['train']} and test samples of type {types['test']}: "
                "give both the same."
            )
        samples = (splits["train"].x, labels["train"], splits["test"].x, labels["test"])
    if samples[0].ndim == 4 and samples[0].dtype in (np.uint8, np.uint16):
        return Pixels(*samples, names, note, tuple(changed), natural, domain, task=task)
    return Signals(*samples, names, note, changes=tuple(changed), natural=natural, domain=domain, task=task)


def check_split(split: Split, where: str) -> None:
    """Raise `UserError` for a split that is empty, whose columns differ in length, or that has NaN in its samples."""
    if len(split.x) == 0:
        raise UserError(f"{where} is empty: it has no sample.")
    for column, values in (("labels", split.y), ("natural", split.natural), ("domain", split.domain)):
        if values is not None and len(values) != len(split.x):
            name = "labels" if column == "labels" else f"values of {column}"
            raise UserError(f"{where} has {len(split.x)} samples and {len(values)} {name}: give one for each sample.")
    if split.x.dtype.kind != "f":
        return
    for rows in chunks(len(split.x), split.x[:1].nbytes):
        finite = np.isfinite(split.x[rows].reshape(rows.stop - rows.start, -1)).all(1)
        if not finite.all():
            row = rows.start + int(np.flatnonzero(~finite)[0])
            raise UserError(
                f"{where}: sample {row} has a value that is not finite (NaN or infinite): fill it or leave it out."
            )


def _groups(columns: Mapping[str, Values | None], what: str, called: str) -> Groups | None:
    """Return a column of all splits; for the split "whole", all of it is in `train`."""
    given = {name: np.asarray(values) for name, values in columns.items() if values is not None}
    if not given:
        return None
    if len(given) < len(columns):
        missing = next(name for name in columns if name not in given)
        raise UserError(f"{where(what, missing)} has no column {called}, which the other split has: give it to both.")
    texts = {}
    for name, values in given.items():
        empty = [row for row, value in enumerate(values.tolist()) if value is None or value != value]
        if empty:
            raise UserError(
                f"{where(what, name)}: row {empty[0]} has no value of {called}: every sample must belong somewhere."
            )
        texts[name] = _places(values)
    if len({values.dtype.kind for values in texts.values()}) > 1:
        texts = {name: values.astype(str) for name, values in texts.items()}
    names = np.unique(np.concatenate(list(texts.values())))
    indices = {name: np.searchsorted(names, values).astype(np.int64) for name, values in texts.items()}
    train = indices["whole" if "whole" in indices else "train"]
    return Groups(tuple(str(name) for name in names), train, indices.get("test", np.zeros(0, np.int64)))


def _places(values: Values) -> Values:
    """Return the values of a column as int64, so that 2 sorts before 10, or as text."""
    values = np.array(values.tolist())
    if values.dtype.kind == "f" and (values == np.floor(values)).all():  # a table may turn 3 into 3.0
        return values.astype(np.int64)
    return values.astype(np.int64) if values.dtype.kind in "biu" else values.astype(str)
