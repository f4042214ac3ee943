"""The possible return values of a registered data set's function: arrays, PyTorch data sets, or a `Dataset`.

The forms, for training and test separately or for a whole, of which a stratified
fifth is the test:

    (x, y)                                     the whole, as arrays or tensors
    torch Dataset of (sample, label)           the whole
    Hugging Face Dataset of rows               the whole; a DatasetDict has train and test
    (train, test), {"train": ..., "test": ...} each one of the forms above
    {"x": x, "y": y, ...}                      a form above with columns; also for "train" and "test"
    syncnorm.data.Dataset                      already normalised

A dict may have the columns `natural` and `domain`, with one value per sample, and, at the top level, `class_names`
and `note`. Samples are images (C, H, W), or (H, W) of bytes, signals (C, L) or feature vectors (F,). Bytes and 16-bit
numbers are pixels, with the type's largest value as white; other numbers are used unchanged. Channels in the last
dimension are moved to the first. Labels are classes, (N,); with another task they are its targets (`syncnorm.tasks`).

A data set without a length (a stream, such as those of Hugging Face) is read once, from its beginning to its end,
into a file: this needs `data.on_disk`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from syncnorm.data.dataset import Dataset
from syncnorm.data.raw import Pixels, Signals
from syncnorm.data.sources.assemble import Split, assemble, check_split
from syncnorm.data.sources.decode import SIXTEEN
from syncnorm.data.sources.items import Reading, all_samples, array_of, described, is_dataset, read_items
from syncnorm.errors import UserError
from syncnorm.tasks import task_named
from syncnorm.tasks.task import where

COLUMNS = ("x", "y", "natural", "domain")
EXTRAS = ("class_names", "note")
FORMS = (
    "return (x, y), a torch Dataset of (sample, label), a dict with x and y, a pair or a dict of these for train and "
    "test, or a syncnorm.data.Dataset"
)


def from_registered(
    returned: Any, name: str, task: str = "classification", on_disk: bool = False
) -> Pixels | Signals:
    """Check and return the result of the function registered as `name`; see above for the possible forms.

    Raises `UserError` for any other form, for samples that are missing, not finite, of different sizes or of an
    unsupported shape, and for labels that cannot be classes, or that `task` cannot learn.
    """
    what = f"data set '{name}'"
    if isinstance(returned, Dataset):
        return _from_dataset(returned, what, task)
    extras: dict[str, Any] = {}
    if isinstance(returned, Mapping):
        extras = {key: returned[key] for key in EXTRAS if key in returned}
        returned = {key: value for key, value in returned.items() if key not in EXTRAS}
    reading = Reading(on_disk)
    splits = {split: _split(part, where(what, split), reading) for split, part in _parts(returned, what).items()}
    if any(split.x.dtype == np.uint16 for split in splits.values()):
        reading.changes.append(SIXTEEN)
    names = extras.get("class_names", reading.names if task == "classification" else None)
    note = str(extras.get("note", f"registered as {name}"))
    given = tuple(map(str, names)) if names is not None else None
    return assemble(splits, what, note, given, dict.fromkeys(reading.changes), task)


def _from_dataset(data: Dataset, what: str, task: str) -> Signals:
    if len(data.validation_y):
        raise UserError(
            f"{what} has validation samples of its own: make them training samples, and set data.validation."
        )
    train_x, test_x = (x.detach().cpu().float().numpy() for x in (data.train_x, data.test_x))
    for split, x, labels in (("train", train_x, data.train_y), ("test", test_x, data.test_y)):
        check_split(Split(x, labels.cpu().numpy()), where(what, split))
        if task == "classification" and _are_no_classes(labels, data.class_names):
            raise UserError(
                f"{where(what, split)}: labels must be int64 from 0 to {len(data.class_names) - 1}, one number for "
                "each of class_names."
            )
    y = {"train": data.train_y.cpu().numpy(), "test": data.test_y.cpu().numpy()}
    if task != "classification":
        y, _ = task_named(task).read(y, what, data.class_names)
    return Signals(
        train_x,
        y["train"],
        test_x,
        y["test"],
        data.class_names,
        data.note,
        changes=data.changes,
        natural=data.natural,
        domain=data.domain,
        as_is=True,
        task=task,
    )


def _are_no_classes(y: Tensor, class_names: Sequence[str]) -> bool:
    return y.dtype != torch.int64 or bool(y.min() < 0 or y.max() >= len(class_names))


def _parts(returned: Any, what: str) -> dict[str, Any]:
    """Return the part of each split, of "train" and "test" or of the "whole"."""
    if isinstance(returned, Mapping):
        if "x" in returned:
            return {"whole": returned}
        if set(returned) == {"train", "test"}:
            return {"train": returned["train"], "test": returned["test"]}
        if set(returned) == {"train"}:
            return {"whole": returned["train"]}
        keys = ", ".join(map(str, returned)) or "none"
        raise UserError(f"{what} is a dict with the keys {keys}: it needs train and test, or x and y.")
    if is_dataset(returned):
        return {"whole": returned}
    if isinstance(returned, tuple | list) and len(returned) == 2:
        if all(_is_part(part) for part in returned):
            return {"train": returned[0], "test": returned[1]}
        return {"whole": returned}
    raise UserError(f"{what} is {described(returned)}: {FORMS}.")


def _is_part(part: Any) -> bool:
    """Return whether a member of a pair is a split, not an array."""
    pair = isinstance(part, tuple | list) and len(part) == 2 and all(_is_array(one) for one in part)
    return pair or isinstance(part, Mapping) or is_dataset(part)


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | Tensor) or (isinstance(value, Sequence) and not isinstance(value, str))


def _split(part: Any, where: str, reading: Reading) -> Split:
    if is_dataset(part):
        return read_items(part, where, reading)
    if isinstance(part, Mapping):
        if "x" not in part or "y" not in part or set(part) - set(COLUMNS):
            keys = ", ".join(map(str, part)) or "none"
            raise UserError(
                f"{where} is a dict with the keys {keys}: it needs x and y, and may have natural, domain."
            )
        columns = {key: None if part[key] is None else array_of(part[key], where, key) for key in part}
    elif isinstance(part, tuple | list) and len(part) == 2:
        columns = {"x": array_of(part[0], where, "x"), "y": array_of(part[1], where, "y")}
    else:
        raise UserError(f"{where} is {described(part)}: {FORMS}.")
    x, y = columns["x"], columns["y"]
    if x is None or y is None:
        raise UserError(f"{where} has None for its samples or labels: {FORMS}.")
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    return Split(all_samples(x, where, reading), y, columns.get("natural"), columns.get("domain"))
