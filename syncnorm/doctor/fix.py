"""Fix what is safe to fix, in a copy: `syncnorm.doctor.fix`."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from syncnorm.doctor.case import Case
from syncnorm.doctor.checks.structure import dead_biases
from syncnorm.doctor.diagnose import diagnose, examine
from syncnorm.doctor.diagnosis import Diagnosis
from syncnorm.doctor.measures.ranks import is_plain
from syncnorm.doctor.subject import state_of
from syncnorm.doctor.watch.inputs import Inputs, read_inputs, tensors_of
from syncnorm.doctor.watch.quiet import running
from syncnorm.doctor.words import some
from syncnorm.errors import UserError
from syncnorm.surgery import convert, recalibrate

SAME = 1e-5
"""Outputs that differ by more than this share of the largest one, in float32 or wider, are other outputs."""
STALE = ("misfitting_statistics", "never_updated", "not_finite", "negative_variance", "zero_variance")
"""Findings that statistics of the user's data mend."""


@dataclass(frozen=True)
class Fix:
    """One thing that was done, or that was tried and taken back.

    check: the check that found the fault.
    layers: where.
    what: what was done, or why it was not.
    done: whether the copy has it.
    change: largest change of an output in training or evaluation, as a share of the largest one; None if there was no
        input to compare on.
    """

    check: str
    layers: tuple[str, ...]
    what: str
    done: bool = True
    change: float | None = None

    def __str__(self) -> str:
        told = f"{self.check}: {self.what} ({some(self.layers)})"
        if not self.done:
            return told
        if self.change is None:
            return f"{told}; no input to compare outputs on"
        return f"{told}; outputs are {'equal' if not self.change else f'the same to {self.change:.1g}'}"


@dataclass(frozen=True)
class Fixed:
    """A fixed copy of a model: the copy, what was done to it, and what is left to do by hand."""

    model: nn.Module
    fixes: list[Fix] = field(default_factory=list)
    left: Diagnosis = field(default_factory=Diagnosis)

    @property
    def done(self) -> list[Fix]:
        """The fixes that the copy has."""
        return [fix for fix in self.fixes if fix.done]

    def __str__(self) -> str:
        lines = [f"{len(self.done)} fixed" if self.done else "nothing to fix"]
        for fix in self.fixes:
            lines += textwrap.wrap(
                f"{'' if fix.done else 'not fixed: '}{fix}.", 80, initial_indent="  ", subsequent_indent="    "
            )
        return "\n".join([*lines, "", f"What is left: {self.left}"])


def fix(
    model: nn.Module,
    inputs: Any = None,
    *,
    batches: Iterable[Any] | None = None,
    batch_size: int | None = None,
    world_size: int = 1,
) -> Fixed:
    """Fix, in a copy of a model, what is safe to fix, and return the copy, what was done, and what is left.

        fixed = syncnorm.doctor.fix(model, x, batches=loader)
        print(fixed)
        torch.save(fixed.model.state_dict(), "fixed.pt")

    - Averaged counters of batches become whole numbers again.
    - Batch norms in training mode inside a model in evaluation mode go into evaluation mode.
    - With `batches`, statistics that are stale, broken or of other data are set to those of the batches.
    - Dead biases before a norm are dropped, and taken off the running mean after them. The state then lacks them:
      build the layer with bias=False.
    - With `batch_size` and a `world_size` above 1, batch norms that see too little on a device become `sync_bn`.

    For the last two, outputs before and after are compared on the input, in training and in evaluation: where one
    moves by more than 1e-5 of the largest, the copy does not get the fix, and its row says so. Modes and new
    statistics change outputs, for that is what they are for. The model itself does not change. A second call finds
    nothing more to do.

    Args:
        model: as for `diagnose`.
        inputs: as for `diagnose`; without it, biases and devices are left as they are.
        batches: batches of training data, for `recalibrate`; all of them are used.
        batch_size: as for `diagnose`.
        world_size: as for `diagnose`.

    Raises:
        UserError: as `diagnose` and `recalibrate`.
    """
    found = diagnose(model, inputs, batch_size=batch_size, world_size=world_size)
    case = Case(model, None if inputs is None else read_inputs(inputs, model))
    twin, fixes = case.copy(), list[Fix]()
    fixes += _counters(twin, found) + _modes(twin, found)
    if batches is not None:
        fixes += _statistics(twin, found, batches)
    if case.inputs is not None:
        for attempt in (_biases, _synchronised):
            twin, more = attempt(twin, found, case.inputs)
            fixes += more
    return Fixed(twin, fixes, diagnose(twin, inputs, batch_size=batch_size, world_size=world_size))


def fix_state(path: Path, stand_in: nn.Module) -> tuple[Fixed, dict[str, Tensor]]:
    """Fix what can be fixed in a checkpoint alone: its counters. Return what was done, and the whole state."""
    found = examine(Case(stand_in, live=False))
    twin = Case(stand_in, live=False).copy()
    fixes = _counters(twin, found)
    state = state_of(path)
    state |= {name: value for name, value in twin.state_dict().items() if name in state}
    return Fixed(twin, fixes, examine(Case(twin, live=False))), state


def _counters(twin: nn.Module, found: Diagnosis) -> list[Fix]:
    names = tuple(finding.layer for finding in found.of("averaged_counter"))
    for name in names:
        layer: Any = twin.get_submodule(name)
        most = layer.num_batches_tracked.double().nan_to_num().max()
        layer.num_batches_tracked = most.round().long().to(layer.num_batches_tracked.device)
    what = "made the counter of batches a whole number"
    return [Fix("averaged_counter", names, what, change=0.0)] if names else []


def _modes(twin: nn.Module, found: Diagnosis) -> list[Fix]:
    names = tuple(finding.layer for finding in found.of("left_in_training"))
    for name in names:
        twin.get_submodule(name).eval()
    what = "put it into evaluation mode, as the model is; by that outputs change"
    return [Fix("left_in_training", names, what)] if names else []


def _biases(twin: nn.Module, found: Diagnosis, inputs: Inputs) -> tuple[nn.Module, list[Fix]]:
    if not found.of("dead_bias"):
        return twin, []
    case = Case(twin, inputs)
    behind = dead_biases(case)
    fixes = []
    for bias, norms in behind.items():
        name = bias.rpartition(".")[0]
        shared = [other for other, others in behind.items() if other != bias and set(norms) & set(others)]
        used = [case.training.uses.get(norm, 1) for norm in norms]
        if shared or max(used) > len(norms):
            what = f"'{norms[0]}' also normalises other outputs, so the bias stays"
            fixes.append(Fix("dead_bias", (name,), what, done=False))
            continue

        def drop(model: nn.Module, name: str = name, norms: list[str] = norms) -> nn.Module:
            layer: Any = model.get_submodule(name)
            for norm in norms:
                mean = getattr(model.get_submodule(norm), "running_mean", None)
                if isinstance(mean, Tensor):
                    mean.sub_(layer.bias.detach().to(mean.dtype))
            layer.bias = None
            return model

        twin, one = _tried(twin, drop, inputs, Fix("dead_bias", (name,), "dropped its bias"))
        fixes.append(one)
    return twin, fixes


def _synchronised(twin: nn.Module, found: Diagnosis, inputs: Inputs) -> tuple[nn.Module, list[Fix]]:
    alone = {finding.layer for check in ("per_device_statistics", "few_values") for finding in found.of(check)}
    listed = Case(twin).batch_norms
    names = tuple(name for name in listed if name in alone and is_plain(listed[name]))
    if not names or "per_device_statistics" in found.skipped:
        return twin, []

    def change(model: nn.Module) -> nn.Module:
        return convert(model, "sync_bn", where=lambda name, _: name in names)

    what = 'converted to "sync_bn"'
    twin, one = _tried(twin, change, inputs, Fix("per_device_statistics", names, what))
    return twin, [one]


def _statistics(twin: nn.Module, found: Diagnosis, batches: Iterable[Any]) -> list[Fix]:
    stale = [finding for check in STALE for finding in found.of(check) if finding.severity != "note"]
    if not stale:
        return []
    names = tuple(dict.fromkeys(finding.layer for finding in stale))
    recalibrate(twin, batches)
    what = "set all running statistics to those of the batches; by that outputs in evaluation change"
    return [Fix(stale[0].check, names, what)]


def _tried(
    twin: nn.Module, change: Callable[[nn.Module], nn.Module], inputs: Inputs, one: Fix
) -> tuple[nn.Module, Fix]:
    """Return the changed model with the fix, or the one before and why it was taken back."""
    trial = Case(twin).copy()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial = change(trial)
        moved = max(_moved(twin, trial, inputs, training) for training in (True, False))
    except (UserError, AttributeError, RuntimeError, ValueError) as error:  # a layer of the user's may hold anything
        return twin, Fix(one.check, one.layers, f"it cannot be: {error}".rstrip("."), done=False)
    if not moved <= SAME:
        what = f"outputs would move by {moved:.1g} of the largest one"
        return twin, Fix(one.check, one.layers, what, done=False)
    return trial, Fix(one.check, one.layers, one.what, change=moved)


def _moved(before: nn.Module, after: nn.Module, inputs: Inputs, training: bool) -> float:
    """Return the largest change of an output, as a share of the largest one, 0 if all are equal bit for bit."""
    results = []
    for model in (before, after):
        twin = Case(model).copy().train(training)
        with running(twin, inputs):
            results.append([x.detach().clone() for x in tensors_of(inputs.call(twin)) if x.is_floating_point()])
    change = 0.0
    for one, other in zip(*results, strict=True):
        if not torch.equal(one.nan_to_num(), other.nan_to_num()):
            gap = (one.double() - other.double()).abs().max() / one.double().abs().max()
            change = max(change, float(gap)) if gap == gap else float("nan")
    return change
