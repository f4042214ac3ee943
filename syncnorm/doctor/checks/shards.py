"""Shards: what each rank holds, and whether ranks then agree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from syncnorm.doctor.case import Case
from syncnorm.doctor.finding import Finding
from syncnorm.doctor.watch.inputs import Inputs
from syncnorm.doctor.watch.kinds import is_over_ranks, uses_the_batch
from syncnorm.doctor.watch.passes import channel_moments
from syncnorm.doctor.words import percent, some
from syncnorm.moments import Moments

UNLIKE = 0.25
"""A share of the labels that would have to change hands, or standard deviations between means, that is too much."""
REMEDY = (
    "shuffle before you share out (torch's DistributedSampler with shuffle=True); where data cannot move, write "
    'model = syncnorm.convert(model, "sync_bn")'
)


def skewed_shards(case: Case) -> Iterator[Finding]:
    """Ranks that hold different classes or inputs, each with batch-norm statistics of its own."""
    alone = [name for name, layer in case.batch_norms.items() if uses_the_batch(layer) and not is_over_ranks(layer)]
    if not alone:
        return
    labels = [shard for shard in case.shards if isinstance(shard, Tensor)]
    batches = [shard for shard in case.shards if isinstance(shard, Inputs)]
    if labels:
        apart, chance = label_distance(labels)
        worst = int(apart.argmax())
        if float(apart[worst]) > UNLIKE + 2 * float(chance[worst]):
            yield Finding(
                "",
                f"ranks hold different classes, and {len(alone)} batch norms ({some(alone, 1)}) normalise each rank "
                "by itself: statistics are those of a rank's classes, and evaluation uses those of rank 0",
                REMEDY,
                "warning",
                "measured",
                f"{percent(float(apart[worst]))} of rank {worst}'s {len(labels[worst])} labels are of classes that "
                "the other ranks have less of (total variation distance)",
            )
    elif case.live:
        yield from _unlike_inputs(case, alone, batches)


def label_distance(labels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return how far each rank's classes are from those of all ranks, and how far chance alone takes them.

    The distance of rank r is the total variation 1/2 sum_c |p_rc - p_c|, where p_rc is the share of class c among its
    n_r labels and p_c that among all. If it drew from all, |p_rc - p_c| would be sqrt(2 p_c (1 - p_c) / (pi n_r)) on
    average (a normal distribution). Both have the shape (ranks,), float64.
    """
    classes = torch.unique(torch.cat([one.flatten() for one in labels]))
    counts = torch.stack([(one.flatten()[:, None] == classes).sum(0) for one in labels]).double()
    sizes, common = counts.sum(1, keepdim=True), counts.sum(0) / counts.sum()
    apart = (counts / sizes - common).abs().sum(1) / 2
    chance = (2 * common * (1 - common) / (torch.pi * sizes)).sqrt().sum(1) / 2
    return apart, chance


def _unlike_inputs(case: Case, alone: Sequence[str], batches: Sequence[Inputs]) -> Iterator[Finding]:
    seen = [channel_moments(case.copy().train(), batch, alone) for batch in batches]
    for name in alone:
        parts = [one[name] for one in seen if name in one]
        if len(parts) != len(batches):
            continue
        common = Moments.pool(parts)
        varied = common.var().double() > 1e-12
        if not varied.any():
            continue
        off = [
            float(((part.mean - common.mean).double().square() / common.var().double())[varied].mean().sqrt())
            for part in parts
        ]
        worst = max(range(len(off)), key=lambda rank: off[rank])
        if off[worst] > UNLIKE + 2 * batches[worst].count ** -0.5:
            yield Finding(
                name,
                "ranks hold different data, and it normalises each rank by itself: statistics are those of a rank's "
                "data, and evaluation uses those of rank 0",
                REMEDY,
                "warning",
                "measured",
                f"the mean of rank {worst} is {off[worst]:.2f} standard deviations off the common one "
                f"({batches[worst].count} samples of it)",
            )


def uneven_reach(case: Case) -> Iterator[Finding]:
    """A synchronised norm that the inputs of some ranks reach, and those of others do not: a deadlock."""
    batches = [shard for shard in case.shards if isinstance(shard, Inputs)]
    shared = [name for name, layer in case.batch_norms.items() if is_over_ranks(layer)]
    if not shared or case.kept_from_running:
        return
    reached = [channel_moments(case.copy().train(), batch, shared) for batch in batches]
    for name in shared:
        ranks = [rank for rank, found in enumerate(reached) if name in found]
        if 0 < len(ranks) < len(batches):
            missing = next(rank for rank in range(len(batches)) if rank not in ranks)
            yield Finding(
                name,
                f"it is synchronised, and rank {ranks[0]}'s data reach it while rank {missing}'s do not: the ranks "
                "would wait for each other",
                "let every rank run it in every step, or leave it unsynchronised with convert(..., where=...)",
                "error",
                "measured",
            )
