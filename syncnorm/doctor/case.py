"""What a check gets: the model, what its user has said about its use, and what was seen when a copy ran."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from syncnorm.doctor.rows import NEEDS
from syncnorm.doctor.watch.evaluation import Evaluation, evaluate
from syncnorm.doctor.watch.inputs import Inputs
from syncnorm.doctor.watch.kinds import Kind, is_over_ranks, kind_of
from syncnorm.doctor.watch.trace import Trace, trace
from syncnorm.errors import UserError
from syncnorm.surgery.layers.replace import copied

MOST = 32
"""Most samples of the step of training and the evaluation that checks read."""


def _several_ranks() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class Case:
    """A model under diagnosis. A check reads it, and runs copies alone.

    model: the user's model, which no check may change.
    inputs: the batch that it is run on; None if there is none.
    batch_size: samples of a forward pass on one device; None if unknown.
    world_size: number of devices.
    accumulate: forward passes of a step of the optimiser.
    optimizer: the user's.
    policy, algorithm, client_sizes: of a federation: its batch-norm policy and algorithm by name, and the number of
        samples of each client.
    deploy: whether the model is to be deployed as it is.
    shards: what each rank holds: its labels, or a batch of its inputs.
    mixup, cutmix: the parameter alpha of MixUp and of CutMix; None without it.
    padded: the dimension of the input along which samples are padded with zeros; None if they are not.
    live: False for a checkpoint, whose stand-in for the model cannot run.
    """

    def __init__(self, model: nn.Module, inputs: Inputs | None = None, *, live: bool = True) -> None:
        self.model, self.inputs, self.live = model, inputs, live
        self.batch_size: int | None = None
        self.world_size, self.accumulate = 1, 1
        self.optimizer: Optimizer | None = None
        self.policy: str | None = None
        self.algorithm: str | None = None
        self.client_sizes: tuple[int, ...] = ()
        self.deploy = False
        self.shards: tuple[Tensor | Inputs, ...] = ()
        self.mixup: float | None = None
        self.cutmix: float | None = None
        self.padded: int | None = None
        self.kept_from_running = ""
        if _several_ranks() and any(is_over_ranks(module) for module in model.modules()):
            self.inputs = None
            self.kept_from_running = "one rank cannot run a synchronised norm alone: diagnose before ranks join"
        self._trained: Trace | UserError | None = None

    def copy(self) -> nn.Module:
        """Return a copy of the model, to run or change.

        Raises:
            UserError: a model that `copy.deepcopy` cannot copy.
        """
        try:
            return copied(self.model)
        except Exception as error:  # a user's module may contain anything
            kind = type(self.model).__name__
            raise UserError(f"the model runs on a copy, and {kind} cannot be copied ({error}).") from error

    def lacks(self, needs: Sequence[str]) -> str:
        """Return what is missing of `needs`, as advice; an empty string if nothing is."""
        there = {
            "model": self.live,
            "input": self.live and self.inputs is not None,
            "batch_size": self.batch_size is not None,
            "ranks": self.batch_size is not None and self.world_size > 1,
            "accumulate": self.batch_size is not None and self.accumulate > 1,
            "optimizer": self.optimizer is not None,
            "policy": self.policy is not None,
            "deploy": self.deploy,
            "shards": bool(self.shards),
            "mixup": self.mixup is not None,
            "cutmix": self.cutmix is not None,
            "padded": self.padded is not None,
        }
        missing = [need for need in needs if not there[need]]
        if not missing:
            return ""
        if not self.live:
            return NEEDS["model"]
        return self.kept_from_running if missing[0] == "input" and self.kept_from_running else NEEDS[missing[0]]

    @cached_property
    def norms(self) -> dict[str, tuple[Kind, nn.Module]]:
        """The norms that the model's modules list, by name: the kind and the layer."""
        kinds = {name: (kind_of(module), module) for name, module in self.model.named_modules()}
        return {name: (kind, module) for name, (kind, module) in kinds.items() if kind is not None}

    @cached_property
    def batch_norms(self) -> dict[str, Any]:
        """The batch norms among them."""
        return {name: module for name, (kind, module) in self.norms.items() if kind == "batch"}

    @property
    def training(self) -> Trace:
        """What was seen in a step of training, of at most `MOST` samples; of a single sample, two of it.

        Raises:
            UserError: the model fails.
        """
        if self._trained is None:
            try:
                self._trained = trace(self.copy(), self.given.repeated() if self.given.count == 1 else self._small)
            except UserError as error:
                self._trained = error
        if isinstance(self._trained, UserError):
            raise self._trained
        return self._trained

    @cached_property
    def as_trained(self) -> dict[str, bool]:
        """For each batch norm, whether `model.train()` puts it into training mode."""
        twin = self.copy().train()
        return {name: twin.get_submodule(name).training for name in self.batch_norms}

    @cached_property
    def evaluation(self) -> Evaluation:
        """What was seen in evaluation."""
        return evaluate(self.copy(), self._small)

    @property
    def _small(self) -> Inputs:
        return self.given.take(min(self.given.count, MOST)) or self.given

    @property
    def given(self) -> Inputs:
        """The input; only for checks that need it."""
        if self.inputs is None:
            raise UserError(NEEDS["input"])
        return self.inputs

    def values(self, values: int) -> float:
        """Return how many values a batch of one device has in place of the traced batch's `values`."""
        return values / self.training.samples * (self.batch_size or self.training.samples)
