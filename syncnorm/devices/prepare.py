"""Preparation of a run before its first step, including checks for users' mistakes."""

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from syncnorm.config import Data, Devices, Norm, Run, layout
from syncnorm.data import ON_REGISTRATION, Dataset, load_config, partition, rank_batches
from syncnorm.errors import UserError
from syncnorm.norms import norm_spec
from syncnorm.norms.make import check_options
from syncnorm.norms.spec import WorldFact
from syncnorm.surgery import batch_norms
from syncnorm.training.building import build_model, check_outputs, check_training, data_device, place_model
from syncnorm.training.precision import PRECISIONS
from syncnorm.training.ranks.layers import (
    check_buffers,
    layer_on_ranks,
    needs_virtual_ranks,
    shares,
    sharing_samples,
)
from syncnorm.training.ranks.virtual_ranks import check_by_channel, copy_sharing_parameters
from syncnorm.worlds import expect


@dataclass(frozen=True)
class Prepared:
    """A run, ready to train: data on the device, the model with its norms, and the samples of every rank."""

    data: Dataset
    model: nn.Module
    shards: list[Tensor]
    values_per_channel: int | None
    """The fewest that share statistics in training (`_fewest_values`)."""


def prepare(run: Run, device: torch.device) -> Prepared:
    """Load the data, build the model, split the samples among ranks, and check that the batch fits the norm.

    Raises:
        UserError: anything in `run` that is unknown, out of range or inconsistent.
    """
    ranks, per_device_batch = layout(devices(run))
    check_training(run)
    check_options(run.norm.name, run.norm.options)  # the layer that computes it may have another name
    check_buffers(run.norm, ranks, devices(run).buffers)
    data = load_data(run.data, run.seed, data_device(run, device), PRECISIONS[run.precision].data, run.task)
    shards = shards_of(run, data)
    rank_batches(shards, per_device_batch, run.seed, epoch=0)
    model = place_model(run, build_model(run, data.shape, data.classes), device)
    values = _check_layers(run, model, data, device)
    _check_first_step(run, model, data.train_x[shards[0][:per_device_batch]].to(device))
    return Prepared(data, model, shards, values)


def devices(run: Run) -> Devices:
    """Return the run's devices; a run of another world raises `UserError`."""
    return expect(run, Devices)


def norm_layer(norm: Norm, world: Devices) -> tuple[str, dict[str, Any]]:
    """Return the name and options of the layer that computes `norm` on devices (`layer_on_ranks`)."""
    ranks, per_device_batch = layout(world)
    facts: dict[WorldFact, int] = {"batch": sharing_samples(norm, ranks, per_device_batch)}
    return layer_on_ranks(norm, ranks, world.engine, facts)


def shards_of(run: Run, data: Dataset) -> list[Tensor]:
    """Return the training samples of each rank: indices, int64, on the CPU.

    Raises:
        UserError: skews out of range, both at once, or data without the natural groups that one goes by.
    """
    world, (ranks, _) = devices(run), layout(devices(run))
    for name, percent in (("skew", world.skew), ("natural_skew", world.natural_skew)):
        if not 0 <= percent <= 100:
            raise UserError(f"world.{name} is {percent}: it must be from 0 to 100.")
    if world.skew and world.natural_skew:
        raise UserError("world.skew and world.natural_skew both sort the training data: set one of them to 0.")
    if world.natural_skew and data.natural is None:
        raise UserError(
            f"world.natural_skew is {world.natural_skew:g}, and data set '{run.data.name}' has no column that says "
            "where a sample is from: set data.natural to one, or natural_skew to 0."
        )
    by_group = data.natural if world.natural_skew else None
    labels = data.strata.cpu() if by_group is None else torch.from_numpy(by_group.train)
    if ranks == 1:
        return [torch.arange(len(labels))]
    return partition(labels, "sorted", ranks, run.seed, percent=world.natural_skew or world.skew)


def has_virtual_ranks(run: Run) -> bool:
    """Return whether the run's norm needs `on_virtual_ranks`."""
    world = devices(run)
    return needs_virtual_ranks(run.norm, layout(world)[0], world.engine)


@lru_cache(maxsize=2)
def load_data(
    data: Data, seed: int, device: torch.device, dtype: torch.dtype, task: str = "classification"
) -> Dataset:
    """Load a run's data set, split by its seed, onto the device; the last two are cached."""
    return load_config(data, seed=seed, task=task).to(device, dtype)


ON_REGISTRATION.append(load_data.cache_clear)


@torch.no_grad()
def _check_layers(run: Run, model: nn.Module, data: Dataset, device: torch.device) -> int | None:
    """Run two samples through the model in evaluation mode, and check the input of each batch norm.

    Return the fewest values per channel that a training batch gives to one of them (`_fewest_values`).
    """
    positions: dict[str, int] = {}
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, inputs, name=name: positions.update({name: prod(inputs[0].shape[2:])})
        )
        for name, layer in batch_norms(model).items()
    ]
    was_training = model.training
    try:
        outputs = model.eval()(data.train_x[:2].to(device))
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"model '{run.model}' with norm '{run.norm.name}' cannot take samples of shape {data.shape}: {reason}"
        ) from error
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    check_outputs(run, outputs, data.train_y[:2], data.classes)
    return _fewest_values(run, positions)


def _check_first_step(run: Run, model: nn.Module, x: Tensor) -> None:
    """Check the needs of virtual ranks: if each has a copy of the model, run one device's first batch through a
    copy."""
    if not has_virtual_ranks(run):
        return
    if norm_spec(run.norm.name).by_channel:
        check_by_channel(model, run.norm.name)
        return
    try:
        with torch.random.fork_rng(devices=[]):
            copy_sharing_parameters(model).train()(x)
    except ValueError as error:
        raise UserError(
            f"model '{run.model}' with norm '{run.norm.name}' cannot train on {len(x)} samples a device: {error}"
        ) from error


def _fewest_values(run: Run, positions: dict[str, int]) -> int | None:
    """Return the fewest values per channel that share statistics in training, over the layers with these positions.

    None for a norm that does not see the batch, and for a model without batch norms. A single value raises
    `UserError`: it has no variance.
    """
    spec = norm_spec(run.norm.name)
    if not spec.sees_batch or not positions:
        return None
    samples = sharing_samples(run.norm, *layout(devices(run)))
    for name, count in positions.items():
        if samples * count == 1:
            shared = "on all ranks together" if shares(run.norm) else "on each device"
            raise UserError(
                f"layer '{name}' of model '{run.model}' would get one value per channel {shared} (one sample of one "
                "position), and a variance needs two: set per_device_batch to 2 or more, or norm to gn or ln."
            )
    return samples * min(positions.values())
