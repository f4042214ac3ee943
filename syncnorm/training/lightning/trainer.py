"""Lightning's Trainer, for all worlds that train with it."""

import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from typing import Any, Literal

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy

from syncnorm.config import Execution, Run, silent
from syncnorm.norms.core.ranks.collectives import rank_and_size
from syncnorm.training.batches import Batches
from syncnorm.training.building import device_of_rank
from syncnorm.training.lightning.classifier import Classifier
from syncnorm.training.lightning.progress import Report
from syncnorm.training.lightning.rank_work import RankWork
from syncnorm.training.lightning.resume import Resume
from syncnorm.training.precision import PRECISIONS
from syncnorm.worlds import checkpoint_id


def run_trainer(run: Run, classifier: Classifier, batches: Batches, execution: Execution, **placement: Any) -> None:
    """Train a run's classifier for its epochs; `placement` are the Trainer's arguments for devices.

    An interrupted run resumes from its checkpoint bit-identically.
    """
    callbacks: list[pl.Callback] = [RankWork()]
    if execution.checkpoint:
        callbacks.append(Resume(execution.checkpoint, checkpoint_id(run), execution.checkpoint_every))
    if execution.report is not silent and int(os.environ.get("RANK", "0")) == 0:
        callbacks.append(Report(execution))
    if run.compile:
        classifier.model.compile()
    with quiet():
        trainer = pl.Trainer(
            max_epochs=run.optim.epochs,
            precision=PRECISIONS[run.precision].trainer,  # type: ignore[arg-type]
            gradient_clip_val=run.optim.clip_norm or None,
            accumulate_grad_batches=run.optim.accumulate,
            barebones=True,
            use_distributed_sampler=False,
            callbacks=callbacks,
            **placement,
        )
        _fit(trainer, classifier, batches)
    classifier.model._compiled_call_impl = None  # evaluation does not need it


def _fit(trainer: pl.Trainer, classifier: Classifier, batches: Batches) -> None:
    """Train, and re-raise interrupts: Lightning would exit with 1 and ignore every further Ctrl-C."""
    heard = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(classifier, datamodule=batches)
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, heard)
        raise error.__context__ from None


def optimiser_steps(run: Run, batches: Batches) -> int:
    """Return the number of optimiser steps of a run."""
    return ceil(batches.steps / run.optim.accumulate) * run.optim.epochs


def placement(engine: Literal["virtual", "torchrun"]) -> dict[str, Any]:
    """Return the Trainer's placement: this device, or this rank of a torchrun launch.

    A single rank needs no DDP, whose process group Lightning would leave behind.
    """
    accelerator = device_of_rank().type
    world, here = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if engine == "virtual" or world == 1:
        return {"accelerator": accelerator, "devices": 1}
    # Each rank keeps its own running statistics; those for evaluation are chosen afterwards.
    strategy = DDPStrategy(broadcast_buffers=False)
    return {"accelerator": accelerator, "devices": here, "num_nodes": world // here, "strategy": strategy}


def mean_over_ranks(values: list[float]) -> list[float]:
    """Return the means over ranks of numbers that each has, e.g. of its losses."""
    if rank_and_size(None)[1] == 1:
        return values
    device = device_of_rank() if dist.get_backend() == "nccl" else torch.device("cpu")
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    means: list[float] = (total / dist.get_world_size()).tolist()
    return means


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's banners and hints."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        try:
            yield
        finally:
            logger.setLevel(level)
