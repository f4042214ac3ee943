"""Save and resume training with Lightning's Trainer, on one device or on every rank of a launch.

A checkpoint is taken between two optimiser steps. All ranks take it at the same step, each in its own file; it is
valid only if every rank can read its file. On CUDA, agreeing at every step would make the host wait for the device,
so the ranks agree on when to save about once a second.
"""

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist

from syncnorm.training.batches import Batches
from syncnorm.training.checkpoints import (
    Checkpoints,
    State,
    load_module_state,
    load_random_state,
    module_state,
    random_state,
)
from syncnorm.training.lightning.classifier import Classifier
from syncnorm.waiting import waiting

AGREE_SECONDS = 1.0
"""Approximate interval in seconds at which ranks agree on whether to save."""


class Resume(pl.Callback):
    """Resumes training from the newest checkpoint in `folder`, and saves one every `every` seconds.

    Args:
        folder: folder of the checkpoint.
        run: the id of the run, or of the training that several runs share.
        every: seconds between two checkpoints; 0 saves after each step.
    """

    def __init__(self, folder: Path, run: str, every: float) -> None:
        self._folder, self._run, self._every = folder, run, every
        self._state: State | None = None
        self._pending = False
        self._began = time.monotonic()

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        """Choose the checkpoint to resume from, and set the Trainer's loops to its step."""
        several = trainer.world_size > 1
        part = f"rank {trainer.global_rank} of {trainer.world_size}" if several else ""
        self._files = Checkpoints(self._folder, self._run, part)
        self._due = _Agreement(self._every, trainer) if several else Clock(self._every)
        states = {(state["epoch"], state["step"]): state for state in self._files.read("cpu")}
        common = set(states)
        if several:
            of_all: list[Any] = [None] * trainer.world_size
            dist.all_gather_object(of_all, sorted(states))
            common = set.intersection(*(set(map(tuple, places)) for places in of_all))
        if common:
            self._state = states[max(common)]
            _start_at(trainer, *max(common))

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Restore the state from the checkpoint."""
        if (state := self._state) is None:
            return
        self._state = None
        assert isinstance(module, Classifier)
        if trainer.world_size > 1:
            _rehearse(trainer)
        load_module_state(module, state["module"])
        module.recall(state["classifier"])
        trainer.optimizers[0].load_state_dict(state["optimizer"])
        trainer.lr_scheduler_configs[0].scheduler.load_state_dict(state["schedule"])
        trainer.precision_plugin.load_state_dict(state["precision"])
        load_random_state(state["random"])
        module.seconds_before = state["seconds"]

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save after a step if it is due."""
        done = batch_idx + 1
        last = done == trainer.num_training_batches
        if not last and done % trainer.accumulate_grad_batches:
            return  # gradients are partly accumulated
        self._pending |= self._due()
        if self._pending and not last:
            self._save(trainer, module, done)

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Save a checkpoint that was due at the last step of the previous epoch, now that the epoch has ended."""
        if self._pending:
            self._save(trainer, module, 0)

    def _save(self, trainer: pl.Trainer, module: pl.LightningModule, step: int) -> None:
        assert isinstance(module, Classifier)
        self._pending = False
        self._files.write(
            {
                "epoch": trainer.current_epoch,
                "step": step,
                "seconds": module.seconds_before + time.monotonic() - self._began,
                **state_of(module, trainer.optimizers[0], trainer.lr_scheduler_configs[0].scheduler),
                "precision": trainer.precision_plugin.state_dict(),
            }
        )
        self._due.saved()


def state_of(module: Classifier, optimizer: torch.optim.Optimizer, schedule: Any) -> State:
    """Return what a checkpoint holds of a training, but for the time and what the Trainer keeps."""
    return {
        "module": module_state(module),
        "classifier": module.remember(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "random": random_state(),
    }


def _start_at(trainer: pl.Trainer, epoch: int, step: int) -> None:
    """Let the Trainer start at step `step` of epoch `epoch`."""
    batches = _batches(trainer)
    batches.resume_at = (epoch, step)
    loop = trainer.fit_loop
    for progress in (loop.epoch_progress.total, loop.epoch_progress.current):
        progress.ready = progress.started = progress.processed = progress.completed = epoch  # type: ignore[attr-defined]
    inner = loop.epoch_loop
    inner.restarting = step > 0  # otherwise it would count from 0
    for counts, value in (
        (inner.batch_progress.total, epoch * batches.steps + step),
        (inner.batch_progress.current, step),
    ):
        counts.ready = counts.started = counts.processed = counts.completed = value  # type: ignore[attr-defined]


def _rehearse(trainer: pl.Trainer) -> None:
    """Do one backward pass and discard it, before the state is restored.

    After its first step, DDP orders gradients by their arrival. With three or more ranks, rounding in the sum depends
    on that order, so a resumed run must have done its first step too.
    """
    batch = next(_batches(trainer).deal(0, 0))
    with trainer.precision_plugin.train_step_context():
        loss = trainer.strategy.training_step(batch, 0)
    assert isinstance(loss, torch.Tensor)
    loss.backward()  # type: ignore[no-untyped-call]
    trainer.optimizers[0].zero_grad()


def _batches(trainer: pl.Trainer) -> Batches:
    batches = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(batches, Batches)
    return batches


class Clock:
    """Tells when a checkpoint is due, in one process."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._last = seconds, time.monotonic()

    def __call__(self) -> bool:
        """Return whether it is due."""
        return time.monotonic() - self._last >= self._seconds

    def saved(self) -> None:
        """Start anew."""
        self._last = time.monotonic()


class _Agreement(Clock):
    """Tells all ranks at the same step that a checkpoint is due, by rank 0's clock.

    Rank 0's answer includes the number of steps until the next query.
    """

    def __init__(self, seconds: float, trainer: pl.Trainer) -> None:
        super().__init__(seconds)
        self._device = trainer.strategy.root_device
        self._left = self._steps = 1
        self._asked = time.monotonic()

    def __call__(self) -> bool:
        self._left -= 1
        if self._left:
            return False
        now = time.monotonic()
        rate = self._steps / max(now - self._asked, 1e-6)
        answer = torch.tensor(
            [super().__call__(), max(1, int(rate * min(self._seconds, AGREE_SECONDS)))], device=self._device
        )
        with waiting():
            dist.broadcast(answer, src=0)
            due, self._steps = answer.tolist()
        self._left, self._asked = self._steps, now
        return bool(due)
