"""What every loader returns: images or signals as tensors, normalised, with a fixed training and test split."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from syncnorm.seeds import derive

Bytes = NDArray[np.uint8]
Labels = NDArray[np.int64]
Scale = Literal["own", "fixed"]
"""own: by the mean and standard deviation of the training samples; fixed: by numbers that do not depend on them."""


class Pixels(NamedTuple):
    """A data set as it is cached: images uint8 (N, C, H, W), labels int64 (N,), class names, a note."""

    train_x: Bytes
    train_y: Labels
    test_x: Bytes
    test_y: Labels
    class_names: tuple[str, ...]
    note: str


class Signals(NamedTuple):
    """A data set of signals: float32 (N, C, L) in physical units, labels int64 (N,), class names, a note.

    `centre` and `unit`, float32 (C,), are what the fixed scale subtracts from each channel and divides it by: the
    same for all data sets that are domains of one task.
    """

    train_x: NDArray[np.float32]
    train_y: Labels
    test_x: NDArray[np.float32]
    test_y: Labels
    class_names: tuple[str, ...]
    note: str
    centre: NDArray[np.float32]
    unit: NDArray[np.float32]


@dataclass(frozen=True)
class Dataset:
    """Images or signals, and labels, with a fixed split.

    `train_x`, `test_x`: float32, images (N, C, H, W) or signals (N, C, L), normalised with the mean and standard
    deviation of each channel over the training split, or, where `load` was given `scale="fixed"`, images with 0.5 and
    0.5 and signals with their `centre` and `unit`; both splits use the same numbers. `train_y`, `test_y`: int64 (N,),
    values 0 .. classes-1. `note` says in one line what this is and where it comes from.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int
    class_names: tuple[str, ...]
    note: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample: (C, H, W) of an image, (C, L) of a signal."""
        return tuple(self.train_x.shape[1:])

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Dataset":
        """Return the data set on `device`, its samples (not its labels) as `dtype`."""
        return replace(
            self,
            train_x=self.train_x.to(device, dtype),
            train_y=self.train_y.to(device),
            test_x=self.test_x.to(device, dtype),
            test_y=self.test_y.to(device),
        )


def normalised(
    name: str,
    raw: Pixels | Signals,
    train_limit: int | None = None,
    test_limit: int | None = None,
    scale: Scale = "own",
) -> Dataset:
    """Return `raw` as a `Dataset`: limited, pixels scaled to [0, 1], then normalised per channel.

    A limit keeps that many samples, drawn by seed 0; of two limits the smaller keeps a subset of the larger.
    With the scale "own", mean and (biased) standard deviation are those of the training samples that are kept; a
    constant channel is only centred. With "fixed" both are 0.5 for pixels, `centre` and `unit` for signals: several
    data sets keep the shift between them.
    """
    train = _keep("train", len(raw.train_y), train_limit)
    test = _keep("test", len(raw.test_y), test_limit)
    kept = torch.from_numpy(np.ascontiguousarray(raw.train_x[train]))
    held_out = torch.from_numpy(np.ascontiguousarray(raw.test_x[test]))
    if isinstance(raw, Pixels):
        white = 255
        mean, std = channel_moments(kept) if scale == "own" else (torch.tensor(0.5), torch.tensor(0.5))
    else:
        white = 1
        fixed = (torch.from_numpy(part).float().view(1, -1, 1) for part in (raw.centre, raw.unit))
        mean, std = signal_moments(kept) if scale == "own" else fixed
    train_x, test_x = (x.to(torch.float32, copy=True).div_(white).sub_(mean).div_(std) for x in (kept, held_out))
    return Dataset(
        name=name,
        train_x=train_x,
        train_y=torch.from_numpy(raw.train_y[train]),
        test_x=test_x,
        test_y=torch.from_numpy(raw.test_y[test]),
        classes=len(raw.class_names),
        class_names=raw.class_names,
        note=raw.note,
    )


def channel_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return each channel's mean and biased standard deviation: uint8 (N, C, H, W) to float32 (1, C, 1, 1).

    They are those of pixels scaled to [0, 1], taken from counts of the 256 values: the same to the last bit
    for any number of threads. A constant channel gets the standard deviation 1.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in x.unbind(1)]).double()
    share = counts / counts.sum(1, keepdim=True)
    mean = (share * values).sum(1, keepdim=True)
    std = (share * (values - mean).square()).sum(1, keepdim=True).sqrt()
    std = torch.where(std > 0, std, torch.ones_like(std))
    return mean.float().view(1, -1, 1, 1), std.float().view(1, -1, 1, 1)


def signal_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return each channel's mean and biased standard deviation: float32 (N, C, L) to float32 (1, C, 1).

    Summed in float64 and one order, whatever the number of threads. A constant channel gets the standard deviation 1.
    """
    values = x.numpy().astype(np.float64)
    mean, std = values.mean((0, 2), keepdims=True), values.std((0, 2), keepdims=True)
    std[np.ptp(values, (0, 2), keepdims=True) == 0] = 1
    return torch.from_numpy(mean).float(), torch.from_numpy(std).float()


def stratified_fifth(labels: Sequence[Any] | NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return sorted indices (train, test): a random fifth of every class is test, by seed 0.

    Every class gives a fifth of its samples, rounded up or down.
    """
    array = np.asarray(labels)
    mixed = np.random.default_rng(derive("split", 0)).permutation(len(array))
    by_class = mixed[np.argsort(array[mixed], kind="stable")]
    test = np.zeros(len(array), dtype=bool)
    test[by_class[::5]] = True
    return np.flatnonzero(~test), np.flatnonzero(test)


def _keep(split: str, count: int, limit: int | None) -> NDArray[np.int64] | slice:
    if limit is None or limit >= count:
        return slice(None)
    chosen = np.random.default_rng(derive("limit", 0, split)).permutation(count)[:limit]
    return np.sort(chosen)
