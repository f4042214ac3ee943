"""Ways in which the ranks of a small network may be uneven, empty or mismatched; drawn from a number."""

from dataclasses import dataclass
from typing import Any

import torch
from fates import Fate
from over_ranks import OPTIONS, SHARED
from torch import Tensor, nn

import syncnorm

RANKS = 3
EXACT = {"rtol": 1e-9, "atol": 1e-10}
NORMS = ("sync_bn", "sync_bn", "sync_bn", *(name for name in SHARED if name not in ("mixstyle", "full_norm")))
"""Without those whose draws, or whose samples, are not those of one process."""
IMAGES = ("evonorm_b0", "iabn", "mabn")
"""Norms that need images, or convolutions."""
EVEN = ("even", "uneven", "empty", "empty", "join", "join")
ODD = (
    *("channels", "eval", "skip last", "skip first", "swap", "more steps", "fewer steps", "no grad", "dtype"),
    *("bad input", "raises", "frozen", "dims", "other norm", "one value"),
)


@dataclass(frozen=True)
class Way:
    """What the ranks of a way are given."""

    number: int
    kind: str
    norm: str
    ranks: int
    odd: int
    """The rank that differs from the others, or has no samples, or runs out of them."""
    at: int
    """The step in which it differs."""
    sizes: list[list[int]]
    """Samples of each rank, step by step."""
    width: int
    side: int
    """Height and width of images; 0 for rows of numbers."""
    momentum: float

    @property
    def valid(self) -> bool:
        """Whether the ranks have to end with what one process gives."""
        return self.kind in EVEN

    @property
    def steps(self) -> int:
        """How many steps the ranks take."""
        return len(self.sizes)

    def batch(self, step: int) -> Tensor:
        """Return the samples of all ranks in a step."""
        shape = (sum(self.sizes[step]), 3, *[self.side] * (2 if self.side else 0))
        generator = torch.Generator().manual_seed(1000 * self.number + step)
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    def mine(self, step: int, rank: int) -> slice:
        """Return which of them are a rank's."""
        start = sum(self.sizes[step][:rank])
        return slice(start, start + self.sizes[step][rank])

    def network(self, sync: bool, width: int | None = None, norm: str | None = None) -> nn.Sequential:
        """Return the network, the same each time."""
        torch.manual_seed(self.number)
        width, name = width or self.width, norm or self.norm

        def mix(inputs: int, outputs: int) -> nn.Module:
            return nn.Conv2d(inputs, outputs, 1) if self.side else nn.Linear(inputs, outputs)

        bn = nn.BatchNorm2d if self.side else nn.BatchNorm1d
        parts = [mix(3, width), bn(width, momentum=self.momentum), nn.Tanh(), mix(width, 2)]
        model = nn.Sequential(*parts, bn(2, momentum=self.momentum)).double()
        if name == "sync_bn":
            return syncnorm.convert(model, "sync_bn" if sync else "bn")
        return syncnorm.convert(model, name, **OPTIONS.get(name, {}), sync=sync)


def way_of(number: int) -> Way:
    """Draw a way."""
    fate = Fate("odd ranks", number)
    ranks, steps = fate.whole(2, RANKS), fate.whole(1, 2)
    kind = fate.one(EVEN if fate.whole(0, 1) == 0 else ODD)
    odd, at = fate.whole(0, ranks - 1), fate.whole(0, steps - 1)
    sizes = [[fate.whole(1, 5) if kind in ("uneven", "empty") else 3 for _ in range(ranks)] for _ in range(steps)]
    if kind == "empty":
        for step in sizes:
            step[odd], step[odd - 1] = 0, max(step[odd - 1], 3)
    if kind == "one value":
        sizes = [[int(rank == odd) for rank in range(ranks)]] * steps
    if kind == "join":
        sizes[-1][odd] = 0  # where it has run out
    norm, side = fate.one(NORMS), 0 if kind == "one value" else fate.one((0, 0, 1, 2))
    side = 2 if norm in IMAGES else side
    return Way(number, kind, norm, ranks, odd, at, sizes, fate.whole(3, 5), side, fate.one((0.1, 0.3)))


def differs(way: Way, told: dict[int, dict[str, Any]]) -> str:
    """Return where some ranks differ from one process with the whole batch; empty if nowhere."""
    model = way.network(sync=False)
    with syncnorm.domain(0):
        for number in range(way.steps):
            leaf = way.batch(number).requires_grad_()
            y = model(leaf)
            y.sin().sum().backward()
            for rank, one in told.items():
                for name, value in (("y", y.detach()), ("dx", leaf.grad)):
                    found, expected = one[name], value[way.mine(number, rank)]
                    if number < len(found) and not torch.allclose(found[number], expected, **EXACT):
                        return f"rank {rank}, step {number}: {name} differs"
    for rank, one in told.items():
        for name, value in model.state_dict().items():
            if name in one["state"] and not torch.allclose(one["state"][name], value, **EXACT):
                return f"rank {rank}: {name} differs"
    return ""
