"""Preparation that all worlds share: building a run's model, and checks of optimiser, outputs and task."""

import os
from itertools import chain
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from syncnorm.config import Optim, Run
from syncnorm.errors import UserError, where_raised
from syncnorm.models import make_model
from syncnorm.seeds import derive
from syncnorm.surgery import batch_norms, convert
from syncnorm.tasks import TASKS, task_named
from syncnorm.training.precision import check_precision, in_precision
from syncnorm.worlds import world_of


def device_of_rank() -> torch.device:
    """Return this process's device: the CUDA device of its rank on this machine, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def build_model(run: Run, shape: tuple[int, ...], classes: int) -> nn.Module:
    """Build a run's model for samples of a shape (C, H, W) or (C, L), with its norms, initialised by its seed."""
    if run.channels_last and len(shape) != 3:
        raise UserError(
            f"channels_last is a memory format of images, and the samples of data set '{run.data.name}' have shape "
            f"{tuple(shape)}: leave it out."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive("init", run.seed))
        model = make_model(run.model, shape, classes, **run.model_options)
    if any(is_lazy(tensor) for tensor in chain(model.parameters(), model.buffers())):
        raise UserError(f"model '{run.model}' has lazy layers: build it with their numbers of channels and features.")
    layer, options = world_of(run).norm_layer(run.norm, run.world)
    if not batch_norms(model) and run.norm.name not in ("bn", "none"):
        raise UserError(
            f"model '{run.model}' has no batch norm to replace by '{run.norm.name}': build it with batch norms "
            "(torch.nn.BatchNorm2d and its kin), or set norm to none."
        )
    as_built = not batch_norms(model) or (layer == "bn" and not options)
    return model if as_built else convert(model, layer, **options)


def place_model(run: Run, model: nn.Module, device: torch.device | None = None) -> nn.Module:
    """Move a run's model to a device, in the run's precision and memory format, in place; return it."""
    model = in_precision(model, run.precision, device)
    if run.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        model.register_forward_pre_hook(_channels_last)
    return model


def _channels_last(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in inputs)


def check_training(run: Run) -> None:
    """Raise `UserError` for invalid numbers of an optimiser, and for settings that this machine does not support."""
    _check_optim(run.optim)
    if run.data.workers < 0:
        raise UserError(f"data.workers is {run.data.workers}: it must be at least 0.")
    if run.evaluate_every is not None and run.evaluate_every < 1:
        raise UserError(f"evaluate_every is {run.evaluate_every}: it must be at least 1, or None for the end alone.")
    check_precision(run.precision)


def data_device(run: Run, device: torch.device) -> torch.device:
    """Return where a run's data lie: on the device that trains, or in the host's memory for workers to take from, or
    on its disk."""
    return torch.device("cpu") if run.data.workers or run.data.on_disk else device


def _check_optim(optim: Optim) -> None:
    for name, value, holds, rule in (
        ("lr", optim.lr, 0 < optim.lr < inf, "above 0 and finite"),
        ("momentum", optim.momentum, 0 <= optim.momentum < 1, "from 0 to below 1"),
        ("weight_decay", optim.weight_decay, 0 <= optim.weight_decay < inf, "at least 0 and finite"),
        ("epochs", optim.epochs, optim.epochs >= 1, "at least 1"),
        ("warmup", optim.warmup, 0 <= optim.warmup < 1, "from 0 to below 1"),
        ("clip_norm", optim.clip_norm, 0 <= optim.clip_norm < inf, "at least 0 (off) and finite"),
        ("accumulate", optim.accumulate, optim.accumulate >= 1, "at least 1"),
    ):
        if not holds:
            raise UserError(f"optim.{name} is {value}: it must be {rule}.")


@torch.no_grad()
def check_outputs(run: Run, outputs: Any, targets: Tensor, classes: int) -> None:
    """Raise `UserError` if a model's output for samples with these targets is not what the run's task needs.

    A task of one's own is also tried: it must give one loss and one score a sample.
    """
    task = task_named(run.task)
    wanted = task.output_shape(targets, classes)
    if not isinstance(outputs, Tensor) or outputs.shape != wanted:
        got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        what = f"one logit for each of {classes} classes" if run.task == "classification" else f"for task {run.task}"
        raise UserError(
            f"model '{run.model}' returned {got} for {len(targets)} images: it must return {what}, {wanted}."
        )
    if TASKS.source(run.task) is not None:
        _try_task(run.task, outputs, targets.to(outputs.device))


def _try_task(name: str, outputs: Tensor, targets: Tensor) -> None:
    for what in ("losses", "scores"):
        try:
            values = getattr(task_named(name), what)(outputs, targets)
        except Exception as error:
            raise UserError(
                f"task '{name}', {what}: {where_raised(error)}: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(values, Tensor) or values.shape != (len(targets),):
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise UserError(f"task '{name}', {what}: it returned {got}, and must return one number a sample, (N,).")
