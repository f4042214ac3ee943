"""Accumulated micro-batches against one large batch of plain PyTorch, in float64: losses, gradients, statistics."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accumulated import CLOSE, batch, loss, masked_batch, seeded
from processes import torchrun
from ranks import ok, run_ranks
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import syncnorm
from syncnorm import accumulate, convert, make_norm
from syncnorm.errors import UserError
from syncnorm.models import make_model

SPLITS = [[4, 4, 4], [1, 5, 4, 2], [12], [1] * 12, [0, 7, 5]]


def assert_like_one_batch(model: nn.Module, x: Tensor, split: list[int], **options: Any) -> None:
    large, small = copy.deepcopy(model), copy.deepcopy(model)
    expected = loss(large, x)
    expected.backward()
    total = accumulate(small, x.split(split), loss, **options)
    torch.testing.assert_close(total, expected.detach(), **CLOSE)
    for (name, one), other in zip(large.named_parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, msg=lambda said, name=name: f"{name}: {said}", **CLOSE)
    for (name, kept), other in zip(large.named_buffers(), small.buffers(), strict=True):
        torch.testing.assert_close(other, kept, msg=lambda said, name=name: f"{name}: {said}", **CLOSE)


class PreActivation(nn.Module):
    """Norms read what later layers read as well, and one norm is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm1, self.norm2 = nn.BatchNorm2d(6, momentum=None), nn.BatchNorm2d(6, affine=False)
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for norm in (self.norm1, self.norm2, self.norm1):
            h = h + self.conv(F.relu(norm(h)))
        y: Tensor = self.head(h.mean((2, 3)))
        return y


class Fused(nn.BatchNorm2d):
    """A norm with an activation, as public libraries have: it calls F.batch_norm itself."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        y = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, True, self.momentum, self.eps
        )
        return F.silu(y, inplace=True)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "small_cnn": lambda: make_model("small_cnn", (3, 8, 8), 4, width=4),
    "resnet20": lambda: make_model("resnet20", (3, 8, 8), 4, depth=8, width=4),
    "resnet18": lambda: make_model("resnet18", (3, 8, 8), 4),
    "mlp": lambda: make_model("mlp", (3, 8, 8), 4),
    "group norm": lambda: make_model("small_cnn", (3, 8, 8), 4, norm="gn", width=4),
    "pre-activation": PreActivation,
    "fused": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), Fused(4), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2)),
    "no statistics": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
}


@pytest.mark.parametrize("name", MODELS)
def test_micro_batches_are_one_batch(name: str) -> None:
    assert_like_one_batch(seeded(MODELS[name]), batch(), [1, 5, 4, 2])


@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize("norm", ["bn", "sync_bn"])
def test_any_split_is_one_batch(split: list[int], norm: str) -> None:
    model = seeded(MODELS["pre-activation"])
    assert_like_one_batch(model if norm == "bn" else convert(model, norm), batch(), split)


def test_saved_tensors_can_wait_in_the_hosts_memory() -> None:
    assert_like_one_batch(seeded(MODELS["resnet20"]), batch(), [5, 7], offload=True)


def test_micro_batches_of_one_value_per_channel() -> None:
    model = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.BatchNorm1d(5)))
    assert_like_one_batch(model, batch(), [1] * 12)
    assert_like_one_batch(convert(model, "sync_bn"), batch(), [1] * 12)


def test_frozen_layers_and_evaluating_norms_stay_as_they_are() -> None:
    model = seeded(MODELS["resnet20"])
    for parameter in list(model.parameters())[:6]:
        parameter.requires_grad_(False)
    syncnorm.freeze(model, "stem.*")
    large, small = copy.deepcopy(model), copy.deepcopy(model)
    loss(large, batch()).backward()
    accumulate(small, batch().split(5), loss)
    assert [p.grad is None for p in small.parameters()] == [p.grad is None for p in large.parameters()]
    for one, other in zip(large.parameters(), small.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, **CLOSE)
    for kept, now in zip(large.buffers(), small.buffers(), strict=True):
        torch.testing.assert_close(now, kept, **CLOSE)


def test_gradients_are_added_to_those_that_are_there() -> None:
    model = seeded(MODELS["small_cnn"])
    twice = copy.deepcopy(model)
    accumulate(model, batch().split(4), loss)
    for _ in range(2):
        accumulate(twice, batch().split(4), loss)
        for buffer in twice.buffers():
            assert buffer.isfinite().all()
    last = list(model.parameters())[-1].grad
    torch.testing.assert_close(list(twice.parameters())[-1].grad, 2 * last)


def test_autocast_holds_in_every_micro_batch() -> None:
    model = make_model("small_cnn", (3, 8, 8), 4, width=4)
    seen = []

    def in_mixed_precision(model: nn.Module, x: Tensor) -> Tensor:
        y = model(x)
        seen.append(y.dtype)
        return y.float().square().mean()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        accumulate(model, batch().float().split(6), in_mixed_precision)
    assert seen == [torch.bfloat16] * 2


def test_a_stream_of_micro_batches_and_arguments_of_any_kind() -> None:
    model = seeded(MODELS["small_cnn"])
    parts = ({"image": x, "label": torch.zeros(len(x), dtype=torch.long)} for x in batch().split(4))
    total = accumulate(model, parts, lambda m, part: F.cross_entropy(m(part["image"]), part["label"]) / 3)
    assert total.shape == ()
    assert not total.requires_grad


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_share_statistics_over_all_their_micro_batches(size: int) -> None:
    model = seeded(MODELS["resnet20"])
    large = copy.deepcopy(model)
    x = batch(6 * size)
    loss(large, x).backward()

    def work(rank: int) -> nn.Module:
        small = convert(copy.deepcopy(model), "sync_bn")
        accumulate(small, x[6 * rank : 6 * rank + 6].split([1, 2, 3] if rank else [4, 2]), loss)
        return small

    smalls = ok(run_ranks(size, work))
    for small in smalls:
        for kept, now in zip(large.buffers(), small.buffers(), strict=True):
            torch.testing.assert_close(now, kept, **CLOSE)
    for expected, *parts in zip(large.parameters(), *(small.parameters() for small in smalls), strict=True):
        torch.testing.assert_close(torch.stack([p.grad for p in parts]).sum(0), expected.grad, **CLOSE)


def test_ranks_that_come_to_other_norms_are_named() -> None:
    def work(rank: int) -> None:
        model = convert(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)).double(), "sync_bn")
        accumulate(model, batch(4).split(2), loss)
        model[1].train(rank == 0)
        accumulate(model, batch(4).split(2), loss)

    for error in run_ranks(2, work):
        assert isinstance(error, ValueError)
        assert "rank 0 ran '1'; rank 1 ran '2'" in str(error)


@pytest.mark.dist
def test_under_ddp_gradients_are_the_mean_over_ranks() -> None:
    torchrun(2, Path(__file__).with_name("accumulate_program.py"))


class Random(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 1:
            return x.mean()
        y: Tensor = (self.a if len(x) > 3 else self.b)(x)
        return y


def checkpointed(model: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = checkpoint(model, x.requires_grad_(), use_reentrant=False)
    return y.sum()


def test_what_goes_wrong_at_a_norm_of_one_rank_is_said_on_all() -> None:
    def work(rank: int, wrong: str) -> None:
        model = convert(nn.Sequential(nn.BatchNorm2d(3)).double(), "sync_bn")
        x, valid = masked_batch(4)
        if rank and wrong == "channels":
            x = x[:, :2]
        if rank and wrong == "mask":
            valid = valid[:, :3, :5]
        accumulate(model, [(x, valid)], lambda model, part: masked_or_not(model, part, wrong))

    def masked_or_not(model: nn.Module, part: tuple[Tensor, Tensor], wrong: str) -> Tensor:
        with syncnorm.mask(part[1] if wrong == "mask" else None):
            return loss(model, part[0])

    for wrong, said in (("channels", "needs \\(N, 3, "), ("mask", "says nothing of the input")):
        for error in run_ranks(2, lambda rank, wrong=wrong: work(rank, wrong)):
            assert isinstance(error, ValueError)
            assert re.search(said, str(error))


@pytest.mark.parametrize("norm", ["bn", "sync_bn"])
@pytest.mark.parametrize("where", ["between norms", "in the loss"])
def test_a_step_that_fails_in_its_forward_leaves_norms_as_they_were(norm: str, where: str) -> None:
    model = seeded(lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), Fails(where), nn.BatchNorm2d(4)))
    model = convert(model, norm) if norm != "bn" else model
    before = copy.deepcopy(model.state_dict())

    def fails(model: nn.Module, x: Tensor) -> Tensor:
        y = loss(model, x)
        if where == "in the loss" and len(x) == 5:
            raise KeyError("label")
        return y

    with pytest.raises(KeyError, match="label"):
        accumulate(model, batch().split([4, 5, 3]), fails)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Fails(nn.Module):
    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def forward(self, x: Tensor) -> Tensor:
        if self.where == "between norms" and len(x) == 5:
            raise KeyError("label")
        return x


MISTAKES: dict[str, tuple[Callable[[], nn.Module], list[int], Any, str]] = {
    "no micro-batch": (MODELS["small_cnn"], [], loss, "got no micro-batches"),
    "no scalar": (MODELS["small_cnn"], [6, 6], lambda m, x: m(x), r"micro-batch 1 is of shape \(6, 4\)"),
    "no gradient": (MODELS["small_cnn"], [6, 6], lambda m, x: m(x).detach().sum(), "does not depend on anything"),
    "other norms": (Random, [4, 2], lambda m, x: m(x).sum(), "comes to norm 'a' where micro-batch 2 comes to 'b'"),
    "fewer norms": (Random, [4, 1], lambda m, x: m(x).sum(), "micro-batch 2 ends where micro-batch 1 comes to"),
    "one value": (lambda: nn.BatchNorm2d(3), [1], lambda m, x: m(x[:, :, :1, :1]).sum(), "one value per channel"),
    "checkpointing": (MODELS["resnet20"], [2, 2], checkpointed, "is recomputed in the backward"),
    "own statistics": (lambda: make_norm("brn", 3), [2, 2], lambda m, x: m(x).sum(), "follow a rule of their own"),
    "lazy": (lambda: nn.LazyBatchNorm2d(affine=False), [2, 2], loss, "does not know its channels"),
    "channels": (
        lambda: nn.Sequential(nn.BatchNorm2d(4)), [2, 2], loss, r"'0' got .* \(2, 3, 8, 8\): it needs \(N, 4, ",
    ),
    "synchronised channels": (
        lambda: convert(nn.Sequential(nn.BatchNorm2d(4)), "sync_bn"), [2, 2], loss, r"'0' got .* needs \(N, 4, ",
    ),
    "in place": (
        lambda: nn.Sequential(nn.Conv2d(3, 3, 1), Overwritten()), [2, 2], lambda m, x: m(x).sum(), "in place",
    ),
}  # fmt: skip


class Overwritten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x)
        x.mul_(2)
        return y * x


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_is_one_sentence_and_leaves_no_thread(kind: str) -> None:
    build, split, of, said = MISTAKES[kind]
    model = seeded(build)
    with pytest.raises(UserError, match=said):
        accumulate(model, batch(sum(split)).split(split) if split else [], of)
    assert "forward" not in vars(model)


def test_what_the_model_raises_comes_out_as_it_is() -> None:
    def broken(model: nn.Module, x: Tensor) -> Tensor:
        if len(x) == 2:
            raise KeyError("label")
        return loss(model, x)

    with pytest.raises(KeyError, match="label"):
        accumulate(seeded(MODELS["small_cnn"]), batch().split([4, 2, 6]), broken)
