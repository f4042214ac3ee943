"""Accumulated micro-batches with masks against one large batch with its mask, in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from accumulated import CLOSE, batch, masked_batch, masked_loss, seeded
from ranks import ok, run_ranks
from torch import Tensor, nn

from syncnorm import accumulate, convert, make_norm


class Padded(nn.Module):
    """Norms of all kinds that masks reach: of batches, frozen, and of each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.stem = nn.BatchNorm2d(3, momentum=None), nn.Conv2d(3, 4, 1)
        self.frozen, self.norm2 = nn.BatchNorm2d(4).eval(), nn.BatchNorm2d(4, affine=False)
        self.group, self.root = nn.GroupNorm(2, 4), make_norm("rms", 4)

    def train(self, mode: bool = True) -> "Padded":
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        h = self.frozen(self.stem(self.norm(x)))
        h = h + F.relu(self.norm2(h))
        y: Tensor = self.root(self.group(h + self.norm2(F.max_pool2d(h, 3, 1, 1))))
        return y


@pytest.mark.parametrize("norm", ["bn", "sync_bn"])
@pytest.mark.parametrize("split", [[4, 4, 4], [1, 1, 5, 3, 2], [12]], ids=str)
@pytest.mark.parametrize("offload", [False, True])
def test_masks_within_the_loss_are_those_of_one_batch(norm: str, split: list[int], offload: bool) -> None:
    large = seeded(Padded)
    small = convert(copy.deepcopy(large), norm) if norm != "bn" else copy.deepcopy(large)
    x, valid = masked_batch()
    expected = masked_loss(large, (x, valid))
    expected.backward()
    parts = zip(x.split(split), valid.split(split), strict=True)
    torch.testing.assert_close(accumulate(small, parts, masked_loss, offload=offload), expected.detach(), **CLOSE)
    for one, other in zip(large.parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, **CLOSE)
    for kept, now in zip(large.buffers(), small.buffers(), strict=True):
        torch.testing.assert_close(now, kept, **CLOSE)


def test_ranks_merge_the_counts_of_masked_micro_batches() -> None:
    large = seeded(lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    x, valid = masked_batch()
    twin = copy.deepcopy(large)
    masked_loss(large, (x, valid)).backward()

    def work(rank: int) -> nn.Module:
        small = convert(copy.deepcopy(twin), "sync_bn")
        own = slice(6 * rank, 6 * rank + 6)
        accumulate(small, zip(x[own].split([1, 2, 3]), valid[own].split([1, 2, 3]), strict=True), masked_loss)
        return small

    smalls = ok(run_ranks(2, work))
    for small in smalls:
        for kept, now in zip(large.buffers(), small.buffers(), strict=True):
            torch.testing.assert_close(now, kept, **CLOSE)
    for expected, *parts in zip(large.parameters(), *(small.parameters() for small in smalls), strict=True):
        torch.testing.assert_close(torch.stack([p.grad for p in parts]).sum(0), expected.grad, **CLOSE)


@pytest.mark.parametrize("norm", ["bn", "sync_bn"])
def test_where_no_micro_batch_has_a_position_that_counts_nothing_moves(norm: str) -> None:
    model = convert(nn.Sequential(nn.BatchNorm2d(3)).double(), norm)
    before = {name: value.clone() for name, value in model.named_buffers() if "batches" not in name}
    parts = [(x, torch.zeros(3, 8, 8).bool()) for x in batch(6).split(3)]
    accumulate(model, parts, masked_loss)
    assert all(torch.equal(value, dict(model.named_buffers())[name]) for name, value in before.items())
    assert not any(p.grad.any() for p in model.parameters())
