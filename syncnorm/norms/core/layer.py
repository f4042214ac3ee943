"""What every norm layer does before its formula: checks of the input, a leaf for torch.fx, a word for TorchScript."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NoReturn

from torch import Tensor, nn
from torch.fx import Proxy

from syncnorm.errors import UserError
from syncnorm.norms.core.recomputation import recomputing
from syncnorm.norms.core.shapes import check_channels
from syncnorm.norms.core.valid import OPENED, Masks, Valid, current_masks, takes_no_mask, with_masks


class NormLayer(nn.Module):
    """A layer that maps (N, C, ...) to the same shape; `normalised` is its formula, after the checks.

    `masked` is its formula inside a `syncnorm.mask`. A class with its own formula and none for masks refuses.

    Raises:
        ValueError: an input that is not (N, C) with up to three more dimensions of real numbers; a mask that does not
            fit the input, or that the layer does not take.
        UserError: a layer that torch.fx or TorchScript cannot take.
    """

    num_features: int
    was_masked = False
    """Whether the last forward was inside a `syncnorm.mask`."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `input` of shape (N, C, ...), as the class says."""
        if isinstance(input, Proxy):
            return as_leaf(self, input)
        self.check(input)
        if OPENED.any or self.was_masked:
            valid = self.valid(input)
            if valid is not None:
                with with_masks(Masks()):  # for what the formula calls
                    return self.masked(input, valid)
        return self.normalised(input)

    def check(self, x: Tensor) -> None:
        """Raise `ValueError` unless `x` is (N, C, ...)."""
        check_channels(self, self.num_features, x)

    @abstractmethod
    def normalised(self, x: Tensor) -> Tensor:
        """Return `x` of shape (N, C, ...) normalised; its shape and type have been checked."""

    def masked(self, x: Tensor, valid: Valid) -> Tensor:
        """Return `x` (N, C, ...) normalised by its positions that are `valid`, and zero elsewhere."""
        raise ValueError(takes_no_mask(f"{type(self).__name__}({self.num_features})"))

    def valid(self, x: Tensor) -> Valid | None:
        """Return which positions of `x` count inside a `syncnorm.mask`; None if all do."""
        masks, name = current_masks(), f"{type(self).__name__}({self.num_features})"
        if masks is None and self.was_masked and recomputing():
            raise ValueError(
                f"{name} ran inside syncnorm.mask, and is recomputed outside of it: checkpoint with "
                "context_fn=syncnorm.keep_mask."
            )
        self.was_masked = masks is not None and bool(masks.given)
        if masks is None or not masks.given:
            return None
        if not _takes_masks(type(self)):
            self.refuse(takes_no_mask(name), x)
        try:
            return masks.at(x, name)
        except ValueError as problem:
            self.refuse(str(problem), x)

    def refuse(self, problem: str, x: Tensor) -> NoReturn:
        """Raise `ValueError` of a problem with the input `x`."""
        raise ValueError(problem)

    def __prepare_scriptable__(self) -> Any:
        """Say to `torch.jit.script` that the layer's checks do not compile."""
        raise UserError(
            f"{type(self).__name__}({self.num_features}) cannot be scripted: use torch.export or torch.jit.trace, or "
            "syncnorm.revert(model) or syncnorm.fold(model) before torch.jit.script."
        )


def _takes_masks(kind: type[NormLayer]) -> bool:
    """Return whether the class that has the formula of `kind` also has the one for masks."""
    return next("masked" in vars(base) for base in kind.__mro__ if {"masked", "normalised"} & vars(base).keys())


def check_eps(layer: nn.Module, channels: int, eps: float) -> None:
    """Raise `ValueError` unless `eps` is at least 0."""
    if not eps >= 0:
        raise ValueError(f"{type(layer).__name__}({channels}): eps is {eps!r}: it must be a number, at least 0.")


def check_flags(layer: nn.Module, channels: int, **flags: bool) -> None:
    """Raise `ValueError` for a flag that is no bool: most often a number in a wrong position."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ValueError(
                f"{type(layer).__name__}({channels}): {name} is {value!r}: it must be True or False. Give arguments "
                "by name if their order is unclear."
            )


def as_leaf(layer: nn.Module, input: Any) -> Any:
    """Record the layer as one call of a module, as torch.fx records torch's own layers."""
    tracer = input.tracer
    path = tracer.path_of_module(layer)
    if not path:
        raise UserError(f"{type(layer).__name__} cannot be traced by itself: trace a model that contains it.")
    return tracer.create_proxy("call_module", path, (input,), {})
