"""What per-device statistics would do to a model, measured on virtual ranks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from syncnorm.doctor.case import Case
from syncnorm.doctor.measures.misfit import relative
from syncnorm.doctor.watch.inputs import tensors_of
from syncnorm.doctor.watch.quiet import running
from syncnorm.errors import UserError
from syncnorm.moments import Moments
from syncnorm.norms import norm_spec
from syncnorm.surgery import convert
from syncnorm.surgery.layers.substitute import spec_of_layer

MOST = 64
"""Most samples of a measurement; of more ranks, only as many as this allows are measured."""


@dataclass(frozen=True)
class Ranks:
    """What `measure_ranks` found.

    means: for each batch norm, how far the ranks' means are from their common one: the root mean square over ranks
        and channels, in standard deviations of the common batch.
    outputs: root mean square of the difference between the outputs with the ranks' own statistics and with common
        ones, relative to that of the latter; None if they cannot be compared.
    words: how it was measured.
    """

    means: dict[str, float]
    outputs: float | None
    words: str


def measure_ranks(case: Case, names: Sequence[str], ranks: int, size: int) -> Ranks | None:
    """Compare `ranks` ranks of `size` samples that each normalise alone in the layers `names` with all together.

    Both are steps of training on copies, with the same samples and the same random numbers. (`GhostBatchNorm` is what
    DDP computes without synchronisation.) Returns None if there are too few samples, or ranks cannot be told apart.
    """
    ranks = min(ranks, max(2, MOST // size))
    if case.given.real:
        ranks = min(ranks, case.given.count // size)
    batch = case.given.take(ranks * size) if ranks > 1 else None
    if batch is None:
        return None
    means: dict[str, float] = {}
    together = case.copy().train()
    for name in names:
        together.get_submodule(name).register_forward_pre_hook(_noting(name, ranks, means))
    try:
        with running(together, batch):
            common = tensors_of(batch.call(together))
    except UserError:
        return None
    words = f"{ranks} ranks of {size}, {batch.words}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            apart = case.copy().train()
            apart = convert(apart, "ghost_bn", where=lambda name, _: name in names, virtual_ranks=ranks)
        with running(apart, batch):
            own = tensors_of(batch.call(apart))
    except (UserError, ValueError):  # a layer that cannot be converted, or one value on a rank
        return Ranks(means, None, words)
    return Ranks(means, relative(own, common), words)


def is_plain(layer: nn.Module) -> bool:
    """Return whether a layer is PyTorch's batch norm, so that virtual ranks of it are known."""
    spec = spec_of_layer(layer)
    return spec is None or spec == norm_spec("bn")


def _noting(name: str, ranks: int, found: dict[str, float]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def see(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0] if args else None
        if not isinstance(x, Tensor) or x.dim() < 2 or len(x) % ranks:
            return
        dims = (0, *range(2, x.dim()))
        whole = Moments.of(x, dims)
        parts = torch.stack([Moments.of(x[rank::ranks], dims).mean.double() for rank in range(ranks)])
        var = whole.var().double()
        varied = var > 1e-12
        if varied.any():
            spread = (parts - whole.mean.double()).square().mean(0)
            found[name] = float((spread[varied] / var[varied]).mean().sqrt())

    return see
