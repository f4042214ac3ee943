"""Fold batch norms into the convolutions and linear layers before them, for evaluation.

model = syncnorm.fold(model)                # warns of norms that cannot be folded
report = syncnorm.fold_report(model)        # the same in advance, layer by layer
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from syncnorm._torch import assert_recorded, uncompiled_module
from syncnorm.errors import UserError
from syncnorm.surgery.convert import original
from syncnorm.surgery.fold_plan import FoldReport, fold_report, sequential_report
from syncnorm.surgery.fold_values import folded
from syncnorm.surgery.modes import evaluation
from syncnorm.surgery.preconditions import call, check_changeable, warn_of_foreign_norms
from syncnorm.surgery.replace import replace_modules

# Largest allowed deviation from the unfolded output on the example, relative to that output's largest value.
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


def fold(model: nn.Module, *, example: Any = None) -> nn.Module:
    """Fold every possible batch norm into the layer before it, in place, and return the model in evaluation mode.

    With the batch norm's running statistics, channel by channel,

        scale = weight / sqrt(running_var + eps)
        W' = W * scale,   b' = bias + (b - running_mean) * scale

    computed in float64. W is the weight of an `nn.Linear`, or of a convolution or transposed convolution in one to
    three dimensions, grouped or not; that layer gets new parameters. An `Identity` replaces the batch norm; it
    accepts only inputs with the number of dimensions folded for. Folding cannot be undone: keep a copy for training.

    The forward is traced, with its required arguments only, to find what can be folded; parts without batch norms
    need not be traceable. A batch norm stays if anything but such a layer comes before it, as in a norm-first block;
    if that layer is used again, feeds something else too, or computes its weights; if the batch norm has no finite
    running statistics, has hooks, or overrides forward; or if its evaluation depends on the sample, its batch or its
    domain. One warning names those that stay. A batch norm used in several places is folded only if it can be folded
    in all of them. Norms from `convert` fold like all others and are then not reverted; "mabn" (mean square, with
    mean 0) folds together with the centring of the weight before it.

    Args:
        model: any module.
        example: a batch on which the outputs before and after folding are compared. With it, a model that cannot be
            traced is folded too, but only neighbours in an `nn.Sequential`. (If the forward branches on its input,
            only the example's branch is compared.)

    Raises:
        UserError: a forward that cannot be traced (without an example), outputs on the example that differ or cannot
            be compared, or a model that is scripted, quantised or in DDP; the model is then unchanged.
    """
    check_changeable(model)
    inner = uncompiled_module(model)
    try:
        report = fold_report(inner)
    except UserError:
        if example is None:
            raise
        report = sequential_report(inner)
    if example is not None:
        _compare(inner, report, example)
    warn_of_foreign_norms(inner, "it is not folded")
    with evaluation(inner):
        _apply(inner, report)
    if report.left:
        warnings.warn(str(report), stacklevel=2)
    return model.eval()


class _Folded(nn.Identity):
    """Identity in place of a folded batch norm. With another number of dimensions, channels would not be at dim 1."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.dimensions = dimensions

    def forward(self, input: Tensor) -> Tensor:
        """Return `input`, of `dimensions` dimensions."""
        message = f"a batch norm folded for inputs of {self.dimensions} dimensions got others: do not fold it."
        assert_recorded(input.dim() == self.dimensions, message)
        return input

    def extra_repr(self) -> str:
        return f"dimensions={self.dimensions}"


@torch.no_grad()
def _apply(model: nn.Module, report: FoldReport) -> None:
    swaps: dict[nn.Module, nn.Module] = {}
    for name, sources in report.folded.items():
        norm = model.get_submodule(name)
        for where in sources:
            source = model.get_submodule(where)
            weight, bias = folded(source, norm)
            # Without the parametrization of `convert`: the folded weight includes it.
            plain: Any = original(source, model)
            for key, value in (("weight", weight), ("bias", bias)):
                setattr(plain, key, nn.Parameter(value, requires_grad=plain.weight.requires_grad))
            swaps |= {source: plain, norm: _Folded(weight.dim()).eval()}
    replace_modules(model, swaps)


def _compare(model: nn.Module, report: FoldReport, example: Any) -> None:
    """Raise `UserError` if outputs on the example would change or cannot be compared."""
    twin = copy.deepcopy(model)
    _apply(twin, report)
    with torch.no_grad(), evaluation(model):
        before, after = (list(_tensors(call(m, example, "the example"))) for m in (model, twin.eval()))
    if not any(right.numel() for right in before):
        raise UserError("there is no number in the model's output on the example to compare: give a larger batch.")
    if not all(right.isfinite().all() for right in before):
        raise UserError("the model's output on the example is not finite, so it says nothing: give another batch.")
    for right, found in zip(before, after, strict=True):
        deviation = (found.double() - right.double()).abs().max().item() if right.numel() else 0.0
        largest = max(right.double().abs().max().item(), 1.0) if right.numel() else 1.0
        if not deviation <= _TOLERANCE.get(right.dtype, 5e-2) * largest:
            raise UserError(
                f"folding would change the model's output on the example by {deviation:.2g}: its forward uses the "
                "layers in another way than their order says (or is random), so all batch norms stay as they are."
            )


def _tensors(output: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors of an output, however nested."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, dict | list | tuple):
        for part in output.values() if isinstance(output, dict) else output:
            yield from _tensors(part)
