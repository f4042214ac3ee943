"""Which layer computes a norm on ranks, real or virtual, and how many samples share its statistics."""

from collections.abc import Mapping
from typing import Any, Literal

from syncnorm.config import Norm
from syncnorm.errors import UserError
from syncnorm.norms import norm_spec
from syncnorm.norms.make import options_in_world
from syncnorm.norms.spec import WorldFact

Engine = Literal["virtual", "torchrun"]


def layer_on_ranks(
    norm: Norm, ranks: int, engine: Engine, facts: Mapping[WorldFact, int]
) -> tuple[str, dict[str, Any]]:
    """Return the name and options of the layer that computes `norm` on ranks; `facts` are the world's own numbers.

    Virtual ranks share one process. If the norm's row has a layer `on_ranks` (ghost batch norm for batch norm), that
    layer computes all ranks and keeps the statistics of each. A norm over all ranks has its whole batch in this
    process. Other norms that depend on the batch use `on_virtual_ranks`.
    """
    spec = norm_spec(norm.name)
    options = options_in_world(norm.name, norm.options, facts)
    if ranks == 1 or spec.on_ranks is None:
        return norm.name, options
    if engine == "virtual":
        within = options.get("virtual_ranks", 1)
        return spec.on_ranks, {**options, "virtual_ranks": ranks * within, "buffers": "pooled"}
    return norm.name, {**options, "buffers": "pooled"} if spec.on_ranks == norm.name else options


def goes_by_rank(norm: Norm) -> bool:
    """Return whether a norm's training output depends on the batch of one rank, not of all."""
    return norm_spec(norm.name).by_device(norm.options)


def shares(norm: Norm) -> bool:
    """Return whether a norm, with its options, normalises over the batch of all ranks, not of one."""
    return norm_spec(norm.name).shares(norm.options)


def sharing_samples(norm: Norm, ranks: int, per_rank: int) -> int:
    """Return the number of samples that share statistics in training, of ranks with `per_rank` each."""
    return per_rank * (ranks if shares(norm) else 1)


def statistics_are_kept_by_rank(norm: Norm) -> bool:
    """Return whether all ranks' running statistics are available, to evaluate with rank 0's and the pooled ones."""
    return norm_spec(norm.name).on_ranks is not None


def needs_virtual_ranks(norm: Norm, ranks: int, engine: Engine) -> bool:
    """Return whether `norm` needs `on_virtual_ranks`, because no single layer computes all its ranks."""
    return engine == "virtual" and ranks > 1 and goes_by_rank(norm) and not statistics_are_kept_by_rank(norm)


def check_buffers(norm: Norm, ranks: int, buffers: Literal["rank0", "pooled"]) -> None:
    """Raise `UserError` for pooled statistics where they cannot be pooled."""
    alone = ranks > 1 and goes_by_rank(norm) and not statistics_are_kept_by_rank(norm)
    if alone and buffers == "pooled":
        raise UserError(
            f"norm '{norm.name}' evaluates by what rank 0 has seen, and there is no way to pool what {ranks} ranks "
            "have: leave buffers at rank0, or set norm to bn."
        )
