"""Ranks that run out of batches at different times, some before the first: checks for each gloo rank."""

from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import syncnorm
from syncnorm.errors import UserError
from syncnorm.norms.core.ranks.alone import alone

CLOSE = {"rtol": 1e-12, "atol": 1e-12}
STEPS = {2: [[4, 1], [0, 2], [2, 2]], 4: [[3, 1, 0, 2]]}


class Network(nn.Module):
    """Two branches of different widths, so that layers do not lie on one chain."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.left = nn.Sequential(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6))
        self.right = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6, momentum=None), nn.ReLU())
        self.head = nn.Linear(6, 3)
        self.recompute = self.skip = False
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(self.stem, x, use_reentrant=False) if self.recompute else self.stem(x)
        left = self.left[0](x) if self.skip else self.left(x)
        return self.head((left + self.right(x)).mean((2, 3)))


def batch(rank: int, step: int) -> Tensor:
    """Return the batch of one rank at one step, of 2 to 4 images."""
    size = 2 + (rank + step) % 3
    return torch.randn(size, 2, 6, 6, generator=torch.Generator().manual_seed(100 * rank + step), dtype=torch.float64)


def loss_of(y: Tensor) -> Tensor:
    """Return a loss that sums over samples, so that ranks' losses add up."""
    return y.pow(2).sum() / 10


def reference(steps: list[int], groups: list[list[int]], every: int) -> tuple[nn.Module, list[nn.Module]]:
    """Return one process's model on the data that were there, and a model with the statistics of each group."""
    model = Network()
    statistics: list[nn.Module] = [Network() for _ in groups]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(max(steps)):
        for group, own in zip(groups, statistics, strict=True):
            there = [rank for rank in group if step < steps[rank]]
            if there:
                model.load_state_dict(dict(own.named_buffers()), strict=False)
                (loss_of(model(torch.cat([batch(rank, step) for rank in there]))) / len(steps)).backward()
                own.load_state_dict(dict(model.named_buffers()), strict=False)
        if step % every == every - 1:
            optimizer.step()
            optimizer.zero_grad()
    return model, statistics


def wrapped(broadcast: bool = True, recompute: bool = False, **options: Any) -> DistributedDataParallel:
    """Return the network in DDP, with buckets of a few parameters, so that layers and buckets alternate."""
    model = syncnorm.convert(Network(), "sync_bn", **options)
    model.recompute = recompute  # type: ignore[assignment]
    return DistributedDataParallel(model, bucket_cap_mb=0.0001, broadcast_buffers=broadcast)


def train(model: DistributedDataParallel, steps: list[int], every: int = 1) -> None:
    """Train on as many batches as this rank has, within `join`; gradients of `every` steps accumulate."""
    rank = dist.get_rank()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with syncnorm.join(model):
        for step in range(steps[rank]):
            if step % every < every - 1:
                with model.no_sync():
                    loss_of(model(batch(rank, step))).backward()
                continue
            loss_of(model(batch(rank, step))).backward()
            optimizer.step()
            optimizer.zero_grad()


def equal(
    model: DistributedDataParallel, steps: list[int], groups: list[list[int]] | None = None, every: int = 1
) -> None:
    """Check that parameters are one process's on every rank, and statistics those of the rank's group."""
    groups = groups or [list(range(len(steps)))]
    right, statistics = reference(steps, groups, every)
    own = next(own for group, own in zip(groups, statistics, strict=True) if dist.get_rank() in group)
    for name, found in model.module.named_parameters():
        torch.testing.assert_close(found, right.get_parameter(name), **CLOSE)
    for name, found in model.module.named_buffers():
        torch.testing.assert_close(found, own.get_buffer(name), **CLOSE)


def check_uneven() -> None:
    """Any number of batches, even none, without and with DDP's own exchange of buffers."""
    for steps in STEPS[dist.get_world_size()]:
        for broadcast in (False, True):
            model = wrapped(broadcast)
            train(model, steps)
            equal(model, steps)


def check_afterwards() -> None:
    """A rank that had no batch goes on with the others, in a second epoch and without join."""
    world = dist.get_world_size()
    model = wrapped()
    train(model, [0] * (world - 1) + [1])
    train(model, [1] + [0] * (world - 1))
    loss_of(model(batch(dist.get_rank(), 7))).backward()
    values = torch.cat([p.detach().flatten() for p in model.state_dict().values() if p.is_floating_point()])
    others = [torch.empty_like(values) for _ in range(world)]
    dist.all_gather(others, values)
    assert all(torch.equal(values, other) for other in others)


def check_steps_of_other_shapes() -> None:
    """Gradients that accumulate, and layers that are recomputed in the backward pass."""
    model = wrapped(recompute=True)
    train(model, [4, 2], every=2)
    equal(model, [4, 2], every=2)


def check_groups() -> None:
    """Layers whose groups run out apart."""
    model = wrapped(False, group_size=2)
    train(model, [1, 2, 4, 3])
    equal(model, [1, 2, 4, 3], [[0, 1], [2, 3]])


def check_two_models() -> None:
    """Two models in one loop, as a generator and its critic."""
    rank, steps = dist.get_rank(), [3, 1]
    both = [wrapped(), wrapped()]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) for model in both]
    with syncnorm.join(*both):
        for step in range(steps[rank]):
            for model, optimizer in zip(both, optimizers, strict=True):
                optimizer.zero_grad()
                loss_of(model(batch(rank, step))).backward()
                optimizer.step()
    for model in both:
        equal(model, steps)


def check_norms() -> None:
    """A norm that sums in its forward, and one that merges by domain: rank 1, which runs out, has domains 0 and 1."""
    steps, ids = [3, 1], [torch.zeros(2, dtype=torch.int64), torch.tensor([0, 1])]
    for name, options in (("cbn", {"window": 2}), ("domain_bn", {"domains": 2})):
        right, model = (syncnorm.convert(Network(), name, sync=True, **options) for _ in range(2))
        optimizer = torch.optim.SGD(right.parameters(), lr=0.1)
        for step in range(max(steps)):
            there = [one for one in range(2) if step < steps[one]]
            optimizer.zero_grad()
            with alone(), syncnorm.domain(torch.cat([ids[one] for one in there])):
                y = right(torch.cat([batch(one, step)[:2] for one in there]))
            (loss_of(y) / len(steps)).backward()
            optimizer.step()
        train_by_norm(wrapped := DistributedDataParallel(model, broadcast_buffers=False), steps, ids)
        for key, found in wrapped.module.state_dict().items():
            torch.testing.assert_close(found, right.state_dict()[key], **CLOSE, msg=lambda m, n=name: f"{n}: {m}")


def train_by_norm(model: DistributedDataParallel, steps: list[int], ids: list[Tensor]) -> None:
    """Train on as many batches as this rank has, with its domains."""
    rank = dist.get_rank()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with syncnorm.join(model):
        for step in range(steps[rank]):
            optimizer.zero_grad()
            with syncnorm.domain(ids[rank]):
                loss_of(model(batch(rank, step)[:2])).backward()
            optimizer.step()


def check_refused() -> None:
    """What nothing can stand in for is refused on every rank, with the layer's name, and what is no DDP model."""
    x = batch(dist.get_rank(), 0)
    model = wrapped()

    def second_derivative() -> None:
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(loss_of(model(leaf)), leaf, create_graph=True)

    def transform() -> None:
        torch.func.grad(lambda x: loss_of(model.module(x)))(x)

    def accumulated() -> None:
        syncnorm.accumulate(model.module, [x, x], lambda model, part: loss_of(model(part)))

    def another_model() -> None:
        syncnorm.convert(Network(), "sync_bn")(x)

    loss_of(model(x)).backward()
    for part, words in (
        (second_derivative, "'right.1' does not take create_graph=True within syncnorm.join"),
        (transform, "'stem.1' does not take transforms of torch.func"),
        (accumulated, "'stem.1' does not take exact accumulation"),
        (another_model, "'stem.1' comes first within syncnorm.join, and is not in the model"),
    ):
        with pytest.raises(UserError, match=words), syncnorm.join(model):
            part()
    with pytest.raises(UserError, match="takes a model in DistributedDataParallel, and got a Network"):
        syncnorm.join(Network())
    model.module.add_module("other", nn.SyncBatchNorm(3))
    with pytest.raises(UserError, match="layer 'other' is torch's SyncBatchNorm"):
        syncnorm.join(model)
    with pytest.raises(UserError, match=r"'stem.1' cannot train within DDP's join\(\).*syncnorm.join"), model.join():
        model(x)


def check_ranks_that_part() -> None:
    """Of two ranks that still have batches, one skips a layer: both are named, and the layer."""
    group = dist.new_group(timeout=timedelta(seconds=4))
    model = DistributedDataParallel(
        syncnorm.convert(Network(), "sync_bn", process_group=group), process_group=group, broadcast_buffers=False
    )
    rank = dist.get_rank()
    model.module.skip = rank == 1
    train_here = rank < 2
    batches = [batch(rank, 0)] if train_here else []
    with pytest.raises(RuntimeError) as raised, syncnorm.join(model):
        _run(model, batches)
    said = str(raised.value)
    if train_here:
        assert "SyncBatchNorm" in said, said
        assert "rank 0 waits in 'left.1'; rank 1 waits in 'right.1'; ranks 2, 3 wait in syncnorm.join" in said, said


def _run(model: nn.Module, batches: list[Tensor]) -> None:
    for x in batches:
        loss_of(model(x)).backward()


CHECKS = {
    2: (check_uneven, check_afterwards, check_steps_of_other_shapes, check_two_models, check_norms, check_refused),
    4: (check_uneven, check_groups, check_ranks_that_part),
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    for check in CHECKS[dist.get_world_size()]:
        check()
