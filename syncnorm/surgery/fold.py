"""Fold batch norms into the convolutions and linear layers before them, for evaluation.

model = syncnorm.fold(model)                # warns of what could not be folded
report = syncnorm.fold_report(model)        # the same in advance, layer by layer
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from syncnorm.errors import UserError
from syncnorm.surgery.convert import batch_norms
from syncnorm.surgery.fold_plan import TRANSPOSED, FoldReport, fold_report, sequential_report
from syncnorm.surgery.modes import evaluation

# Largest deviation from the unfolded output on the example, relative to that output's largest value.
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


def fold(model: nn.Module, *, example: Any = None) -> nn.Module:
    """Fold every batch norm that can be into the layer before it, in place, and return the model in evaluation mode.

    With the batch norm's running statistics, channel by channel,

        scale = weight / sqrt(running_var + eps)
        W' = W * scale,   b' = bias + (b - running_mean) * scale

    worked out in float64. W is that of an `nn.Linear` or of a convolution or transposed convolution in one to three
    dimensions, grouped or not; it gets new parameters of its own. An `Identity` that lets nothing else through than
    the dimensions folded for stands where the batch norm was. Folding cannot be undone: keep a copy to train on.

    What is folded is found by tracing the forward, called with its required arguments alone; parts without batch
    norms need not be traceable. A batch norm stays if anything but such a layer comes before it, as in a norm-first
    block; if that layer is used again, feeds something else too, or computes its weights; if it keeps no running
    statistics, has hooks or a forward of its own; or if `convert` put it there. Those that stay are named in one
    warning. A batch norm used in several places is folded if it can be in all of them.

    Args:
        model: any module.
        example: a batch, in which case outputs before and after are compared on it, and a model that cannot be
            traced is folded too, as far as neighbours in an `nn.Sequential` go.

    Raises:
        UserError: a forward that cannot be traced (given no example), or outputs on the example that differ; the
            model is untouched.
    """
    try:
        report = fold_report(model)
    except UserError:
        if example is None:
            raise
        report = sequential_report(model)
    if example is not None:
        _compare(model, report, example)
    _apply(model, report)
    if report.left:
        warnings.warn(str(report), stacklevel=2)
    return model.eval()


class _Folded(nn.Identity):
    """What stands where a batch norm was. Of other dimensions than those folded for, channels are not at dim 1."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.dimensions = dimensions

    def forward(self, input: Tensor) -> Tensor:
        """Return `input`, of `dimensions` dimensions."""
        message = f"a batch norm folded for inputs of {self.dimensions} dimensions got others: do not fold it."
        torch._assert(input.dim() == self.dimensions, message)  # type: ignore[no-untyped-call]  # fx records it
        return input

    def extra_repr(self) -> str:
        return f"dimensions={self.dimensions}"


@torch.no_grad()
def _apply(model: nn.Module, report: FoldReport) -> None:
    swaps: dict[nn.Module, nn.Module] = {}
    for name, sources in report.folded.items():
        norm = model.get_submodule(name)
        for source in sources:
            swaps[norm] = _Folded(_absorb(model.get_submodule(source), norm))
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child in swaps:
                parent._modules[name] = swaps[child].eval()


def _absorb(source: Any, norm: Any) -> int:
    """Give `source` new parameters that do what `norm` does after it; return the dimensions of its output."""
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    weight: Tensor = source.weight.double()
    if isinstance(source, TRANSPOSED):  # (inputs, outputs / groups, ...), the inputs of one group side by side
        per_output = scale.view(source.groups, 1, -1, *[1] * (weight.dim() - 2))
        weight = (weight.reshape(source.groups, -1, *weight.shape[1:]) * per_output).reshape(weight.shape)
    else:
        weight = weight * scale.view(-1, *[1] * (weight.dim() - 1))
    if source.bias is not None:
        shift = shift + source.bias.double() * scale
    for key, value in (("weight", weight), ("bias", shift)):
        new = value.to(source.weight.dtype)
        setattr(source, key, nn.Parameter(new, requires_grad=source.weight.requires_grad))
    return weight.dim()


def _compare(model: nn.Module, report: FoldReport, example: Any) -> None:
    twin = copy.deepcopy(model)
    _apply(twin, report)
    with torch.no_grad(), evaluation(model):
        before, after = list(_tensors(model(example))), list(_tensors(twin.eval()(example)))
    for right, found in zip(before, after, strict=True):
        deviation = (found.double() - right.double()).abs().max().item() if right.numel() else 0.0
        largest = max(right.double().abs().max().item(), 1.0) if right.numel() else 1.0
        if not deviation <= _TOLERANCE.get(right.dtype, 5e-2) * largest:
            raise UserError(
                f"folding would change the model's output on the example by {deviation:.2g}: its forward uses the "
                f"layers in another way than their order says (or is random); {len(batch_norms(model))} batch norms "
                "stay as they are."
            )


def _tensors(output: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors of an output, however it nests them."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, dict | list | tuple):
        for part in output.values() if isinstance(output, dict) else output:
            yield from _tensors(part)
