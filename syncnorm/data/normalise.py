"""From raw samples to a `Dataset`: convert to tensors, normalise per channel."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from syncnorm.data.dataset import Dataset, Scale
from syncnorm.data.raw import Groups, Pixels, Signals
from syncnorm.data.split import Parts


def normalised(
    name: str, raw: Pixels | Signals, parts: Parts, scale: Scale = "own", changes: Iterable[str] = ()
) -> Dataset:
    """Return these parts of `raw` as a `Dataset`: pixels scaled to [0, 1], then normalised per channel.

    With the scale "own", mean and (biased) standard deviation are those of the training samples, without those for
    validation; a constant channel is only centred. With "fixed", they are 0.5 and 0.5 for pixels, and `centre` and
    `unit` for signals, so that the shift between data sets is preserved. Signals without these are not changed, and
    the data set says so (`scaled`).
    """
    tested = (raw.test_x, raw.test_y) if len(raw.test_y) else (raw.train_x, raw.train_y)
    kept, held_out, test = (
        torch.from_numpy(np.ascontiguousarray(x[index]))
        for x, index in zip((raw.train_x, raw.train_x, tested[0]), parts, strict=True)
    )
    mean, std, scaled = _scale(raw, kept, scale)
    white = torch.iinfo(kept.dtype).max if isinstance(raw, Pixels) else 1
    # Columns of a table may be large numbers with small differences: float64 until they are normalised.
    work = torch.float64 if kept.dtype == torch.float64 else torch.float32
    given = torch.float32 if scaled else work
    train_x, validation_x, test_x = (
        x.to(work, copy=True).div_(white).sub_(mean).div_(std).to(given) for x in (kept, held_out, test)
    )
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


def _scale(raw: Pixels | Signals, kept: Tensor, scale: Scale) -> tuple[Tensor, Tensor, bool]:
    """Return the numbers to subtract and to divide by, and whether there is a scale at all."""
    if isinstance(raw, Pixels):
        return (*channel_moments(kept), True) if scale == "own" else (torch.tensor(0.5), torch.tensor(0.5), True)
    if raw.as_is:
        return torch.tensor(0.0), torch.tensor(1.0), True
    if scale == "own":
        return (*signal_moments(kept), True)
    if raw.centre is None or raw.unit is None:
        return torch.tensor(0.0), torch.tensor(1.0), False
    by_channel = (1, -1, *(1,) * (kept.ndim - 2))
    centre, unit = (torch.from_numpy(part).float().view(by_channel) for part in (raw.centre, raw.unit))
    return centre, unit, True


def channel_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return each channel's mean and biased standard deviation: uint8 or uint16 (N, C, H, W) to float32 (1, C, 1, 1).

    They are those of pixels scaled to [0, 1], computed from counts of the 256 (or 65,536) values, so they are
    bit-identical for any number of threads. A constant channel gets the standard deviation 1.
    """
    white = torch.iinfo(x.dtype).max
    values = torch.arange(white + 1, dtype=torch.float64) / white
    channels = (x if x.dtype == torch.uint8 else x.to(torch.int32)).unbind(1)
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=white + 1) for channel in channels]).double()
    share = counts / counts.sum(1, keepdim=True)
    mean = (share * values).sum(1, keepdim=True)
    std = (share * (values - mean).square()).sum(1, keepdim=True).sqrt()
    std = torch.where(std > 0, std, torch.ones_like(std))
    return mean.float().view(1, -1, 1, 1), std.float().view(1, -1, 1, 1)


def signal_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return each channel's mean and biased standard deviation: (N, C, ...) to (1, C, ...), in the type of `x`.

    Sums are in float64 and in a fixed order, for any number of threads. A constant channel gets the standard
    deviation 1.
    """
    values = x.numpy().astype(np.float64)
    others = (0, *range(2, x.ndim))
    mean, std = values.mean(others, keepdims=True), values.std(others, keepdims=True)
    std[np.ptp(values, others, keepdims=True) == 0] = 1
    return torch.from_numpy(mean).to(x.dtype), torch.from_numpy(std).to(x.dtype)


def _of_parts(column: Groups | None, parts: Parts) -> Groups | None:
    if column is None:
        return None
    tested = column.test if len(column.test) else column.train
    return Groups(column.names, column.train[parts.train], tested[parts.test])
