"""The training of a stack of runs: their epochs, histories, checkpoints and progress, each as the run's own would be.

A run's checkpoint is the one that it writes when it trains by itself, in its own folder. So whatever was interrupted
goes on, in a stack of any other runs that have come as far, or by itself.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from syncnorm.config import Execution, Run
from syncnorm.progress import Pace
from syncnorm.training.batches import Batches
from syncnorm.training.checkpoints import Checkpoints, State, load_module_state
from syncnorm.training.lightning.classifier import Classifier
from syncnorm.training.lightning.resume import Clock, state_of
from syncnorm.training.stacked.models import entries_of
from syncnorm.training.stacked.stack import Stack
from syncnorm.worlds import checkpoint_id

Place = tuple[int, int]
"""Epoch and step."""
START: Place = (0, 0)


@dataclass(frozen=True)
class Member:
    """A run of a stack, before its first step."""

    run: Run
    classifier: Classifier
    batches: Batches
    folder: Path | None
    """Of its checkpoint."""

    @property
    def files(self) -> Checkpoints | None:
        """Its checkpoints."""
        return Checkpoints(self.folder, checkpoint_id(self.run)) if self.folder else None

    def like(self, other: "Member") -> bool:
        """Return whether it makes as many steps as another run, with a model of the same entries."""
        mine, theirs = (
            {name: (value.shape, value.dtype) for name, value in entries_of(one.classifier.model).items()}
            for one in (self, other)
        )
        return mine == theirs and self.batches.steps == other.batches.steps


Some = TypeVar("Some", bound=Member)


def in_one_place(members: Sequence[Some]) -> tuple[list[Some], list[State]]:
    """Return the members that can train together with the first, and their checkpoints, which are of one step.

    That is the place of a checkpoint of the first which most of them have, of several the latest. Without one, all
    begin, and there are no checkpoints.
    """
    states = [{(state["epoch"], state["step"]): state for state in _read(one)} for one in members]
    if not states[0]:
        return [one for one, found in zip(members, states, strict=True) if not found], []
    place = max(states[0], key=lambda place: (sum(place in found for found in states), place))
    there = [(one, found[place]) for one, found in zip(members, states, strict=True) if place in found]
    return [one for one, _ in there], [state for _, state in there]


def dealt(members: Sequence[Member], epoch: int, first: int) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Yield the members' samples and targets of an epoch from step `first` on, step by step, on their device."""
    device = next(members[0].classifier.model.parameters()).device
    for batches in zip(*(one.batches.deal(epoch, first) for one in members), strict=True):
        x, y = zip(*batches, strict=True)
        yield [part.to(device) for part in x], [part.to(device) for part in y]


def _read(member: Member) -> list[State]:
    return files.read("cpu") if (files := member.files) else []


class NotStacked(Exception):
    """Why runs cannot train in one computation."""


@contextmanager
def computing() -> Iterator[None]:
    """Raise `NotStacked` for whatever the models raise: each then says by itself what is wrong with it."""
    try:
        yield
    except Exception as error:
        text = str(error).splitlines()[0] if str(error) else ""
        if "randomness" in text:
            raise NotStacked("the model draws random numbers in training, as dropout does") from error
        raise NotStacked(f"its model cannot be stacked ({type(error).__name__}: {text[:160]})") from error


class Together:
    """The training of runs in one computation; `train` does it, and leaves each classifier as its own would be.

    Args:
        members: runs that are alike, all at one place.
        states: their checkpoints; none to begin.
        execution: of the first, whose progress is reported.
    """

    def __init__(self, members: Sequence[Member], states: Sequence[State], execution: Execution) -> None:
        self._members, self._execution, self._due = members, execution, Clock(execution.checkpoint_every)
        first = members[0]
        self._steps, self._optim = first.batches.steps, first.run.optim
        each = ceil(self._steps / self._optim.accumulate)
        self._all = each * self._optim.epochs
        self._place = START
        for one, state in zip(members, states, strict=bool(states)):
            load_module_state(one.classifier, state["module"])
            one.classifier.recall(state["classifier"])
            one.classifier.seconds_before = state["seconds"]
        self._stack = Stack([one.classifier for one in members], self._all)
        for row, state in enumerate(states):
            self._stack.recall_optimizer(row, state["optimizer"])
            self._place = state["epoch"], state["step"]
        self._stack.done = self._place[0] * each + ceil(self._place[1] / self._optim.accumulate)
        self._losses: list[Tensor] = []
        self._began = time.monotonic()

    def train(self) -> None:
        """Make all steps.

        Raises:
            NotStacked: models that cannot be stacked, and whatever they raise.
        """
        epoch, step = self._place
        begin = epoch * self._steps + step
        pace = Pace(self._execution, "epoch", self._optim.epochs, self._steps, begin, len(self._members))
        for now in range(epoch, self._optim.epochs):
            pending = self._epoch(now, step if now == epoch else 0, pace)
            self._give_back()
            with computing():
                for one in self._members:
                    one.classifier.on_train_epoch_end()
            first = self._members[0].classifier
            pace.tell((now + 1) * self._steps, first.history["train_loss"][-1], first.latest())
            if pending and now + 1 < self._optim.epochs:
                self._save(now + 1, 0)

    def _epoch(self, epoch: int, first: int, pace: Pace) -> bool:
        """Make the steps of an epoch from step `first` on; return whether a checkpoint is due at its end."""
        for done, (x, y) in enumerate(dealt(self._members, epoch, first), first + 1):
            last = done % self._optim.accumulate == 0 or done == self._steps
            with computing():
                self._losses.append(self._stack.step(x, y, last))
            if pace.due():
                pace.tell(epoch * self._steps + done, self._losses[-1][0].item())
            if last and done < self._steps and self._due():
                self._save(epoch, done)
        return self._due()

    def _give_back(self) -> None:
        """Give each classifier its model, and its losses since the last time."""
        self._stack.give_back()
        if self._losses:
            losses = torch.stack(self._losses)
            for row, one in enumerate(self._members):
                one.classifier.count_losses(losses[:, row].unbind())
            self._losses.clear()

    def _save(self, epoch: int, step: int) -> None:
        """Write every run's checkpoint."""
        self._give_back()
        seconds = (time.monotonic() - self._began) / len(self._members)
        for row, one in enumerate(self._members):
            if files := one.files:
                optimizer = self._stack.optimizer_of(row)
                schedule = one.classifier.schedule_at(optimizer, self._all, self._stack.done)
                before = one.classifier.seconds_before
                kept: dict[str, Any] = {"epoch": epoch, "step": step, "seconds": before + seconds}
                files.write({**kept, **state_of(one.classifier, optimizer, schedule), "precision": {}})
        self._due.saved()
