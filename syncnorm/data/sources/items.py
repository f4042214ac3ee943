"""Samples that a registered data set has one by one, and arrays that it has whole, as arrays of a known form."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from syncnorm.data.mapped import chunks
from syncnorm.data.sources.assemble import Split, Values
from syncnorm.data.sources.decode import pixels_of, stack
from syncnorm.data.sources.spool import Spool, stack_on_disk
from syncnorm.data.sources.tables import LABEL_NAMES
from syncnorm.errors import UserError

LAST = "channels moved from last to first"
CHANNELS = (1, 3, 4)
"""Possible numbers of channels of an image with channels last."""
RESIZE = "resize them in the data set's own transform"


@dataclass
class Reading:
    """What is known while the splits of a data set are read."""

    on_disk: bool = False
    """Whether samples are put into files."""
    changes: list[str] = field(default_factory=list)
    """Conversions, one phrase each."""
    names: tuple[str, ...] | None = None
    """Names of classes, if a split says them."""


def is_dataset(value: Any) -> bool:
    """Return whether something gives its samples one by one: a data set of torch or of Hugging Face."""
    return isinstance(value, TorchDataset) or (hasattr(value, "features") and hasattr(value, "__iter__"))


def read_items(data: Any, where: str, reading: Reading) -> Split:
    """Read all items of a data set, in its order; those of a stream go into a file.

    Raises `UserError` for a stream that is not to be kept on disk, and for items that are no pair of a sample and a
    label.
    """
    sized = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    if not sized and not reading.on_disk:
        raise UserError(
            f"{where} is a {type(data).__name__} without a length, a stream: set data.on_disk, which writes it to a "
            "file, so that epochs have an exact order, or give a data set with __len__ and __getitem__."
        )
    if sized and len(data) == 0:
        raise UserError(f"{where} is empty: it has no sample.")
    labels: list[Any] = []
    items = (data[row] for row in range(len(data))) if sized else iter(data)
    x = _collected(_samples_in(items, labels, where), where, reading)
    if isinstance(labels[0], Tensor):
        y = stacked(labels, where)
    else:
        y = array_of(labels, where, "y")
        reading.names = _class_names(data) or reading.names
    return Split(x, y)


def _samples_in(items: Iterable[Any], labels: list[Any], where: str) -> Iterator[Any]:
    """Yield the samples of items, and append their labels."""
    for row, item in enumerate(items):
        sample, label = _pair(item, f"{where}: item {row}")
        labels.append(label.item() if isinstance(label, Tensor) and label.numel() == 1 else label)
        yield sample


def _pair(item: Any, place: str) -> tuple[Any, Any]:
    """Return the sample and the label of an item: a pair, or a row with a label of a usual name."""
    if isinstance(item, tuple | list) and len(item) == 2:
        return item[0], item[1]
    if not isinstance(item, Mapping):
        raise UserError(f"{place} is {described(item)}: each item must be (sample, label).")
    label = next((name for name in LABEL_NAMES if name in item), None)
    others = [name for name in item if name != label]
    sample = "image" if "image" in others else others[0] if len(others) == 1 else None
    if label is None or sample is None:
        raise UserError(
            f"{place} is a row with the columns {', '.join(map(str, item))}: it needs a label and one more, called "
            "image if there are several, so keep these alone, or make the items (sample, label)."
        )
    return item[sample], item[label]


def _class_names(data: Any) -> tuple[str, ...] | None:
    """Return the names of the classes of a Hugging Face data set that knows them."""
    features = getattr(data, "features", None) or {}
    label = next((name for name in LABEL_NAMES if name in features), None)
    names = getattr(features[label], "names", None) if label else None
    return tuple(map(str, names)) if names else None


def _collected(samples: Iterator[Any], where: str, reading: Reading) -> Values:
    """Return separate samples as one array, as `samples_of` gives it."""
    if not reading.on_disk:
        listed = list(samples)
        return samples_of(stacked(listed, where), where, reading.changes)
    first = next(samples, None)
    if first is None:
        raise UserError(f"{where} is empty: it has no sample.")
    everything = chain((first,), samples)
    if _is_picture(first):
        pictures = (pixels_of(one, f"{where}: image {row}") for row, one in enumerate(everything))
        return stack_on_disk({"whole": pictures}, where, RESIZE)["whole"]
    spool, seen = Spool(where), reading.changes
    for row, one in enumerate(everything):
        spool.add(samples_of(array_of(one, where, f"sample {row}")[None], where, seen))
        seen = []  # of the others, it is the same
    return spool.array()


def all_samples(x: Values, where: str, reading: Reading) -> Values:
    """Return samples as of `samples_of`; what has to be converted goes part by part into a file, if so asked."""
    like = samples_of(x[:1], where, [])
    alike = like.dtype == x.dtype and like.shape == x[:1].shape and x.flags.c_contiguous
    if alike or not reading.on_disk:
        return samples_of(x, where, reading.changes)
    spool = Spool(where)
    for rows in chunks(len(x), like.nbytes):
        spool.add(samples_of(x[rows], where, reading.changes))
    return spool.array()


def _is_picture(sample: Any) -> bool:
    return hasattr(sample, "convert") and hasattr(sample, "mode")  # a PIL image


def stacked(samples: Sequence[Any], where: str) -> Values:
    """Return separate samples (images, tensors or arrays) as one array."""
    if _is_picture(samples[0]):
        pictures = [pixels_of(one, f"{where}: image {row}") for row, one in enumerate(samples)]
        return stack({"whole": pictures}, where, RESIZE)["whole"]
    arrays = [array_of(one, where, f"sample {row}") for row, one in enumerate(samples)]
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        few = " and ".join(str(shape) for shape in sorted(shapes)[:2])
        raise UserError(f"{where}: samples have different shapes ({few}): bring all to one.")
    return np.stack(arrays)


def array_of(value: Any, where: str, called: str) -> Values:
    """Return a tensor, an array or nested lists as an array."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return np.asarray(value.float() if value.dtype in (torch.bfloat16, torch.float16) else value)
    if called == "x" and isinstance(value, tuple | list) and len(value) and not np.isscalar(value[0]):
        return stacked(value, where)
    try:
        array: Values = np.asarray(value)
    except ValueError as error:
        raise UserError(f"{where}: {called} has parts of different sizes: bring all to one.") from error
    return array


def samples_of(x: Values, where: str, changes: list[str]) -> NDArray[Any]:
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
        return np.ascontiguousarray(x.astype(x.dtype.newbyteorder("="), copy=False))
    # Features may be large numbers with small differences: they are normalised in float64.
    return np.ascontiguousarray(x, dtype=np.float64 if x.ndim == 2 else np.float32)


def described(value: Any) -> str:
    """Return what something is, in a few words."""
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
