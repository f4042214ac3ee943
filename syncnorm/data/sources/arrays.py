"""The possible return values of a registered data set's function: arrays, PyTorch data sets, or a `Dataset`.

The forms, for training and test separately or for a whole, of which a stratified
fifth is the test:

    (x, y)                                     the whole, as arrays or tensors
    torch Dataset of (sample, label)           the whole
    (train, test), {"train": ..., "test": ...} each one of the forms above
    {"x": x, "y": y, ...}                      a form above with columns; also for "train" and "test"
    syncnorm.data.Dataset                      already normalised

A dict may have the columns `natural` and `domain`, with one value per sample, and, at the top level, `class_names`
and `note`. Samples are images (C, H, W), or (H, W) of bytes, signals (C, L) or feature vectors (F,). Bytes and 16-bit
numbers are pixels, with the type's largest value as white; other numbers are used unchanged. Channels in the last
dimension are moved to the first. Labels are classes, (N,); with another task they are its targets (`syncnorm.tasks`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset

from syncnorm.data.dataset import Dataset
from syncnorm.data.raw import Pixels, Signals
from syncnorm.data.sources.assemble import Split, Values, assemble, check_split
from syncnorm.data.sources.decode import SIXTEEN, pixels_of, stack
from syncnorm.errors import UserError
from syncnorm.tasks import task_named
from syncnorm.tasks.task import where

COLUMNS = ("x", "y", "natural", "domain")
EXTRAS = ("class_names", "note")
FORMS = (
    "return (x, y), a torch Dataset of (sample, label), a dict with x and y, a pair or a dict of these for train and "
    "test, or a syncnorm.data.Dataset"
)
LAST = "channels moved from last to first"
CHANNELS = (1, 3, 4)
"""Possible numbers of channels of an image with channels last."""


def from_registered(returned: Any, name: str, task: str = "classification") -> Pixels | Signals:
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
    changes: list[str] = []
    splits = {split: _split(part, where(what, split), changes) for split, part in _parts(returned, what).items()}
    if any(split.x.dtype == np.uint16 for split in splits.values()):
        changes.append(SIXTEEN)
    names = extras.get("class_names")
    note = str(extras.get("note", f"registered as {name}"))
    given = tuple(map(str, names)) if names is not None else None
    return assemble(splits, what, note, given, dict.fromkeys(changes), task)


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
    if isinstance(returned, TorchDataset):
        return {"whole": returned}
    if isinstance(returned, tuple | list) and len(returned) == 2:
        if all(_is_part(part) for part in returned):
            return {"train": returned[0], "test": returned[1]}
        return {"whole": returned}
    raise UserError(f"{what} is {_described(returned)}: {FORMS}.")


def _is_part(part: Any) -> bool:
    """Return whether a member of a pair is a split, not an array."""
    pair = isinstance(part, tuple | list) and len(part) == 2 and all(_is_array(one) for one in part)
    return pair or isinstance(part, Mapping | TorchDataset)


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | Tensor) or (isinstance(value, Sequence) and not isinstance(value, str))


def _split(part: Any, where: str, changes: list[str]) -> Split:
    if isinstance(part, TorchDataset):
        return _read_torch(part, where, changes)
    if isinstance(part, Mapping):
        if "x" not in part or "y" not in part or set(part) - set(COLUMNS):
            keys = ", ".join(map(str, part)) or "none"
            raise UserError(
                f"{where} is a dict with the keys {keys}: it needs x and y, and may have natural, domain."
            )
        columns = {key: None if part[key] is None else _array(part[key], where, key) for key in part}
    elif isinstance(part, tuple | list) and len(part) == 2:
        columns = {"x": _array(part[0], where, "x"), "y": _array(part[1], where, "y")}
    else:
        raise UserError(f"{where} is {_described(part)}: {FORMS}.")
    x, y = columns["x"], columns["y"]
    if x is None or y is None:
        raise UserError(f"{where} has None for its samples or labels: {FORMS}.")
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    return Split(_samples(x, where, changes), y, columns.get("natural"), columns.get("domain"))


def _read_torch(data: Any, where: str, changes: list[str]) -> Split:
    """Read all items of a map-style data set."""
    if isinstance(data, IterableDataset) or not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise UserError(
            f"{where} is a {type(data).__name__} without a length: give a data set with __len__ and __getitem__, "
            "since all samples are kept in memory."
        )
    if len(data) == 0:
        raise UserError(f"{where} is empty: it has no sample.")
    samples, labels = [], []
    for row in range(len(data)):
        item = data[row]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise UserError(f"{where}: item {row} is {_described(item)}: each item must be (sample, label).")
        samples.append(item[0])
        labels.append(item[1].item() if isinstance(item[1], Tensor) and item[1].numel() == 1 else item[1])
    y = _stacked(labels, where) if isinstance(labels[0], Tensor) else _array(labels, where, "y")
    return Split(_samples(_stacked(samples, where), where, changes), y)


def _stacked(samples: Sequence[Any], where: str) -> Values:
    """Return separate samples (images, tensors or arrays) as one array."""
    if hasattr(samples[0], "convert") and hasattr(samples[0], "mode"):  # a PIL image
        pictures = [pixels_of(one, f"{where}: image {row}") for row, one in enumerate(samples)]
        return stack({"whole": pictures}, where, "resize them in the data set's own transform")["whole"]
    arrays = [_array(one, where, f"sample {row}") for row, one in enumerate(samples)]
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        few = " and ".join(str(shape) for shape in sorted(shapes)[:2])
        raise UserError(f"{where}: samples have different shapes ({few}): bring all to one.")
    return np.stack(arrays)


def _array(value: Any, where: str, called: str) -> Values:
    """Return a tensor, an array or nested lists as an array."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return np.asarray(value.float() if value.dtype in (torch.bfloat16, torch.float16) else value)
    if called == "x" and isinstance(value, tuple | list) and len(value) and not np.isscalar(value[0]):
        return _stacked(value, where)
    try:
        array: Values = np.asarray(value)
    except ValueError as error:
        raise UserError(f"{where}: {called} has parts of different sizes: bring all to one.") from error
    return array


def _samples(x: Values, where: str, changes: list[str]) -> NDArray[Any]:
    """Return samples as pixels (N, C, H, W) or as finite floats (N, C, H, W), (N, C, L) or (N, F)."""
    pixels = x.dtype.kind == "u" and x.dtype.itemsize <= 2
    if pixels and x.ndim == 3:
        x = x[:, None]
    if x.dtype.kind not in "biuf":
        raise UserError(f"{where}: samples are of type {x.dtype}: give numbers.")
    if x.ndim not in (2, 3, 4) or 0 in x.shape[1:]:
        raise UserError(
            f"{where}: samples have shape {x.shape[1:]}: a sample is an image (C, H, W), a signal (C, L) or a "
            "feature vector (F,)."
        )
    if x.ndim == 4 and x.shape[1] not in CHANNELS and x.shape[3] in CHANNELS:
        x = x.transpose(0, 3, 1, 2)
        changes.append(LAST)
    if pixels and x.ndim == 4:
        return np.ascontiguousarray(x.astype(x.dtype.newbyteorder("=")))
    # Features may be large numbers with small differences: they are normalised in float64.
    return np.ascontiguousarray(x, dtype=np.float64 if x.ndim == 2 else np.float32)


def _described(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
