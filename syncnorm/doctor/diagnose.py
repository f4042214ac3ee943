"""Run the checks on a model: `syncnorm.diagnose`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer

from syncnorm._torch import uncompiled_module
from syncnorm.doctor.case import Case
from syncnorm.doctor.diagnosis import Diagnosis
from syncnorm.doctor.finding import ORDER, Finding
from syncnorm.doctor.registry import CHECKS
from syncnorm.doctor.watch.inputs import read_inputs, read_shards
from syncnorm.errors import UserError, unknown
from syncnorm.federated.policies import policy_named
from syncnorm.surgery.layers.preconditions import check_model


def diagnose(
    model: nn.Module,
    inputs: Any = None,
    *,
    batch_size: int | None = None,
    world_size: int = 1,
    accumulate: int = 1,
    optimizer: Optimizer | None = None,
    policy: str | None = None,
    algorithm: str | None = None,
    client_sizes: Sequence[int] = (),
    deploy: bool = False,
    shards: Sequence[Any] = (),
    mixup: float | None = None,
    cutmix: float | None = None,
    padded: int | None = None,
    checks: Iterable[str] | None = None,
) -> Diagnosis:
    """Look for what is wrong with the norms of a model, and return the findings, the worst first.

        findings = syncnorm.diagnose(model, (3, 32, 32), batch_size=2, world_size=8)
        print(findings)

    The list is empty if nothing was found. `findings.wrong` says whether anything is worse than a note, and
    `findings.skipped` which checks did not run, and why. Layers are found by type and by what they do: copies of the
    model run a step of training and an evaluation, with hooks on everything. The model itself does not run or change,
    nor do the random states of torch, NumPy and Python.

    Args:
        model: any module. In DistributedDataParallel, or compiled, the module inside is looked at.
        inputs: a batch of your data, best of 8 samples or more (a tensor (N, ...), a tuple or a dict of tensors for
            several arguments); or the shape of one sample, (3, 32, 32), of which a batch is drawn; None: no run.
        batch_size: samples of a forward pass on one device.
        world_size: number of devices.
        accumulate: forward passes of a step of the optimiser.
        optimizer: that of the training, to see what it does to norms.
        policy: of a federation, the batch-norm policy by name, such as "fedbn".
        algorithm: its algorithm by name, such as "fedadam".
        client_sizes: the number of samples of each of its clients.
        deploy: also tell what could be folded, and what that saves.
        shards: of each rank its labels (whole numbers), a batch of its inputs, or its loader (its first batch).
        mixup: the parameter alpha of MixUp, if training uses it.
        cutmix: the parameter alpha of CutMix, if training uses it.
        padded: the dimension of the input along which samples are padded with zeros to a common length.
        checks: names of the checks to run; None runs all, also registered ones (`syncnorm.register_check`).

    Raises:
        UserError: no module; an input that it does not take (the sentence names the layer); a size below 1; an
            unknown policy or check.
    """
    check_model(model)
    _check_sizes(batch_size=batch_size, world_size=world_size, accumulate=accumulate)
    _check_use(policy, MixUp=mixup, CutMix=cutmix)
    case = Case(_inner(model), None if inputs is None else read_inputs(inputs, _inner(model)))
    case.batch_size, case.world_size, case.accumulate, case.optimizer = batch_size, world_size, accumulate, optimizer
    case.policy, case.algorithm, case.client_sizes, case.deploy = policy, algorithm, tuple(client_sizes), deploy
    case.shards, case.mixup, case.cutmix, case.padded = read_shards(shards, case.model), mixup, cutmix, padded
    if case.inputs is not None:
        _ = case.evaluation, case.training  # an input that the model does not take is said at once
    return examine(case, checks, type(case.model).__name__)


def _check_sizes(**sizes: int | None) -> None:
    for name, value in sizes.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        if value is not None and (not whole or value < 1):
            raise UserError(f"{name} is {value!r}: it must be a whole number, at least 1.")


def _check_use(policy: str | None, **alphas: float | None) -> None:
    for name, alpha in alphas.items():
        if alpha is not None and not alpha > 0:
            raise UserError(
                f"{name.lower()} is {alpha!r}: it is the parameter alpha of {name}'s beta distribution, above 0."
            )
    if policy is not None:
        policy_named(policy)


def _inner(model: nn.Module) -> nn.Module:
    """Return the module inside DDP, DataParallel and `torch.compile`."""
    inner = uncompiled_module(model)
    while isinstance(inner, DistributedDataParallel | DataParallel):
        inner = uncompiled_module(inner.module)
    return inner


def examine(case: Case, checks: Iterable[str] | None = None, subject: str = "model") -> Diagnosis:
    """Run checks on a case, and return what they find.

    Raises:
        UserError: an unknown check; a check that changes the model, fails, or yields no findings.
    """
    names = list(CHECKS) if checks is None else list(checks)
    for name in names:
        if name not in CHECKS:
            raise unknown("check", str(name), CHECKS)
    found: list[Finding] = []
    checked: list[str] = []
    skipped: dict[str, str] = {}
    before = _state(case.model)
    for name in names:
        check = CHECKS[name]
        if missing := case.lacks(check.needs):
            skipped[name] = missing
            continue
        try:
            found += [_named(finding, name) for finding in check.function(case)]
        except UserError as error:
            skipped[name] = str(error).rstrip(".")
            continue
        checked.append(name)
        if _state(case.model) != before:
            raise UserError(f"check '{name}' has changed the model: let it run and change case.copy() alone.")
    return Diagnosis(found, subject, checked, skipped)


def _named(finding: Any, check: str) -> Finding:
    if not isinstance(finding, Finding) or finding.severity not in ORDER:
        raise TypeError(f"check '{check}' yields {finding!r}: yield syncnorm.doctor.Finding(layer, what, remedy).")
    return replace(finding, check=check)


def _state(model: nn.Module) -> list[Any]:
    """Return what tells whether a model has changed: versions of its tensors, and modes."""
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    versions = [(id(t), t._version if not t.is_inference() else 0, t.requires_grad) for t in tensors]
    return [versions, [(id(module), module.training) for module in model.modules()], torch.is_grad_enabled()]
