"""Batched augmentation: random numbers drawn for the whole global batch, then applied to any part of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from syncnorm.errors import UserError
from syncnorm.seeds import derive
from syncnorm.tasks import task_named

Kind = Literal["none", "shift", "shift_flip"]


@dataclass(frozen=True)
class Draw:
    """The augmentation of n images: a shift by whole pixels (int64 (n,)), then a horizontal flip (bool (n,))."""

    down: Tensor
    right: Tensor
    mirror: Tensor
    reach: int
    """The largest possible shift, in pixels."""

    def of_rank(self, rank: int, ranks: int) -> "Draw":
        """Return the part of one rank: images rank, rank + ranks, ... of the global batch."""
        part = slice(rank, None, ranks)
        return Draw(self.down[part], self.right[part], self.mirror[part], self.reach)


def check_augment(kind: Kind, name: str, shape: Sequence[int], task: str = "classification") -> None:
    """Raise `UserError` if the samples of data set `name`, of `shape` without N, cannot be augmented for a task."""
    if kind != "none" and task_named(task).moves:
        raise UserError(
            f"augment '{kind}' moves the images alone, and the targets of {task} would have to move with them: write "
            "none."
        )
    if kind != "none" and len(shape) != 3:
        raise UserError(
            f"augment '{kind}' is for images, and data set '{name}' has signals of shape {tuple(shape)}: write none."
        )


def draw(kind: Kind, count: int, side: int, seed: int, epoch: int, step: int) -> Draw:
    """Draw the augmentation of a global batch of `count` images with `side` pixels, on the CPU.

    Shifts are uniform over whole pixels up to an eighth of the side, in both directions; "shift_flip" flips every
    second image on average. All ranks draw the same numbers and take their own with `of_rank`, so that a real rank
    applies to its samples exactly what its virtual counterpart does.
    """
    rng = np.random.default_rng(derive("augment", seed, epoch, step))
    reach = 0 if kind == "none" else side // 8
    shifts = torch.from_numpy(rng.integers(-reach, reach, (2, count), endpoint=True))
    mirror = torch.from_numpy(rng.random(count) < (0.5 if kind == "shift_flip" else 0))
    return Draw(shifts[0], shifts[1], mirror, reach)


def apply(x: Tensor, draw: Draw) -> Tensor:
    """Return images (n, C, H, W) shifted and flipped as drawn; pixels from outside the image are zero.

    Zero is the mean of a normalised channel.
    """
    if draw.reach == 0 and not draw.mirror.any():
        return x
    count, channels, height, width = x.shape
    rows = torch.arange(height) + draw.reach - draw.down[:, None]
    columns = torch.arange(width) + draw.reach - draw.right[:, None]
    columns = torch.where(draw.mirror[:, None], columns.flip(1), columns)
    index = (
        torch.arange(count)[:, None, None, None],
        torch.arange(channels)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    )
    return pad(x, (draw.reach,) * 4)[tuple(part.to(x.device) for part in index)]


def augment(x: Tensor, kind: Kind, seed: int, epoch: int, step: int, rank: int = 0, ranks: int = 1) -> Tensor:
    """Return the training images of one rank (n, C, H, W), or of all (ranks=1), augmented for this step.

    The global batch has n * ranks images, of which these are rank, rank + ranks, ... With "none" they may be signals.
    """
    if kind == "none":
        return x
    drawn = draw(kind, len(x) * ranks, min(x.shape[2:]), seed, epoch, step)
    return apply(x, drawn.of_rank(rank, ranks))
