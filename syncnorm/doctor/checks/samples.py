"""Samples: mixed with each other, and padded to a common length."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from syncnorm.doctor.case import Case
from syncnorm.doctor.checks.modes import SHIFTED
from syncnorm.doctor.finding import Finding
from syncnorm.doctor.watch.inputs import Inputs, tensors_of
from syncnorm.doctor.watch.passes import channel_moments
from syncnorm.doctor.watch.quiet import running
from syncnorm.doctor.watch.trace import differ
from syncnorm.doctor.words import percent
from syncnorm.errors import UserError

MIXTURES = 8
"""Batches that are mixed, each with a share of its own."""
MOST = 64
"""Most samples of a mixed or padded batch."""


def mixup_before(case: Case) -> Iterator[Finding]:
    """MixUp, whose mixed samples vary less than those of evaluation do: running variances are too small."""
    assert case.mixup is not None
    inputs = case.given.take(MOST) or case.given
    if inputs.count < 2:
        return
    generator = torch.Generator().manual_seed(0)
    mixed = [
        inputs.mixed(float(share), torch.randperm(inputs.count, generator=generator))
        for share in _beta(case.mixup, MIXTURES, generator)
    ]
    yield from _other_variances(case, f"MixUp (alpha {case.mixup:g})", "; or mix less (alpha 0.2)", inputs, mixed)


def cutmix_before(case: Case) -> Iterator[Finding]:
    """CutMix, whose pasted samples have other variances than those of evaluation, above all after a pooling.

    A share s of Beta(alpha, alpha) of each sample stays, and the rest is a box of another one, with sides of
    (1 - s)^(1/d) of d dimensions and its middle anywhere, cut at the border (Yun et al., arXiv 1905.04899). A value
    by itself keeps its distribution; a mean over positions varies less.
    """
    assert case.cutmix is not None
    inputs = case.given.take(MOST) or case.given
    if inputs.count < 2:
        return
    generator = torch.Generator().manual_seed(0)
    mixed = []
    for share in _beta(case.cutmix, MIXTURES, generator):
        boxes = [_box(float(share), dims, generator) for dims in (1, 2, 3)]
        one = inputs.pasted(boxes, torch.randperm(inputs.count, generator=generator))
        if one is None:
            raise UserError("CutMix pastes boxes of images, and no tensor of the input has positions (N, C, ...)")
        mixed.append(one)
    yield from _other_variances(case, f"CutMix (alpha {case.cutmix:g})", "", inputs, mixed)


def _other_variances(case: Case, what: str, less: str, inputs: Inputs, mixed: list[Inputs]) -> Iterator[Finding]:
    """Yield the batch norms whose input varies otherwise in these mixed batches than in the batch as it is."""
    names = list(case.batch_norms)
    if not names:
        return
    plain = channel_moments(case.copy().train(), inputs, names)
    seen = [channel_moments(case.copy().train(), one, names) for one in mixed]
    for name in names:
        if name not in plain or any(name not in one for one in seen):
            continue
        var = torch.stack([one[name].var().double().mean() for one in seen]).mean()
        ratio = float(plain[name].var().double().mean() / var) if var > 0 else 1.0
        if ratio > SHIFTED or ratio < 1 / SHIFTED:
            yield Finding(
                name,
                f"{what} makes the variance of its input in evaluation {ratio:.1f} times that of training, and its "
                "running variance is that of training",
                "run syncnorm.recalibrate(model, batches) on batches that are not mixed, after training" + less,
                "warning",
                "measured",
                f"{MIXTURES} mixtures of {inputs.count} samples of {inputs.words}",
            )


def _box(share: float, dims: int, generator: torch.Generator) -> list[tuple[float, float]]:
    """Return the box that CutMix pastes where a share of a sample stays, in shares of each side."""
    half = 0.5 * (1 - share) ** (1 / dims)
    middles = [float(middle) for middle in torch.rand(dims, generator=generator)]
    return [(max(0.0, middle - half), min(1.0, middle + half)) for middle in middles]


def _beta(alpha: float, count: int, generator: torch.Generator) -> Tensor:
    """Return quantiles of Beta(alpha, alpha), evenly spaced in probability: what MixUp draws, without chance."""
    ends = torch.linspace(0, 1, 20001, dtype=torch.double)
    middles = (ends[1:] + ends[:-1]) / 2
    mass = (middles * (1 - middles)) ** (alpha - 1)
    below = mass.cumsum(0) / mass.sum()
    wanted = (torch.arange(count, dtype=torch.double) + 0.5) / count
    return middles[torch.searchsorted(below, wanted).clamp(max=len(middles) - 1)]


def depends_on_padding(case: Case) -> Iterator[Finding]:
    """A model whose output for a sample depends on how far it was padded with zeros."""
    assert case.padded is not None
    inputs = case.given.take(MOST) or case.given
    longer = inputs.padded(case.padded)
    if longer is None:
        raise UserError(f"no tensor of the input has a dimension {case.padded} that could be padded")
    short, long = (_outputs(case, one) for one in (inputs, longer))
    pairs = [(one, other) for one, other in zip(short, long, strict=False) if one.shape == other.shape]
    if not any(differ(*pair) for pair in pairs):
        return
    change = max(float((one - other).abs().max() / one.abs().max()) for one, other in pairs)
    other = sum(int((one.argmax(1) != other.argmax(1)).sum()) for one, other in pairs if one.dim() == 2)
    names = list(case.batch_norms)
    seen = [channel_moments(case.copy().train(), one, names) for one in (inputs, longer)]
    counted = [name for name in names if name in seen[0] and seen[0][name].count < seen[1][name].count]
    yield Finding(
        counted[0] if counted else "",
        f"a sample's output depends on how far it was padded along dimension {case.padded}"
        + (
            f": padded positions count in the statistics of {len(counted)} batch norms, and become values"
            if counted
            else ""
        ),
        "mask what is padded: with syncnorm.mask(m) for the norms, and in the pooling after them",
        "warning",
        "measured",
        f"a quarter more of zeros moves an output by up to {percent(change)} of the largest, and {other} of "
        f"{inputs.count} predictions ({inputs.words})",
    )


def _outputs(case: Case, inputs: Inputs) -> list[Tensor]:
    twin = case.copy().eval()
    with running(twin, inputs):
        return [x.detach().double() for x in tensors_of(inputs.call(twin)) if x.is_floating_point()]
