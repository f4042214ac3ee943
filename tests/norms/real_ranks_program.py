"""What each of two gloo ranks of test_real_ranks.py runs: one check by name, which raises where it fails."""

import copy
import os
import sys
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from leaving import leave
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from syncnorm import SyncBatchNorm, convert, mask

CLOSE = {"rtol": 1e-11, "atol": 1e-12}
SIZES = [5, 3]


def network() -> nn.Sequential:
    """Return the same small network in float64 on every rank, with plain batch norm."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3)
    ).double()


def batches(count: int) -> Tensor:
    """Return `count` global batches of 8 images."""
    return torch.randn(count, 8, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def mine(batch: Tensor) -> Tensor:
    """Return this rank's uneven share of a global batch."""
    return batch.split(SIZES)[dist.get_rank()]


def loss_of(y: Tensor) -> Tensor:
    """Return a loss that sums over samples, so that ranks' losses add up to the whole batch's."""
    return y.square().mul(torch.arange(3, dtype=y.dtype).view(3, 1, 1)).sum()


def check_ddp_with_no_sync() -> None:
    """DDP, two accumulated batches (the first under no_sync): gradients and buffers of one process."""
    reference, model = network(), DistributedDataParallel(convert(network(), "sync_bn"))
    for step, batch in enumerate(batches(2)):
        loss_of(reference(batch)).backward()
        if step == 0:
            with model.no_sync():
                loss_of(model(mine(batch))).backward()
        else:
            loss_of(model(mine(batch))).backward()
    for found, right in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(found.grad * dist.get_world_size(), right.grad, **CLOSE)
    for found, right in zip(model.module.buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(found, right, **CLOSE)


def check_compiled(backend: str = "aot_eager") -> None:
    """torch.compile(fullgraph=True): outputs, gradients and buffers of the eager layer."""
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # here, and not in processes that have to import torch first
    eager = nn.Sequential(nn.Conv2d(2, 4, 3), SyncBatchNorm(4)).double()
    for p in eager.parameters():
        dist.broadcast(p.data, 0)
    compiled = copy.deepcopy(eager)
    run = torch.compile(compiled, fullgraph=True, backend=backend)
    x = mine(batches(1)[0])
    results = []
    for model, call in ((eager, eager), (compiled, run)):
        leaf = x.clone().requires_grad_()
        y = call(leaf)
        results.append([y, *torch.autograd.grad(y.pow(3).sum(), (leaf, *model.parameters())), *model.buffers()])
    for found, right in zip(*results, strict=True):
        torch.testing.assert_close(found, right, **CLOSE)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(run(leaf).pow(3).sum(), leaf, retain_graph=False)
    refusal = ""
    try:
        (gradient,) = torch.autograd.grad(run(leaf).pow(3).sum(), leaf, create_graph=True)
        gradient.square().sum().backward()
    except RuntimeError as error:
        refusal = str(error)
    assert "create_graph" in refusal or "double backward" in refusal, "no clear error for a second derivative"


def check_forward_mode() -> None:
    """torch.func.jvp, and forward over reverse: those of one process with the whole batch."""
    plain = nn.BatchNorm2d(2, track_running_stats=False).double()
    layer, batch = SyncBatchNorm(2, track_running_stats=False).double(), batches(1)[0]

    def jvp(layer: nn.Module, x: Tensor) -> Tensor:
        return torch.func.jvp(layer, (x,), (x.sin(),))[1]

    def forward_over_reverse(layer: nn.Module, x: Tensor) -> Tensor:
        return torch.func.jvp(torch.func.grad(lambda x: layer(x).pow(3).sum()), (x,), (x.sin(),))[1]

    for transform in (jvp, forward_over_reverse):
        torch.testing.assert_close(transform(layer, mine(batch)), mine(transform(plain, batch)), rtol=1e-9, atol=1e-9)


def check_masks() -> None:
    """A padded network under DDP, one rank without a valid position: outputs and gradients of one process."""
    reference, model = network(), DistributedDataParallel(convert(network(), "sync_bn"))
    for batch in batches(2):
        valid = batch[:, 0] > -0.5
        valid[SIZES[0] :] = False
        sizes = valid[:, 1:-1, 1:-1], valid[:, 2:-2, 2:-2]  # after convolutions without padding
        with mask(*sizes):
            right = reference(batch)
        loss_of(right).backward()
        with mask(*map(mine, sizes)):
            found = model(mine(batch))
        loss_of(found).backward()
        torch.testing.assert_close(found, mine(right), **CLOSE)
    for found, right in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(found.grad * dist.get_world_size(), right.grad, **CLOSE)
    for found, right in zip(model.module.buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(found, right, **CLOSE)


def check_errors_reach_every_rank() -> None:
    """A wrong input on one rank, at the first and at a later step, and one value per channel in the world."""
    rank = dist.get_rank()
    for warm_up, width, samples in ((0, 4 + rank, 2), (1, 4 + rank, 2), (0, 4, rank), (1, 4, rank)):
        layer = SyncBatchNorm(4)
        for _ in range(warm_up):
            layer(torch.randn(2, 4))
        try:
            layer(torch.randn(samples, width))
        except ValueError:
            continue
        raise AssertionError(f"rank {rank} went on with {(warm_up, width, samples)}")


CHECKS: dict[str, Callable[[], None]] = {
    "ddp": check_ddp_with_no_sync,
    "compiled": check_compiled,  # graphs and their gradients, without C++
    "inductor": partial(check_compiled, "inductor"),
    "forward_mode": check_forward_mode,
    "masks": check_masks,
    "errors": check_errors_reach_every_rank,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    CHECKS[sys.argv[1]]()
    leave()
