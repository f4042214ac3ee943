"""The input of a model that is diagnosed: a batch of the user's own, or one that is drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from syncnorm.errors import UserError, with_article

DRAWN = 4
"""Samples of a drawn batch, unless a check asks for more."""


@dataclass(frozen=True)
class Inputs:
    """A batch: the arguments of the model's forward.

    count: number of samples, N: the length of the first tensor. Tensors of that length hold a value for each sample.
    real: whether the user gave it.
    draw: draws the arguments for a number of samples; None for a batch of the user's.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    count: int = 0
    real: bool = True
    draw: Callable[[int], tuple[Any, ...]] | None = None

    def call(self, model: nn.Module) -> Any:
        """Return what the model gives for it."""
        return model(*self.args, **self.kwargs)

    def take(self, count: int) -> Inputs | None:
        """Return a batch of `count` samples; None if the user's has fewer."""
        if self.draw is not None:
            return Inputs(self.draw(count), count=count, real=False, draw=self.draw)
        if count > self.count:
            return None
        return self._mapped(lambda x: x[:count], count)

    def with_other_mates(self, keep: int) -> Inputs:
        """Return the batch with copies of sample 0 in place of all samples from `keep` on."""
        return self._mapped(lambda x: torch.cat([x[:keep], x[:1].expand(len(x) - keep, *x.shape[1:])]), self.count)

    def repeated(self) -> Inputs:
        """Return the batch with each sample twice."""
        return self._mapped(lambda x: torch.cat([x, x]), 2 * self.count)

    def mixed(self, share: float, order: Tensor) -> Inputs:
        """Return MixUp of the batch: each sample times `share`, and another one, by `order`, times the rest."""

        def mix(x: Tensor) -> Tensor:
            return share * x + (1 - share) * x[order.to(x.device)] if x.is_floating_point() else x

        return self._mapped(mix, self.count)

    def pasted(self, boxes: Sequence[Sequence[tuple[float, float]]], order: Tensor) -> Inputs | None:
        """Return CutMix of the batch: within a box, each sample has the values of another one, by `order`.

        A box is a (start, end) in each dimension, as shares of its size; the first box that has as many dimensions as
        a tensor's positions is taken. None where no tensor has positions (N, C, ...).
        """
        pasted = False

        def paste(x: Tensor) -> Tensor:
            nonlocal pasted
            box = next((one for one in boxes if len(one) == x.dim() - 2), None)
            if box is None or not x.is_floating_point():
                return x
            pasted = True
            inside = torch.ones_like(x, dtype=torch.bool)
            for place, ((low, high), size) in enumerate(zip(box, x.shape[2:], strict=True)):
                at = torch.arange(size, device=x.device)
                along = (at >= round(low * size)) & (at < round(high * size))
                inside &= along.reshape(-1, *[1] * (len(box) - 1 - place))
            return torch.where(inside, x[order.to(x.device)], x)

        batch = self._mapped(paste, self.count)
        return batch if pasted else None

    def padded(self, dim: int) -> Inputs | None:
        """Return the batch with a quarter more of zeros at the end of a dimension; None where no tensor has it."""
        first = next((x for x in _tensors([*self.args, *self.kwargs.values()]) if x.dim()), None)
        if first is None or not -first.dim() < dim < first.dim() or dim % first.dim() == 0:
            return None
        length = first.shape[dim]

        def pad(x: Tensor) -> Tensor:
            if x.dim() != first.dim() or x.shape[dim] != length:
                return x
            more = list(x.shape)
            more[dim] = max(1, length // 4)
            return torch.cat([x, x.new_zeros(more)], dim)

        return self._mapped(pad, self.count)

    @property
    def words(self) -> str:
        """What it is, for sentences."""
        return "your input" if self.real else "random input"

    @property
    def given(self) -> str:
        """Types and shapes, for an error's sentence."""
        values = [*self.args, *self.kwargs.values()]
        return "; ".join(f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}" for x in _tensors(values))

    def _mapped(self, change: Callable[[Tensor], Tensor], count: int) -> Inputs:
        def each(value: Any) -> Any:
            if isinstance(value, Tensor):
                return change(value) if value.dim() and len(value) == self.count else value
            if isinstance(value, Mapping):
                return {key: each(part) for key, part in value.items()}
            if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
                return type(value)(each(part) for part in value)
            return value

        return Inputs(each(self.args), each(self.kwargs), count, self.real, self.draw)


def read_inputs(given: Any, model: nn.Module) -> Inputs:
    """Return the batch that a user means.

    A tensor is the model's one argument, a tuple or list of tensors its arguments in order, a dict its arguments by
    name, and a tuple of whole numbers the shape of one sample, for which a batch is drawn.

    Raises:
        UserError: something else, or tensors without samples.
    """
    if isinstance(given, Inputs):
        return given
    if isinstance(given, Sequence) and given and all(isinstance(size, int) for size in given):
        return _drawn(tuple(given), model)
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    if isinstance(given, Tensor):
        args, kwargs = (given,), {}
    elif isinstance(given, Mapping) and all(isinstance(key, str) for key in given):
        args, kwargs = (), dict(given)
    elif isinstance(given, list | tuple):
        args, kwargs = tuple(given), {}
    else:
        raise UserError(
            f"the input is {with_article(type(given).__name__)}: give a batch (a tensor, a tuple of tensors, or a "
            "dict of the forward's arguments), or the shape of one sample, such as (3, 32, 32)."
        )
    first = next((x for x in _tensors([*args, *kwargs.values()]) if x.dim()), None)
    if first is None or not len(first):
        raise UserError("the input holds no samples: give a batch (N, ...), or the shape of one sample.")
    return Inputs(args, kwargs, len(first))


def _drawn(shape: tuple[int, ...], model: nn.Module) -> Inputs:
    """Return a batch of drawn samples, which differ in mean and spread, as images do."""
    if min(shape) < 1:
        raise UserError(f"the shape of a sample is {shape}: all of its sizes must be at least 1.")
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(0))
    if like.is_meta:
        raise UserError("the model is on the meta device, where nothing can run: load its weights first.")

    def draw(count: int) -> tuple[Tensor]:
        generator = torch.Generator().manual_seed(0)
        by_channel = (count, shape[0], *[1] * (len(shape) - 1)) if len(shape) > 1 else (count, 1)
        middle = 0.5 * torch.randn(by_channel, generator=generator)
        spread = 0.5 + torch.rand(by_channel, generator=generator)
        x = middle + spread * torch.randn(count, *shape, generator=generator)
        return (x.to(like.device, like.dtype),)

    return Inputs(draw(DRAWN), count=DRAWN, real=False, draw=draw)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [x for part in parts for x in _tensors(part)]


def tensors_of(value: Any) -> list[Tensor]:
    """Return the tensors in what a model takes or returns."""
    found = _tensors(value)
    if not found and hasattr(value, "__dict__"):
        found = _tensors(vars(value))
    return found


def read_shards(given: Sequence[Any], model: nn.Module) -> tuple[Tensor | Inputs, ...]:
    """Return what each rank holds: its labels, as a tensor (N,), or a batch of its inputs.

    A rank's labels are whole numbers in one dimension (a tensor, an array, a list). Its inputs are a batch, as for
    `read_inputs`, or a loader of batches or (inputs, labels) pairs, whose first batch is taken.

    Raises:
        UserError: one rank alone, nothing in one, or labels of one rank beside inputs of another.
    """
    found = tuple(_shard(one, model) for one in given)
    if len(found) == 1:
        raise UserError("shards names what each rank holds: give two or more, one a rank.")
    if len({isinstance(one, Tensor) for one in found}) > 1:
        raise UserError("shards holds labels of one rank and inputs of another: give the same of all ranks.")
    return found


def _shard(given: Any, model: nn.Module) -> Tensor | Inputs:
    if (
        not isinstance(given, Tensor | Mapping)
        and not hasattr(given, "__array__")
        and not isinstance(given, list | tuple)
    ):
        given = next(iter(given), None)
        if isinstance(given, list | tuple) and len(given) == 2:
            given = given[0]
        if given is None:
            raise UserError("a loader in shards has no batch: give each rank's own loader, labels or inputs.")
        return read_inputs(given, model)
    if isinstance(given, Mapping) or (isinstance(given, list | tuple) and any(isinstance(x, Tensor) for x in given)):
        return read_inputs(given, model)
    values = given if isinstance(given, Tensor) else torch.as_tensor(given)
    if not values.numel():
        raise UserError("a rank in shards holds nothing: give the labels or inputs of every rank.")
    whole = not values.is_floating_point() and values.dim() == 1
    return values.cpu() if whole else read_inputs(values, model)
