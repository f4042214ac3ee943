"""Norms inside `syncnorm.mask` against the norm of the valid positions alone, gathered by hand, in float64."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ranks import ok, run_ranks
from torch import Tensor, nn

from syncnorm import DomainBatchNorm, GhostBatchNorm, SyncBatchNorm, domain, make_norm, mask

C = 4
CLOSE: dict[str, Any] = {"rtol": 1e-11, "atol": 1e-12}
SHAPES = [(6, C, 7), (6, C, 4, 3), (6, C, 2, 3, 2), (12, C)]
BATCH_NORMS: dict[str, Callable[..., nn.Module]] = {
    "torch": lambda **options: nn.BatchNorm2d(C, **options),
    "sync": lambda **options: SyncBatchNorm(C, **options),
    "skip_nonfinite": lambda **options: SyncBatchNorm(C, skip_nonfinite=True, **options),
    "ghost": lambda **options: GhostBatchNorm(C, virtual_ranks=1, **options),
    "pooled": lambda **options: GhostBatchNorm(C, virtual_ranks=1, buffers="pooled", **options),
}


def sample(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def positions(*shape: int, seed: int = 2, share: float = 0.6) -> Tensor:
    """Return a mask (N, ...) for an input (N, C, ...), with two valid positions in each sample where there are."""
    valid = torch.rand(shape[0], *shape[2:], generator=torch.Generator().manual_seed(seed)) < share
    valid.view(len(valid), -1)[:, :2] = True
    return valid


def with_weights(layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for p in layer.double().parameters():
        nn.init.uniform_(p, 0.5, 2)
    return layer


def twin(layer: nn.Module, **options: Any) -> nn.BatchNorm1d:
    """Return PyTorch's batch norm of (n, C) with the parameters of `layer`, as the same objects."""
    other = nn.BatchNorm1d(C, **options).double()
    other.weight, other.bias = layer.weight, layer.bias
    return other


def alone(norm: Callable[[Tensor], Tensor], x: Tensor, valid: Tensor) -> Tensor:
    """Return what `norm`, a function of (n, C), makes of the valid positions of x, with zeros elsewhere."""
    y = torch.zeros_like(x).movedim(1, -1)
    y[valid] = norm(x.movedim(1, -1)[valid])
    return y.movedim(-1, 1)


def samples_alone(norm: Callable[[Tensor], Tensor], x: Tensor, valid: Tensor) -> Tensor:
    """Return the same for a `norm` of (1, C, n), sample by sample."""
    parts = [alone(lambda v: norm(v.T[None])[0].T, x[i : i + 1], valid[i : i + 1]) for i in range(len(x))]
    return torch.cat(parts)


def same_gradients(y: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    """Compare outputs, and gradients of a loss that asks for the invalid positions too."""
    torch.testing.assert_close(y, expected, **CLOSE)
    probe = sample(*y.shape, seed=9)
    ours, theirs = (torch.autograd.grad((out * probe).sum(), inputs) for out in (y, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def hidden(x: Tensor, valid: Tensor) -> Tensor:
    """Return x with NaN where it does not count; gradients go to x."""
    return torch.where(valid.unsqueeze(1), x, torch.nan)


@pytest.mark.parametrize("kind", BATCH_NORMS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norms(kind: str, shape: tuple[int, ...], momentum: float | None) -> None:
    if kind == "torch" and len(shape) != 4:
        layer = with_weights(
            {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 5: nn.BatchNorm3d}[len(shape)](C, momentum=momentum)
        )
    else:
        layer = with_weights(BATCH_NORMS[kind](momentum=momentum))
    reference = twin(layer, momentum=momentum)
    for step in range(3):
        x = sample(*shape, seed=step).requires_grad_()
        valid = positions(*shape, seed=10 + step)
        with mask(valid):
            y = layer(hidden(x, valid))
        same_gradients(y, alone(reference, x, valid), [x, *layer.parameters()])
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[name], value, **CLOSE)
    with mask(valid):
        y = layer.eval()(hidden(x, valid))
    same_gradients(y, alone(reference.eval(), x, valid), [x, *layer.parameters()])


@pytest.mark.parametrize("buffers", ["rank0", "pooled"])
@pytest.mark.parametrize("shape", [(12, C, 7), (12, C, 4, 3), (12, C)], ids=str)
def test_virtual_ranks_count_their_own_positions(buffers: Any, shape: tuple[int, ...]) -> None:
    ranks = 3
    layer = with_weights(GhostBatchNorm(C, virtual_ranks=ranks, buffers=buffers))
    devices = [twin(layer) for _ in range(ranks)]
    for step in range(3):
        x, valid = sample(*shape, seed=step).requires_grad_(), positions(*shape, seed=10 + step)
        with mask(valid):
            y = layer(hidden(x, valid))
        parts = [alone(device, x[r::ranks], valid[r::ranks]) for r, device in enumerate(devices)]
        same_gradients(y, torch.stack(parts, 1).flatten(0, 1), [x, layer.weight, layer.bias])
    mean, var = (torch.stack([getattr(d, f"running_{what}") for d in devices]) for what in ("mean", "var"))
    if buffers == "pooled":
        mean, var = mean.mean(0, keepdim=True), (var.mean(0) + mean.var(0, correction=0))[None]
    torch.testing.assert_close(layer.running_mean, mean[0], **CLOSE)
    torch.testing.assert_close(layer.running_var, var[0], **CLOSE)


@pytest.mark.parametrize("own_affine", [True, False])
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_domains_count_their_own_positions(own_affine: bool, shape: tuple[int, ...]) -> None:
    ids = torch.tensor([0, 2, 0, 2, 2, 1])
    layer = with_weights(DomainBatchNorm(C, 4, domain_affine=own_affine))
    references = [nn.BatchNorm1d(C).double() for _ in range(4)]
    for step in range(2):
        x, valid = sample(*shape, seed=step).requires_grad_(), positions(*shape, seed=10 + step)
        valid[5] = False  # all of domain 1
        with mask(valid), domain(ids):
            y = layer(hidden(x, valid))
        expected = torch.zeros_like(x)
        for d in (0, 2):
            part = alone(nn.BatchNorm1d.forward.__get__(references[d]), x[ids == d], valid[ids == d])
            weight = layer.domain_weight[d] if own_affine else layer.weight
            bias = layer.domain_bias[d] if own_affine else layer.bias
            by_channel = (-1, *[1] * (x.dim() - 2))
            affine = torch.where(
                valid[ids == d].unsqueeze(1), part * weight.view(by_channel) + bias.view(by_channel), 0
            )
            expected = expected.index_copy(0, torch.nonzero(ids == d)[:, 0], affine)
        same_gradients(y, expected, [x, *layer.parameters()])
    torch.testing.assert_close(layer.domain_mean, torch.stack([r.running_mean for r in references]), **CLOSE)
    torch.testing.assert_close(layer.domain_var, torch.stack([r.running_var for r in references]), **CLOSE)
    assert layer.domain_batches.tolist() == [2, 0, 2, 0]
    assert layer.domain_count[1] == 0


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("groups", [1, 2, C])
def test_norms_of_each_sample(shape: tuple[int, ...], training: bool, ours: bool, groups: int) -> None:
    names = {1: "ln", 2: "gn", C: "in"}
    options = {"groups": 2} if groups == 2 else {}
    layer = with_weights(make_norm(names[groups], C, **options) if ours else nn.GroupNorm(groups, C)).train(training)
    x, valid = sample(*shape).requires_grad_(), positions(*shape)
    valid[1] = False  # a sample in which nothing counts
    with mask(valid):
        y = layer(hidden(x, valid))
    some = valid.flatten(1).any(1)
    expected = torch.zeros_like(x)
    norm = samples_alone(lambda v: F.group_norm(v, groups, layer.weight, layer.bias), x[some], valid[some])
    same_gradients(y, expected.index_copy(0, torch.nonzero(some)[:, 0], norm), [x, *layer.parameters()])


def by_root_mean_square(layer: Any, v: Tensor) -> Tensor:
    """Return RMS norm, or FRN, of v (1, C, n), written out."""
    dims = (2,) if hasattr(layer, "tau") else (1, 2)
    eps = layer.eps + (0 if getattr(layer, "extra_eps", None) is None else layer.extra_eps.abs()[:, None])
    y = v / (v.square().mean(dims, keepdim=True) + eps).sqrt() * layer.weight[:, None]
    y = y if layer.bias is None else y + layer.bias[:, None]
    return y if getattr(layer, "tau", None) is None else torch.maximum(y, layer.tau[:, None])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("name", "options"),
    [("rms", {}), ("rms", {"bias": True}), ("frn", {}), ("frn", {"tlu": False}), ("frn", {"learn_eps": True})],
    ids=str,
)
def test_norms_by_the_root_mean_square_of_each_sample(
    shape: tuple[int, ...], name: str, options: dict[str, bool]
) -> None:
    if name == "frn" and len(shape) == 2:
        options = {**options, "learn_eps": True}  # it refuses one value per channel and sample without
    layer = with_weights(make_norm(name, C, **options))
    x, valid = sample(*shape).requires_grad_(), positions(*shape)
    valid[1] = False  # a sample in which nothing counts
    with mask(valid):
        y = layer(hidden(x, valid))
    some = torch.nonzero(valid.view(len(valid), -1).any(1))[:, 0]
    norm = samples_alone(lambda v: by_root_mean_square(layer, v), x[some], valid[some])
    same_gradients(y, torch.zeros_like(x).index_copy(0, some, norm), [x, *layer.parameters()])
    whole = torch.ones(shape[0], *shape[2:]).bool()
    with mask(whole):
        y = layer(x)
    torch.testing.assert_close(y, layer(x), **CLOSE)


def test_pytorchs_instance_norm_follows_the_mask() -> None:
    layer = with_weights(nn.InstanceNorm2d(C, affine=True))
    x, valid = sample(6, C, 4, 3).requires_grad_(), positions(6, C, 4, 3)
    with mask(valid):
        y = layer(hidden(x, valid))
    expected = samples_alone(lambda v: F.instance_norm(v, weight=layer.weight, bias=layer.bias), x, valid)
    same_gradients(y, expected, [x, *layer.parameters()])


@pytest.mark.parametrize("sizes", [(4, 4), (5, 0, 3), (1, 6), (2, 2, 2, 2)], ids=str)
@pytest.mark.parametrize("shape", [(7,), (4, 3), ()], ids=str)
def test_ranks_merge_their_counts(sizes: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Rank 0 has no valid position, the last rank no mask; the reference is one process with all valid positions."""
    total = sum(sizes)
    x, valid = sample(total, C, *shape), positions(total, C, *shape)
    valid[: sizes[0]], valid[total - sizes[-1] :] = False, True
    probe = sample(*x.shape, seed=5)
    layer = with_weights(SyncBatchNorm(C))

    def work(rank: int) -> tuple[Any, ...]:
        mine, part = copy.deepcopy(layer), slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        own = x[part].clone().requires_grad_()
        for _ in range(2):
            if rank == len(sizes) - 1:
                y = mine(own)
            else:
                with mask(valid[part]):
                    y = mine(hidden(own, valid[part]))
        grads = torch.autograd.grad((y * probe[part]).sum(), (own, mine.weight, mine.bias), create_graph=True)
        (second,) = torch.autograd.grad(grads[0].square().sum(), own)
        return y, *grads, second, mine.running_mean, mine.running_var, mine.num_batches_tracked

    ranks = ok(run_ranks(len(sizes), work))
    reference, whole = twin(layer), x.clone().requires_grad_()
    for _ in range(2):
        expected = alone(reference, whole, valid)
    dx, dweight, dbias = torch.autograd.grad(
        (expected * probe).sum(), (whole, layer.weight, layer.bias), create_graph=True
    )
    (second,) = torch.autograd.grad(dx.square().sum(), whole)
    for place, value in ((0, expected), (1, dx), (4, second)):
        torch.testing.assert_close(torch.cat([rank[place] for rank in ranks]), value, rtol=1e-9, atol=1e-11)
    for place, value in ((2, dweight), (3, dbias)):
        torch.testing.assert_close(sum(rank[place] for rank in ranks), value, **CLOSE)
    for rank in ranks:
        torch.testing.assert_close(rank[5], reference.running_mean, **CLOSE)
        torch.testing.assert_close(rank[6], reference.running_var, **CLOSE)
        assert rank[7] == 2


@pytest.mark.parametrize("name", ["bn", "sync_bn", "ghost_bn", "frozen_bn", "reference_bn"])
def test_evaluation_changes_nothing_where_positions_count(name: str) -> None:
    layer = make_norm(name, C, **({"virtual_ranks": 2} if name == "ghost_bn" else {}))
    x, valid = torch.randn(6, C, 4, 3), positions(6, C, 4, 3)
    layer(x)
    expected = layer.eval()(x)
    with mask(valid):
        y = layer(x)
    assert torch.equal(y, torch.where(valid.unsqueeze(1), expected, 0))


def test_frozen_norms_and_what_they_see() -> None:
    layer, x, valid = with_weights(make_norm("reference_bn", C)), sample(6, C, 4, 3), positions(6, C, 4, 3)
    with mask(valid):
        layer(hidden(x, valid))
        layer(hidden(x + 1, valid))
    values = torch.cat([x.movedim(1, -1)[valid], x.movedim(1, -1)[valid] + 1])
    seen = layer.seen()
    assert seen.count == len(values)
    torch.testing.assert_close(seen.mean, values.mean(0), **CLOSE)
    torch.testing.assert_close(seen.var(1), values.var(0), **CLOSE)
    frozen = make_norm("frozen_bn", C).double()
    frozen.momentum = None  # a refill, as of update_bn
    with mask(valid):
        frozen(hidden(x, valid))
    torch.testing.assert_close(frozen.running_mean, x.movedim(1, -1)[valid].mean(0), **CLOSE)
