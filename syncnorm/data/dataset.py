"""What every loader returns: images as tensors, normalised, with a fixed training and test split."""

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
"""own: by the mean and standard deviation of the training samples; fixed: to [-1, 1], whatever the data."""


class Pixels(NamedTuple):
    """A data set as it is cached: images uint8 (N, C, H, W), labels int64 (N,), class names, a note."""

    train_x: Bytes
    train_y: Labels
    test_x: Bytes
    test_y: Labels
    class_names: tuple[str, ...]
    note: str


@dataclass(frozen=True)
class Dataset:
    """Images and labels with a fixed split.

    `train_x`, `test_x`: float32 (N, C, H, W), normalised with the mean and standard deviation of each channel
    over the training split, or with 0.5 and 0.5 where `load` was given `scale="fixed"`; both splits use the same
    numbers. `train_y`, `test_y`: int64 (N,), values 0 .. classes-1. `note` says in one line what this is and where
    it comes from.
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
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image: (C, H, W)."""
        channels, height, width = self.train_x.shape[1:]
        return channels, height, width

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Dataset":
        """Return the data set on `device`, its images (not its labels) as `dtype`."""
        return replace(
            self,
            train_x=self.train_x.to(device, dtype),
            train_y=self.train_y.to(device),
            test_x=self.test_x.to(device, dtype),
            test_y=self.test_y.to(device),
        )


def normalised(
    name: str,
    pixels: Pixels,
    train_limit: int | None = None,
    test_limit: int | None = None,
    scale: Scale = "own",
) -> Dataset:
    """Return `pixels` as a `Dataset`: limited, scaled to [0, 1], then normalised per channel.

    A limit keeps that many samples, drawn by seed 0; of two limits the smaller keeps a subset of the larger.
    With the scale "own", mean and (biased) standard deviation are those of the training samples that are kept; a
    constant channel is only centred. With "fixed" both are 0.5: several data sets keep the shift between them.
    """
    train = _keep("train", len(pixels.train_y), train_limit)
    test = _keep("test", len(pixels.test_y), test_limit)
    kept = torch.from_numpy(np.ascontiguousarray(pixels.train_x[train]))
    mean, std = channel_moments(kept) if scale == "own" else (torch.tensor(0.5), torch.tensor(0.5))
    held_out = torch.from_numpy(np.ascontiguousarray(pixels.test_x[test]))
    train_x, test_x = (x.float().div_(255).sub_(mean).div_(std) for x in (kept, held_out))
    return Dataset(
        name=name,
        train_x=train_x,
        train_y=torch.from_numpy(pixels.train_y[train]),
        test_x=test_x,
        test_y=torch.from_numpy(pixels.test_y[test]),
        classes=len(pixels.class_names),
        class_names=pixels.class_names,
        note=pixels.note,
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
