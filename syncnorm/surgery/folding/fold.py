"""Fold batch norms into the convolutions and linear layers before them, for evaluation.

model = syncnorm.fold(model)                # warns of norms that cannot be folded
report = syncnorm.fold_report(model)        # the same in advance, layer by layer
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from syncnorm._torch import assert_recorded, uncompiled_module
from syncnorm.errors import UserError
from syncnorm.surgery.folding.check import Inputs, checked, made_up_inputs, takes
from syncnorm.surgery.folding.plan import FoldReport, rest_to_keep, traced_report
from syncnorm.surgery.folding.run import run_report
from syncnorm.surgery.folding.values import folded
from syncnorm.surgery.layers.fused import with_rest
from syncnorm.surgery.layers.modes import evaluation
from syncnorm.surgery.layers.own_parts import own_parts
from syncnorm.surgery.layers.preconditions import check_changeable, check_whole, uncompiled, warn_of_foreign_norms
from syncnorm.surgery.layers.replace import replace_modules
from syncnorm.surgery.layers.substitute import original, original_layer


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
    running statistics, has hooks, or a forward that is not batch norm and something after it (which the new layer
    does as well); or if its evaluation depends on the sample, its batch or its domain. One warning names those that
    stay. A batch norm used in several places is folded only if it can be folded in all of them. Norms from `convert`
    fold like all others and are then not reverted; "mabn" (mean square, with mean 0) folds together with the centring
    of the weight before it. The new bias requires gradients if one of the biases that it is made of does.

    Outputs before and after are compared, on the example or on a made-up batch of a shape that the model takes, if
    one is found: to rounding, and in float64 too where the model runs in it.

    Args:
        model: any module.
        example: a batch to compare outputs on. With it, a model that cannot be traced is folded too: neighbours in
            an `nn.Sequential`, and layers one right after the other in a run on the example. (If the forward branches
            on its input, only the example's branch is compared.)

    Raises:
        UserError: a forward that cannot be traced (without an example), outputs that differ, an example on which
            they cannot be compared, or a model that is scripted, quantised, sharded or in
            DDP; the model is then unchanged.
    """
    check_changeable(model)
    check_whole(model, "fold")
    inner = uncompiled_module(model)
    graph = None
    try:
        report, graph = traced_report(inner)
    except UserError:
        if example is None:
            raise
        report = run_report(inner, example)
    warn_of_foreign_norms(inner, "it is not folded")

    def change() -> Callable[[], None]:
        with evaluation(inner):
            return _apply(inner, report)

    with uncompiled():
        inputs, what = ((example,), "the example") if example is not None else _made_up(inner, report, graph)
        if inputs is not None:
            checked(inner, change, inputs, what)
        else:
            change()
    if report.left:
        warnings.warn(str(report), stacklevel=2)
    return model.eval()


def _made_up(model: nn.Module, report: FoldReport, graph: fx.Graph | None) -> tuple[Inputs | None, str]:
    """Return inputs that the model takes, if any can be made up, and what they are."""
    if report.folded:
        for inputs in made_up_inputs(model, graph):
            if takes(model, inputs):
                return inputs, f"a made-up batch of shape {', '.join(str(tuple(x.shape)) for x in inputs)}"
    return None, ""


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
def _apply(model: nn.Module, report: FoldReport) -> Callable[[], None]:
    """Fold what the report says; return a function that undoes it."""
    swaps: dict[nn.Module, nn.Module] = {}
    held: list[tuple[Any, str, nn.Parameter | None]] = []
    for name, sources in report.folded.items():
        norm: Any = model.get_submodule(name)
        for where in sources:
            source = model.get_submodule(where)
            weight, bias = folded(source, norm)
            biases = [p for p in (source.bias, getattr(norm, "bias", None)) if isinstance(p, Tensor)]
            learnt = any(p.requires_grad for p in biases)
            # Without the parametrization of `convert`: the folded weight includes it.
            plain: Any = original(source, model)
            held += [(plain, "weight", plain.weight), (plain, "bias", plain.bias)]
            plain.weight = nn.Parameter(weight, requires_grad=plain.weight.requires_grad)
            plain.bias = nn.Parameter(bias, requires_grad=learnt)
            swaps |= {source: plain, norm: _Folded(weight.dim()).eval()}
        new = swaps[norm]
        own_parts(original_layer(norm)).free_in(new).hand_over(norm, new)
        with_rest(new, rest_to_keep(norm))
    replace_modules(model, swaps)

    def undo() -> None:
        replace_modules(model, {new: old for old, new in swaps.items()})
        for layer, key, parameter in held:
            setattr(layer, key, parameter)

    return undo
