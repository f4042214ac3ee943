"""From raw samples to a `Dataset`: convert to tensors, normalise per channel."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from syncnorm.data.dataset import Dataset, Scale
from syncnorm.data.mapped import chunks, is_mapped, room
from syncnorm.data.raw import Groups, Pixels, Signals
from syncnorm.data.split import Indices, Parts

Samples = NDArray[Any]
BYTE = 255


def normalised(
    name: str,
    raw: Pixels | Signals,
    parts: Parts,
    scale: Scale = "own",
    changes: Iterable[str] = (),
    on_disk: bool = False,
) -> Dataset:
    """Return these parts of `raw` as a `Dataset`: pixels scaled to [0, 1], then normalised per channel.

    With the scale "own", mean and (biased) standard deviation are those of the training samples, without those for
    validation; a constant channel is only centred. With "fixed", they are 0.5 and 0.5 for pixels, and `centre` and
    `unit` for signals, so that the shift between data sets is preserved. Signals without these are not changed, and
    the data set says so (`scaled`).

    The samples are copied part by part, with `on_disk` into files (`data.mapped`).
    """
    tested = (raw.test_x, raw.test_y) if len(raw.test_y) else (raw.train_x, raw.train_y)
    mean, std, scaled = _scale(raw, parts.train, scale, on_disk)
    white = np.iinfo(raw.train_x.dtype).max if isinstance(raw, Pixels) else 1
    # Columns of a table may be large numbers with small differences: float64 until they are normalised.
    work = torch.float64 if raw.train_x.dtype == np.float64 else torch.float32
    given = torch.float32 if scaled else work

    def part(x: Samples, index: Indices) -> Tensor:
        made = room((len(index), *x.shape[1:]), given, on_disk)
        for rows in chunks(len(index), x[:1].nbytes):
            taken = torch.from_numpy(np.ascontiguousarray(x[index[rows]]))
            made[rows] = taken.to(work, copy=True).div_(white).sub_(mean).div_(std)
        return made

    train_x, validation_x = part(raw.train_x, parts.train), part(raw.train_x, parts.validation)
    test_x = part(tested[0], parts.test)
    return Dataset(
        name=name,
        train_x=train_x,
        train_y=torch.from_numpy(raw.train_y[parts.train]),
        validation_x=validation_x,
        validation_y=torch.from_numpy(raw.train_y[parts.validation]),
        test_x=test_x,
        test_y=torch.from_numpy(tested[1][parts.test]),
        classes=len(raw.class_names),
        class_names=raw.class_names,
        note=raw.note,
        changes=(*raw.changes, *changes),
        natural=_of_parts(raw.natural, parts),
        domain=_of_parts(raw.domain, parts),
        scaled=scaled,
        task=raw.task,
        origin=torch.from_numpy(raw.origin.number[parts.test]) if raw.origin else None,
        train_origin=torch.from_numpy(raw.origin.number[parts.train]) if raw.origin else None,
    )


def _scale(raw: Pixels | Signals, index: Indices, scale: Scale, on_disk: bool) -> tuple[Tensor, Tensor, bool]:
    """Return the numbers to subtract and to divide by, for the training samples `index`, and whether there is a
    scale at all."""
    if isinstance(raw, Pixels):
        if scale == "own":
            return (*_channel_moments(raw.train_x, index), True)
        return torch.tensor(0.5), torch.tensor(0.5), True
    if raw.as_is:
        return torch.tensor(0.0), torch.tensor(1.0), True
    if scale == "own":
        dtype = torch.float64 if raw.train_x.dtype == np.float64 else torch.float32
        return (*_signal_moments(raw.train_x, index, dtype, on_disk), True)
    if raw.centre is None or raw.unit is None:
        return torch.tensor(0.0), torch.tensor(1.0), False
    by_channel = (1, -1, *(1,) * (raw.train_x.ndim - 2))
    centre, unit = (torch.from_numpy(part).float().view(by_channel) for part in (raw.centre, raw.unit))
    return centre, unit, True


def _channel_moments(x: Samples, index: Indices) -> tuple[Tensor, Tensor]:
    """Return each channel's mean and biased standard deviation: uint8 or uint16 (N, C, H, W) to float32 (1, C, 1, 1).

    They are those of the samples `index`, scaled to [0, 1], computed from counts of the 256 (or 65,536) values, so
    they are bit-identical for any number of threads. A constant channel gets the standard deviation 1.
    """
    white = int(np.iinfo(x.dtype).max)
    values = torch.arange(white + 1, dtype=torch.float64) / white
    counts = torch.zeros(x.shape[1], white + 1, dtype=torch.int64)
    for rows in chunks(len(index), x[:1].nbytes):
        taken = torch.from_numpy(np.ascontiguousarray(x[index[rows]]))
        for count, channel in zip(counts, (taken if white == BYTE else taken.to(torch.int32)).unbind(1), strict=True):
            count += torch.bincount(channel.flatten(), minlength=white + 1)
    share = counts.double() / counts.double().sum(1, keepdim=True)
    mean = (share * values).sum(1, keepdim=True)
    std = (share * (values - mean).square()).sum(1, keepdim=True).sqrt()
    std = torch.where(std > 0, std, torch.ones_like(std))
    return mean.float().view(1, -1, 1, 1), std.float().view(1, -1, 1, 1)


def signal_moments(x: Tensor, kept: Tensor | None = None, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Return each channel's mean and biased standard deviation: (N, C, ...) to (1, C, ...), as `dtype`.

    `kept` (N,) says which samples count, bool; None: all. Without `dtype` it is that of `x`. Sums are in float64 and
    in a fixed order, for any number of threads. A constant channel gets the standard deviation 1.
    """
    index = np.arange(len(x)) if kept is None else np.flatnonzero(kept.numpy())
    return _signal_moments(x.numpy(), index, dtype or x.dtype, is_mapped(x))


def _signal_moments(x: Samples, index: Indices, dtype: torch.dtype, on_disk: bool) -> tuple[Tensor, Tensor]:
    """As `signal_moments`; the float64 values lie in a file if `on_disk`."""
    values = room((len(index), *x.shape[1:]), torch.float64, on_disk).numpy()
    parts = list(chunks(len(index), values[:1].nbytes))
    for rows in parts:
        values[rows] = x[index[rows]]
    others = (0, *range(2, x.ndim))
    mean, constant = values.mean(others, keepdims=True), np.ptp(values, others, keepdims=True) == 0
    for rows in parts:
        values[rows] -= mean
        values[rows] *= values[rows]
    std = np.sqrt(values.mean(others, keepdims=True))
    std[constant] = 1
    return torch.from_numpy(mean).to(dtype), torch.from_numpy(std).to(dtype)


def _of_parts(column: Groups | None, parts: Parts) -> Groups | None:
    if column is None:
        return None
    tested = column.test if len(column.test) else column.train
    return Groups(column.names, column.train[parts.train], tested[parts.test])
