"""Checks of input shapes (N, C, ...), and broadcasting of values per channel."""

from torch import Tensor, nn


def by_channel(values: Tensor, x: Tensor) -> Tensor:
    """Return `values` (C,) as (1, C, 1, ...), to go with `x` (N, C, ...)."""
    return values.view(1, -1, *[1] * (x.dim() - 2))


def by_sample(values: Tensor, x: Tensor) -> Tensor:
    """Return `values` (N, C) as (N, C, 1, ...), to go with `x` (N, C, ...)."""
    return values.view(*values.shape, *[1] * (x.dim() - 2))


def beside(values: Tensor, x: Tensor) -> Tensor:
    """Return `values`, (C,) or (N, C), so that they go with `x` (N, C, ...)."""
    return by_channel(values, x) if values.dim() == 1 else by_sample(values, x)


def in_layout_of(y: Tensor, x: Tensor) -> Tensor:
    """Return `y` (N, C, ...) with its channels last in memory, if those of `x` are ("channels_last")."""
    last = x.dim() > 3 and x.stride(1) == 1 and not x.is_contiguous()
    return y.movedim(1, -1).contiguous().movedim(-1, 1) if last else y


def check_channels(layer: nn.Module, channels: int, x: Tensor) -> None:
    """Raise `ValueError` if `x` is not (N, channels) with up to three more dimensions, or holds integers."""
    if problem := channels_problem(layer, channels, x):
        raise ValueError(problem)


def channels_problem(layer: nn.Module, channels: int, x: Tensor) -> str:
    """Return the message that `check_channels` would raise; an empty string if there is none."""
    shape = x.shape
    if 2 <= len(shape) <= 5 and shape[1] == channels and x.is_floating_point():
        return ""
    name = f"{type(layer).__name__}({channels})"
    if not 2 <= len(shape) <= 5 or shape[1] != channels:
        return (
            f"{name} got an input of shape {tuple(shape)}: it needs (N, {channels}) and up to three more dimensions."
        )
    # The output has the input's type, and would be truncated to integers.
    return f"{name} got an input of type {x.dtype}: it needs real numbers, for example x.float()."


def check_values(layer: nn.Module, channels: int, x: Tensor) -> None:
    """Raise `ValueError` if `x` has fewer than two values per channel, and so no variance."""
    if x.numel() < 2 * channels:
        values = "one value" if x.numel() else "no value"
        raise ValueError(
            f"{type(layer).__name__}({channels}) got {values} per channel (input of shape {tuple(x.shape)}): a "
            "variance needs two. Give it more samples, or call .eval()."
        )


def check_divisor(layer: nn.Module, channels: int, var: Tensor | None = None) -> None:
    """Raise `ValueError` if training with eps 0 divides by 0: where `var` is 0, or, without `var`, where it may be.

    PyTorch's kernel refuses eps 0 in training; a formula here can look, which stalls the device with eps 0 alone.
    """
    if layer.training and not layer.eps > 0 and (var is None or bool((var == 0).any())):  # type: ignore[operator]
        raise ValueError(
            f"{type(layer).__name__}({channels}) trains with eps={layer.eps}: a constant channel has no variance, so "
            "give it an eps above 0."
        )


def check_positions(layer: nn.Module, channels: int, x: Tensor) -> None:
    """Raise `ValueError` if `x` has one value per channel and sample, and so no variance."""
    if problem := positions_problem(layer, channels, x):
        raise ValueError(problem)


def positions_problem(layer: nn.Module, channels: int, x: Tensor) -> str:
    """Return the message that `check_positions` would raise; an empty string if there is none."""
    if x[0:1, 0:1].numel() != 1:
        return ""
    return (
        f"{type(layer).__name__}({channels}) got one value per channel and sample (input {tuple(x.shape)}): it needs "
        "two, so use it before the spatial dimensions are gone."
    )
