"""The contract of torch's tests of SyncBatchNorm under DDP (torch.testing's distributed_test.py): ranks train as one.

Ours are ranks as threads, several steps of training, and one process on the whole batch in float64 as the reference.
What one step owes is in tests/norms/test_sync_batch_norm.py.
"""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from ranks import ok, run_ranks
from torch import Tensor, nn

from syncnorm import SyncBatchNorm, convert

STEPS = 3
CLOSE = {"rtol": 1e-9, "atol": 1e-10}


def vectors(affine: bool = True) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5, affine=affine), nn.Tanh(), nn.Linear(5, 2)).double()


def images(affine: bool = True) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=affine), nn.Tanh(), nn.Conv2d(4, 2, 2),
        nn.BatchNorm2d(2, affine=affine), nn.Flatten(),
    ).double()  # fmt: skip


def volumes(affine: bool = True) -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(3, 4, 2), nn.BatchNorm3d(4, affine=affine), nn.Tanh(), nn.Flatten()).double()


NETWORKS: dict[str, tuple[Callable[..., nn.Sequential], tuple[int, ...]]] = {
    "vectors": (vectors, (3,)),
    "images": (images, (3, 5, 5)),
    "volumes": (volumes, (3, 3, 3, 3)),
}


def train(model: nn.Module, batches: list[Tensor], reduce: Callable[[nn.Module], None]) -> None:
    """Train on a loss that is a sum over samples, with momentum; `reduce` sums gradients over ranks."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for batch in batches:
        optimizer.zero_grad()
        model(batch).sin().sum().backward()
        reduce(model)
        optimizer.step()


def summed(model: nn.Module) -> None:
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)


@pytest.mark.parametrize("sizes", [[1, 1, 1, 1], [2, 3], [1, 4, 2]], ids=str)
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_training_on_ranks_is_training_on_the_whole_batch(kind: str, affine: bool, sizes: list[int]) -> None:
    """One sample a rank, other sizes on each, no affine part: parameters and statistics after some steps."""
    build, shape = NETWORKS[kind]
    torch.manual_seed(0)
    whole = build(affine)
    twins = [convert(copy.deepcopy(whole), "sync_bn") for _ in sizes]
    batches = [torch.randn(sum(sizes), *shape, dtype=torch.float64) * (1 + step) + step for step in range(STEPS)]
    train(whole, batches, lambda model: None)
    ok(run_ranks(len(sizes), lambda rank: train(twins[rank], [b.split(sizes)[rank] for b in batches], summed)))
    for twin in twins:
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(twin.state_dict()[name], value, **CLOSE)
    for name, buffer in twins[0].named_buffers():
        assert all(torch.equal(dict(twin.named_buffers())[name], buffer) for twin in twins)


@pytest.mark.parametrize("sizes", [[2, 2], [3, 0, 1]], ids=str)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
def test_the_layout_of_a_ranks_input_is_that_of_its_output_and_gradient(
    layout: torch.memory_format, sizes: list[int]
) -> None:
    """Also of a rank without samples."""
    x = torch.randn(sum(sizes), 4, 3, 5, dtype=torch.float64)
    plain = nn.BatchNorm2d(4).double()
    leaf = x.clone().requires_grad_()
    y = plain(leaf)
    y.pow(3).sum().backward()

    def work(rank: int) -> tuple[Tensor, Tensor]:
        mine = x.split(sizes)[rank].contiguous(memory_format=layout).requires_grad_()
        z = SyncBatchNorm(4).double()(mine)
        z.pow(3).sum().backward()
        for tensor in (z, mine.grad):
            assert tensor.shape == mine.shape
            assert tensor.is_contiguous(memory_format=layout)
        return z.detach(), mine.grad

    outputs, gradients = zip(*ok(run_ranks(len(sizes), work)), strict=True)
    torch.testing.assert_close(torch.cat(outputs), y, **CLOSE)
    torch.testing.assert_close(torch.cat(gradients), leaf.grad, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_model_in_half_precision_trains_on_ranks(dtype: torch.dtype) -> None:
    """Weights, statistics and inputs all have half precision: outputs, and gradients of each rank, are finite."""
    x = torch.randn(4, 3, 6, 6) + 3

    def work(rank: int) -> Tensor:
        layer = SyncBatchNorm(3).to(dtype)
        mine = x[2 * rank : 2 * rank + 2].to(dtype).requires_grad_()
        y = layer(mine)
        y.float().square().sum().backward()
        assert y.dtype == mine.grad.dtype == layer.weight.grad.dtype == layer.running_mean.dtype == dtype
        assert mine.grad.isfinite().all()
        return y.detach().float()

    expected = nn.BatchNorm2d(3)(x.to(dtype).float())
    torch.testing.assert_close(torch.cat(ok(run_ranks(2, work))), expected, rtol=2**-6, atol=2**-6)


def test_a_whole_model_converted_for_a_group_shares_within_it() -> None:
    """Through both ways to convert, after some steps; ranks of another group have other statistics."""
    torch.manual_seed(0)
    plain = images()
    x = torch.randn(4, 3, 3, 5, 5, dtype=torch.float64)

    def work(rank: int) -> list[nn.Module]:
        groups = [dist.new_group([0, 3]), dist.new_group([1, 2])]
        mine = groups[int(rank in (1, 2))]
        models = [
            convert(copy.deepcopy(plain), "sync_bn", process_group=mine),
            SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(plain), mine),
        ]
        for model in models:
            for _ in range(STEPS):
                model(x[rank])
        return models

    found = ok(run_ranks(4, work))
    for members in ([0, 3], [1, 2]):
        reference = copy.deepcopy(plain)
        for _ in range(STEPS):
            reference(x[members].flatten(0, 1))
        for rank in members:
            for model in found[rank]:
                for name, value in reference.state_dict().items():
                    torch.testing.assert_close(model.state_dict()[name], value, **CLOSE)
    assert not torch.equal(found[0][0][1].running_mean, found[1][0][1].running_mean)
