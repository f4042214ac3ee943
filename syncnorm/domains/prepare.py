"""Preparation of a run of domains before its first step, including checks for users' mistakes."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from syncnorm.config import Domains, Run
from syncnorm.data.domain_pool import Pool, load_pool
from syncnorm.domains.adaptation import TargetBatches, check_adaptation, logits_of
from syncnorm.domains.batches import Batch, check_batch, deal, thinnest
from syncnorm.errors import UserError, unknown
from syncnorm.norms import domain, norm_spec
from syncnorm.norms.core.ranks.alone import alone
from syncnorm.norms.make import check_options
from syncnorm.surgery.layers.replace import copied
from syncnorm.tasks import task_named
from syncnorm.training.building import build_model, check_outputs, check_training, data_device, place_model
from syncnorm.training.precision import PRECISIONS
from syncnorm.training.ranks.layers import (
    check_buffers,
    goes_by_rank,
    needs_virtual_ranks,
    statistics_are_kept_by_rank,
)
from syncnorm.training.ranks.virtual_ranks import check_by_channel
from syncnorm.worlds import expect


@dataclass(frozen=True)
class Prepared:
    """A run of domains, ready to train."""

    pool: Pool
    model: nn.Module
    seen: tuple[int, ...]
    """Numbers of the training domains in the pool; for the norms, the k-th is domain k."""
    unseen: tuple[int, ...]


def prepare(run: Run, device: torch.device) -> Prepared:
    """Load the domains, build the model, and check that the batches and the adaptation fit the norm.

    Raises:
        UserError: anything in `run` that is unknown, out of range or inconsistent.
    """
    world = domains(run)
    check_world(world)
    check_training(run)
    check_options(run.norm.name, run.norm.options)  # the layer that computes it may have another name
    check_buffers(run.norm, world.ranks, world.buffers)
    training = len(world.domains) - len(world.unseen)
    for option, fact in norm_spec(run.norm.name).from_world.items():
        if fact == "domains" and (told := run.norm.options.get(option, training)) != training:
            raise UserError(
                f"norm '{run.norm.name}' is to tell {told} domains apart, and {training} train: leave the option out."
            )
    pool = load_domains(run, data_device(run, device))
    unseen = tuple(index for index, name in enumerate(world.domains) if name in world.unseen)
    seen = tuple(index for index in range(len(world.domains)) if index not in unseen)
    check_batch(pool, seen, world, run.seed)
    classes = len(pool.class_names)
    model = place_model(run, build_model(run, tuple(pool.x.shape[1:]), classes), device)
    index, ids = _tried(run, pool, seen)
    index = index.to(pool.x.device)
    _check_step(run, model, (pool.x[index].to(device), pool.y[index].to(device), ids), classes)
    check_adaptation(world, run.norm, model, run.task)
    _check_test(run, model, pool)
    return Prepared(pool, model, seen, unseen)


def load_domains(run: Run, device: torch.device) -> Pool:
    """Load a run's domains onto the device; the last two pools are cached."""
    world, by_folder = domains(run), bool(run.data.path)
    options = world.unseen, run.seed, run.task
    return load_pool(run.data, world.domains, by_folder, device, PRECISIONS[run.precision].data, *options)


def domains(run: Run) -> Domains:
    """Return the run's domains; a run of another world raises `UserError`."""
    return expect(run, Domains)


def check_world(world: Domains) -> None:
    """Raise `UserError` for domains that are missing, repeated, or all left out, and for numbers out of range."""
    if not world.domains:
        raise UserError("a run of domains has no world.domains: name the data sets that are its domains.")
    if "seen" in world.domains:
        raise UserError("a domain cannot be called 'seen': accuracy_seen is the mean over all that train.")
    for field, names in (("domains", world.domains), ("unseen", world.unseen)):
        if twice := {name for name in names if names.count(name) > 1}:
            raise UserError(f"world.{field} has {', '.join(sorted(twice))} twice: name each domain once.")
    for name in world.unseen:
        if name not in world.domains:
            raise unknown("unseen domain", name, world.domains)
    if len(world.unseen) == len(world.domains):
        raise UserError("world.unseen leaves out all domains: at least one has to train.")
    for name, number in (("batch", world.batch), ("test_batch", world.test_batch), ("ranks", world.ranks)):
        if number < 1:
            raise UserError(f"world.{name} is {number}: it must be at least 1.")
    _check_ranks(world)
    if world.adapt_samples is not None and world.adapt_samples < 1:
        raise UserError(f"world.adapt_samples is {world.adapt_samples}: it must be at least 1, or None for all.")


def _check_ranks(world: Domains) -> None:
    """Raise `UserError` for a batch that does not divide over ranks, and for a skew that is none."""
    if world.batch % world.ranks:
        fitting = world.batch + -world.batch % world.ranks
        raise UserError(
            f"world.batch {world.batch} does not divide over {world.ranks} ranks: make it a multiple, such as "
            f"{fitting}."
        )
    if not 0 <= world.domain_skew <= 100:
        raise UserError(f"world.domain_skew is {world.domain_skew:g}: it must be from 0 to 100.")
    if world.batches == "one_domain" and world.domain_skew and world.ranks > 1:
        raise UserError(
            "world.batches is one_domain, where all ranks train the same domain in a step, and world.domain_skew "
            f"{world.domain_skew:g} gives ranks domains of their own: write mixed, or set domain_skew to 0."
        )


def has_virtual_ranks(run: Run) -> bool:
    """Return whether the run's norm needs `on_virtual_ranks`."""
    world = domains(run)
    return needs_virtual_ranks(run.norm, world.ranks, world.engine)


def _tried(run: Run, pool: Pool, seen: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return the batch of the first epoch that is hardest on a norm: it has the fewest samples of one domain.

    Of ranks that normalise by themselves it is one's part, unless a single layer computes them all.
    """
    world = domains(run)
    dealt = deal(pool, seen, world, run.seed, epoch=0)
    parts = world.ranks if goes_by_rank(run.norm) else 1
    step, part = thinnest(dealt, parts)
    if world.engine == "virtual" and statistics_are_kept_by_rank(run.norm):
        return dealt[step]
    index, ids = dealt[step]
    return index[part::parts], ids[part::parts]


@torch.no_grad()
def _check_step(run: Run, model: nn.Module, batch: Batch, classes: int) -> None:
    """Raise what the first step would raise: run its batch through a copy of the model, in training mode."""
    x, y, ids = batch
    if has_virtual_ranks(run) and norm_spec(run.norm.name).by_channel:
        check_by_channel(model, run.norm.name)
    try:
        with alone(), torch.random.fork_rng(devices=[]), domain(ids):
            outputs = copied(model).train()(x)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        on_rank = " of one rank" if len(x) < domains(run).batch else ""
        raise UserError(
            f"model '{run.model}' with norm '{run.norm.name}' cannot train on {len(x)} samples of shape "
            f"{tuple(x.shape[1:])} in a batch{on_rank}: {reason}"
        ) from error
    check_outputs(run, outputs, y, classes)


def _check_test(run: Run, model: nn.Module, pool: Pool) -> None:
    """Raise what the tests would raise: adapt a copy of the model to two samples, or to one if a batch has only
    one."""
    world, classes = domains(run), len(pool.class_names)
    sizes = [pool.tests(index).stop - pool.tests(index).start for index in range(len(pool.names))]
    smallest = min((size - 1) % world.test_batch + 1 for size in sizes)  # size of the smallest last batch of a domain
    device = next(model.parameters()).device
    stream = pool.x[: min(world.adapt_samples or 2, 2)].to(device)
    test = TargetBatches(
        [pool.test_x[: min(smallest, 2)].to(device)], stream, None, world.test_batch, world.adapt_options
    )
    try:
        outputs = logits_of(world.adapt, copied(model), test)
    except UserError:
        raise
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"adaptation '{world.adapt}' cannot work here: {reason}") from error
    wanted = task_named(run.task).output_shape(pool.test_y[: len(outputs)], classes)
    if outputs.shape != wanted:
        form = "logits (b, classes)" if run.task == "classification" else f"outputs {wanted} for task {run.task}"
        raise UserError(
            f"adaptation '{world.adapt}' gave {tuple(outputs.shape)} for a batch of {len(outputs)}: let it yield "
            f"{form}."
        )
