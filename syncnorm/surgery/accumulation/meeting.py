"""A batch norm that all micro-batches of a step meet at: forward and backward over all of them.

The graph of a micro-batch ends at the input of a norm and begins anew at its output. In the backward, meetings are
gone through from the last to the first: by then, the gradients of all outputs are complete.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.distributed import ProcessGroup

from syncnorm.errors import UserError
from syncnorm.moments import Moments
from syncnorm.norms.core.functional import input_gradient, moments_of_channels, standardise, sums_of_gradient
from syncnorm.norms.core.ranks.meeting import Place as RanksPlace
from syncnorm.norms.core.valid import Masks, Valid

Move = Callable[[Tensor, Tensor, Tensor], None]
"""Moves a layer's running statistics towards a mean and an unbiased variance, where the third, a bool, is true."""


@dataclass
class Arrival:
    """What a micro-batch brings to a norm."""

    x: Tensor
    """Its input, (N, C, ...)."""
    layer: Any
    """What tells this norm from others: its SyncBatchNorm, or a tensor of C values; None if it has none."""
    named: str
    """The norm's name in a sentence."""
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    move: Move
    """Called once a meeting, on what the first micro-batch brings."""
    masks: Masks | None = None
    """Which positions of x count; None: all."""
    group: ProcessGroup | None = None
    """The ranks that share its statistics, and then `layer` is a SyncBatchNorm; None: this one alone."""

    @property
    def valid(self) -> Valid | None:
        """The positions of x that count, None if all do; `ValueError` if that cannot be told."""
        return self.masks.at(self.x, f"norm {self.named}") if self.masks is not None and self.masks.given else None

    def problem(self, number: int, first: Arrival) -> str:
        """Say what is wrong with it, which has this number at the meeting, beside the `first`."""
        channels = len(self.layer) if isinstance(self.layer, Tensor) else getattr(self.layer, "num_features", None)
        if self.x.dim() < 2 or (channels is not None and self.x.shape[1] != channels):
            needed = f"(N, {channels or 'C'}, ...)"
            return f"norm {self.named} got an input of shape {tuple(self.x.shape)}: it needs {needed}."
        if self.layer is not first.layer or self.x.shape[1] != first.x.shape[1]:
            return (
                f"micro-batch 1 comes to norm {first.named} where micro-batch {number} comes to {self.named}: exact "
                "accumulation needs all of them to go through the same norms in the same order."
            )
        try:
            _ = self.valid
        except ValueError as problem:
            return str(problem)
        return ""


@dataclass
class Place:
    """One micro-batch at one meeting, from the forward to the backward."""

    edge: GradientEdge | None
    """Where the gradient of x goes; None if nothing before it is trained."""
    x: Tensor
    device: torch.device
    valid: Valid | None
    version: int | None
    """The version of x where it is the model's own tensor, None for a copy."""
    y: Tensor | None = None
    """The output, until the model takes it."""
    dy: Tensor | None = None

    def input(self, named: str) -> Tensor:
        """Return x, back on its device; raise `UserError` if the model has changed it in place since."""
        if self.version is not None and self.x._version != self.version:
            raise UserError(
                f"the model changes the input of norm {named} in place after the norm has used it: write it without "
                "the in-place operation, or pass offload=True."
            )
        return self.filled(self.x.to(self.device, non_blocking=True))

    def gradient(self, x: Tensor) -> Tensor:
        """Return the gradient of y, where its positions count; `x` is like it."""
        return torch.zeros_like(x) if self.dy is None else self.filled(self.dy)

    def filled(self, values: Tensor) -> Tensor:
        """Return `values` with zeros where positions do not count."""
        return values if self.valid is None else self.valid.fill(values)


class Enter(torch.autograd.Function):
    """Begin the graph of a micro-batch anew at the output of a norm; the backward keeps what arrives there."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, place: Place) -> Tensor:
        ctx.place = place
        y, place.y = place.y, None
        assert y is not None
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        place: Place = ctx.place
        place.dy = grads[0] if place.dy is None else place.dy + grads[0]
        return None, None


@dataclass
class Meeting:
    """All micro-batches of a step at one norm."""

    named: str
    """The norm's name in a sentence."""
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    ranks: RanksPlace | None = None
    """The norm's place among the ranks that share its statistics; None: this rank is alone."""
    places: list[Place] = field(default_factory=list)
    statistics: tuple[Tensor, Tensor, Tensor] | None = None
    """Count, mean and biased variance over all micro-batches (and ranks)."""

    @classmethod
    def at(cls, arrivals: list[Arrival]) -> Meeting:
        """Return the meeting at the norm that micro-batches have come to. Their inputs are not kept here."""
        first = arrivals[0]
        problem = next(filter(None, (one.problem(number, first) for number, one in enumerate(arrivals, 1))), "")
        if problem and first.group is not None:
            first.layer.refuse(problem, first.x)  # on every rank
        if problem:
            raise UserError(problem)
        ranks = None if first.group is None else first.layer.among_ranks(first.x)
        return cls(first.named, first.weight, first.bias, first.eps, ranks)

    def forward(self, arrivals: list[Arrival], offload: bool | None) -> list[Place]:
        """Return each micro-batch's place, with its output in y; the running statistics move once."""
        first = arrivals[0]
        with torch.no_grad():
            own = Moments.pool([_moments(arrival) for arrival in arrivals])
            moments = own if self.ranks is None else self.ranks.gather(own).pooled()
            may_be_empty = self.ranks is not None or any(arrival.valid is not None for arrival in arrivals)
            if moments.count == 1 or (moments.count == 0 and not may_be_empty):
                raise UserError(
                    f"norm {first.named} gets one value per channel from all micro-batches together: a variance "
                    "needs two."
                )
            mean, var = moments.mean, moments.var()
            self.statistics = (moments.count.to(mean.dtype), mean, var)
            first.move(mean, moments.var(1), moments.count > 0)
            for arrival in arrivals:
                place = _place(arrival, offload)
                x = place.filled(arrival.x)
                place.y = place.filled(standardise(x, mean, var, first.eps, first.weight, first.bias))
                self.places.append(place)
        return self.places

    def backward(self) -> None:
        """Bring the gradients of all outputs through the norm, into its parameters and further back."""
        if self.ranks is None and all(place.dy is None for place in self.places):
            return  # no loss depends on it
        assert self.statistics is not None
        _, mean, var = self.statistics
        parts = []
        for place in self.places:
            x = place.input(self.named)
            dy = place.gradient(x)
            parts.append(torch.stack(sums_of_gradient(dy, x, mean, var, self.eps)))
        own = torch.stack(parts).sum(0)
        for parameter, grad in zip((self.weight, self.bias), own, strict=True):
            if parameter is not None and parameter.requires_grad:
                torch.autograd.backward(parameter, grad.to(parameter.dtype), retain_graph=True)
        sums = own if self.ranks is None else self.ranks.sum(own.clone())
        for place in self.places:
            if place.edge is not None:
                x = place.input(self.named)
                dy = place.gradient(x)
                dx = input_gradient(dy, x, self.statistics, sums, self.weight, self.eps).to(x.dtype)
                torch.autograd.backward(place.edge, place.filled(dx), retain_graph=True)
        self.places.clear()


def _moments(arrival: Arrival) -> Moments:
    """Return the moments of a micro-batch's positions that count."""
    x, valid = arrival.x, arrival.valid
    return moments_of_channels(x) if valid is None else Moments.of(x, (0, *range(2, x.dim())), valid.where)


def _place(arrival: Arrival, offload: bool | None) -> Place:
    """Return the place of a micro-batch, its input in the host's memory if asked to."""
    x = arrival.x
    edge = get_gradient_edge(x) if x.requires_grad else None
    away = goes_to_host(x, offload)
    kept = to_host(x.detach()) if away else x.detach()
    return Place(edge, kept, x.device, arrival.valid, None if away else kept._version)


def goes_to_host(x: Tensor, offload: bool | None) -> bool:
    """Return whether a tensor of the forward waits in the host's memory; None: if it is not there anyway."""
    return x.device.type != "cpu" if offload is None else offload


def to_host(x: Tensor) -> Tensor:
    """Return a copy in the host's memory, pinned for a CUDA tensor."""
    copy = torch.empty_like(x, device="cpu", pin_memory=x.is_cuda)
    return copy.copy_(x, non_blocking=x.is_cuda)
