"""A copy in evaluation, watched: what still depends on the batch, and what still moves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from syncnorm.doctor.watch.inputs import Inputs, tensors_of
from syncnorm.doctor.watch.kinds import kind_of
from syncnorm.doctor.watch.quiet import watched_modules
from syncnorm.doctor.watch.trace import differ
from syncnorm.norms.registry import spec_of

Print = Tensor


@dataclass
class Evaluation:
    """What was seen in evaluation.

    outputs: the tensors that the model returned.
    training: names of the batch norms that `model.eval()` leaves in training mode.
    moved: names of the buffers that a forward pass in evaluation changed.
    coupled: the innermost layers whose output for a sample changes with the rest of the batch, though their input
        for it does not.
    change: by how much the model's outputs for a sample change then, relative to the largest output; 0 for rounding.
    """

    outputs: list[Tensor] = field(default_factory=list)
    training: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    coupled: list[str] = field(default_factory=list)
    change: float = 0.0


def evaluate(twin: nn.Module, inputs: Inputs) -> Evaluation:
    """Run `twin`, which is a copy, in evaluation: on the batch, and with other mates for its first half.

    Raises:
        UserError: the model fails; the sentence names the layer.
    """
    twin.eval()
    found = Evaluation()
    _repair(twin)
    found.training = [name for name, module in twin.named_modules() if module.training and kind_of(module) == "batch"]
    before = {name: buffer.detach().clone() for name, buffer in twin.named_buffers()}
    keep = inputs.count // 2
    found.outputs, prints = _run(twin, inputs, keep)
    found.moved = [
        name for name, buffer in twin.named_buffers() if name in before and not _equal(buffer, before[name])
    ]
    if not keep or any(_corrects(module) for module in twin.modules()):
        return found
    with torch.no_grad():
        for name, buffer in twin.named_buffers():
            if name in before and buffer.shape == before[name].shape:
                buffer.copy_(before[name])
    others, changed = _run(twin, inputs.with_other_mates(keep), keep)
    for one, other in zip(found.outputs, others, strict=False):
        if one.dim() and len(one) == inputs.count == len(other) and differ(one[:keep], other[:keep]):
            gap = (one[:keep].double() - other[:keep].double()).abs().max() / one[:keep].double().abs().max()
            found.change = max(found.change, float(gap))
    if found.change:
        found.coupled = _first_coupled(prints, changed)
    return found


def _repair(twin: nn.Module) -> None:
    """Put 0 and 1 for broken running statistics, which other checks name: NaN outputs would hide everything else."""
    for module in twin.modules():
        mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
        if kind_of(module) == "batch" and isinstance(mean, Tensor) and isinstance(var, Tensor):
            mean.masked_fill_(~mean.isfinite(), 0.0)
            var.masked_fill_(~(var.isfinite() & (var >= 0)), 1.0)


def _corrects(module: nn.Module) -> bool:
    """Return whether a norm is meant to adapt to what it evaluates."""
    spec = spec_of(module)
    return spec is not None and spec.evaluates == "corrected"


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())


def _run(twin: nn.Module, inputs: Inputs, keep: int) -> tuple[list[Tensor], list[tuple[str, Print, Print]]]:
    """Return the outputs, and for each module that ran, in the order of their ends, prints of input and output."""
    prints: list[tuple[str, Print, Print]] = []

    def leave(module: nn.Module, name: str, listed: bool, args: Any, output: Any) -> None:
        prints.append((name, _print(args, keep, inputs.count), _print(output, keep, inputs.count)))

    with torch.no_grad(), watched_modules(twin, inputs, lambda *_: None, leave):
        outputs = [x.detach().clone() for x in tensors_of(inputs.call(twin)) if x.is_floating_point()]
    return outputs, prints


def _print(value: Any, keep: int, count: int) -> Print:
    """Return a few sums over the samples that are kept: of values, of their sizes, and weighted by place."""
    sums = []
    for x in tensors_of(value):
        if x.is_floating_point() and x.dim() and len(x) % count == 0 and len(x):
            part = x[: keep * (len(x) // count)].detach().double().flatten().cpu()
            weights = torch.linspace(0.5, 1.5, len(part), dtype=torch.double)
            sums += [part.sum(), part.abs().sum(), (part * weights).sum()]
    return torch.stack(sums) if sums else torch.zeros(0, dtype=torch.double)


def _first_coupled(before: list[tuple[str, Print, Print]], after: list[tuple[str, Print, Print]]) -> list[str]:
    found: list[str] = []
    for (name, in_before, out_before), (_, in_after, out_after) in zip(before, after, strict=False):
        same_input = in_before.numel() and in_before.shape == in_after.shape and _near(in_before, in_after, 1e-7)
        if same_input and out_before.shape == out_after.shape and not _near(out_before, out_after, 1e-5):
            inside = any(name == "" or one.startswith(f"{name}.") for one in found)
            if not inside and name not in found:
                found.append(name)
    return found


def _near(one: Tensor, other: Tensor, within: float) -> bool:
    return bool(((one - other).abs() <= within * one.abs().max()).all())
