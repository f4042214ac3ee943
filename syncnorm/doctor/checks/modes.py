"""Training and evaluation: which mode a norm is in, and whether it keeps to it."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from syncnorm.doctor.case import Case
from syncnorm.doctor.finding import Finding
from syncnorm.doctor.watch.inputs import Inputs
from syncnorm.doctor.watch.kinds import uses_the_batch
from syncnorm.doctor.watch.passes import channel_moments
from syncnorm.doctor.words import percent
from syncnorm.norms.registry import spec_of
from syncnorm.surgery import batch_norms, frozen_layers

ENOUGH = 64
"""Samples, and values a channel, that tell a shift of the variance from chance."""
SHIFTED = 1.25
"""A variance in training, relative to that in evaluation, that has shifted."""
STATE = ("running_mean", "running_var", "num_batches_tracked")


def left_in_training(case: Case) -> Iterator[Finding]:
    """A batch norm in training mode inside a model in evaluation mode."""
    if case.model.training:
        return
    for name, layer in case.batch_norms.items():
        if layer.training and uses_the_batch(layer):
            yield Finding(
                name,
                "the model is in evaluation mode, and this layer is in training mode: it normalises by the batch and "
                "moves its statistics",
                "call model.eval() after whatever called .train() on a part of the model",
                "error",
            )


def stays_in_training(case: Case) -> Iterator[Finding]:
    """A batch norm that `model.eval()` leaves in training mode."""
    for name in case.evaluation.training:
        if name in case.batch_norms and uses_the_batch(case.batch_norms[name]):
            yield Finding(
                name,
                "model.eval() leaves it in training mode",
                "let the model's own train(mode) or eval() reach all of its modules: end it with super().train(mode)",
                "error",
                "measured",
                _change(case),
            )


def depends_on_batch(case: Case) -> Iterator[Finding]:
    """A sample's output in evaluation that depends on the other samples of its batch."""
    without = [name for name, layer in case.batch_norms.items() if _keeps_nothing(layer)]
    for name in without:
        yield Finding(
            name,
            "it keeps no running statistics, so in evaluation it mixes the samples of a batch: a sample's output "
            "depends on the others",
            "write track_running_stats=True, or take group norm",
            cost=_change(case),
        )
    seen = case.evaluation
    explained = {*without, *seen.training, *(name.rpartition(".")[0] for name in seen.moved)}
    unlisted = any(call.by_batch and not call.listed for call in case.training.calls)
    if not seen.change or unlisted or explained & set(seen.coupled):
        return  # or another check says so
    for name in seen.coupled or [""]:
        known = name in case.batch_norms
        yield Finding(
            name,
            f"in evaluation it {'' if known else 'is no batch norm of torch.nn, and '}mixes the samples of a batch: "
            "a sample's output depends on the others",
            "let it use running statistics if not self.training, or give each sample statistics of its own",
            "warning",
            "measured",
            _change(case),
        )


def _keeps_nothing(layer: nn.Module) -> bool:
    spec = spec_of(layer)
    if not isinstance(layer, _BatchNorm) or (
        spec is not None and (spec.evaluates != "running" or not spec.sees_batch)
    ):
        return False
    return layer.running_mean is None and layer.running_var is None


def moves_in_evaluation(case: Case) -> Iterator[Finding]:
    """Running statistics that a forward pass in evaluation changes."""
    for where in dict.fromkeys(name.rpartition(".")[0] for name in case.evaluation.moved if _is_state(name)):
        if where not in case.evaluation.training:
            yield Finding(
                where,
                "a forward pass in evaluation changes its running statistics",
                "write F.batch_norm(..., training=self.training), not True",
                "error",
                "measured",
                _change(case),
            )


def frozen_but_moving(case: Case) -> Iterator[Finding]:
    """Weights that are frozen, beside running statistics that move in training."""
    if not any(p.requires_grad for p in case.model.parameters()):
        return
    held = set(frozen_layers(case.model))
    listed = batch_norms(case.model)
    for name, layer in case.batch_norms.items():
        own = [p for p in layer.parameters(recurse=False)]
        frozen = bool(own) and not any(p.requires_grad for p in own)
        moves = layer.running_mean is not None and layer.track_running_stats if name in listed else False
        kept = name in held or (case.model.training and not layer.training)
        if frozen and moves and not kept and layer.momentum != 0 and case.as_trained[name]:
            yield Finding(
                name,
                "its weight and bias are frozen, and training still moves its running statistics, and normalises by "
                "the batch",
                f'call syncnorm.freeze(model, "{name}"), which lasts through model.train()',
                "warning",
                "likely",
            )


def dropout_before(case: Case) -> Iterator[Finding]:
    """Dropout before a batch norm, whose variance in training then is not that of evaluation."""
    dropping = any(isinstance(module, _DropoutNd) and module.p > 0 for module in case.model.modules())
    if not dropping or not case.batch_norms:
        return
    inputs = case.given.take(ENOUGH) or case.given
    with_it, without = (_variances(case, inputs, on) for on in (True, False))
    for name, (var, count) in with_it.items():
        plain = without[name][0] if name in without else 0.0
        ratio = var / plain if plain > 0 else 1.0
        if count >= ENOUGH and ratio > SHIFTED:
            yield Finding(
                name,
                f"dropout before it makes the variance of its input in training {ratio:.1f} times that of "
                "evaluation, and its running variance is that of training",
                "put dropout after the last batch norm",
                "warning",
                "measured",
                f"{inputs.count} samples of {inputs.words}",
            )


def _variances(case: Case, inputs: Inputs, dropping: bool) -> dict[str, tuple[float, int]]:
    """Return the variance of each batch norm's input, a mean over channels, and the number of values a channel."""
    twin = case.copy().train()
    for module in twin.modules():
        if isinstance(module, _DropoutNd):
            module.training = dropping
    found = channel_moments(twin, inputs, list(case.batch_norms))
    return {name: (float(moments.var().mean()), int(moments.count)) for name, moments in found.items()}


def _is_state(name: str) -> bool:
    return name.rpartition(".")[2] in STATE or "running_" in name.rpartition(".")[2]


def _change(case: Case) -> str:
    if not case.evaluation.change:
        return ""
    return (
        f"other samples in its batch move a sample's output by up to {percent(case.evaluation.change)} of the "
        f"largest output ({case.given.words})"
    )
