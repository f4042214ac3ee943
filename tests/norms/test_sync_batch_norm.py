"""SyncBatchNorm on ranks against one-process batch norm on the concatenated batch, in float64."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import ok, run_ranks
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from syncnorm import SyncBatchNorm

C = 3
COMPOSITIONS = [[4], [2, 3], [1, 1], [5, 3, 1, 0], [0, 0, 7], [0, 2, 0, 1]]
SHAPES: dict[str, tuple[int, ...]] = {"2d": (), "3d": (5,), "4d": (4, 3), "5d": (2, 3, 2)}


def reference_layer(ndim: int) -> nn.Module:
    layer = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[ndim](C).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.5, -1.5, 2.0]))
        layer.bias.copy_(torch.tensor([0.1, 0.0, -1.0]))
    return layer


def batch(n: int, *spatial: int) -> Tensor:
    return torch.randn(n, C, *spatial, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3 + 1


def synced(layer: nn.Module, **options: Any) -> SyncBatchNorm:
    twin = SyncBatchNorm(C, **options).double()
    twin.load_state_dict(layer.state_dict())
    return twin


@pytest.mark.parametrize("sizes", COMPOSITIONS, ids=str)
@pytest.mark.parametrize("spatial", SHAPES.values(), ids=SHAPES.keys())
def test_equals_one_process_on_the_whole_batch(sizes: list[int], spatial: tuple[int, ...]) -> None:
    x = batch(sum(sizes), *spatial).requires_grad_()
    probe = torch.randn_like(x)
    layer = reference_layer(x.dim())
    twins = [synced(layer) for _ in sizes]
    y = layer(x)
    first = torch.autograd.grad((y * probe).sum(), (x, layer.weight, layer.bias), create_graph=True)
    second = torch.autograd.grad(first[0].square().sum(), (x, layer.weight))

    def work(rank: int) -> tuple[Any, ...]:
        mine = x.detach().split(sizes)[rank].clone().requires_grad_()
        twin = twins[rank]
        loss = (twin(mine) * probe.split(sizes)[rank]).sum()
        inputs = (mine, twin.weight, twin.bias)
        plain = torch.autograd.grad(loss, inputs, retain_graph=True)
        again = torch.autograd.grad(loss, inputs, create_graph=True)
        penalty = torch.autograd.grad(again[0].square().sum(), (mine, twin.weight))
        return twin(mine).detach(), *plain, *[g.detach() for g in again], *penalty

    out, dx, dw, db, dx2, dw2, db2, ddx, ddw = zip(*ok(run_ranks(len(sizes), work)), strict=True)
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(torch.cat(out), y, **close)
    for dxs, dws, dbs in ((dx, dw, db), (dx2, dw2, db2)):
        torch.testing.assert_close(torch.cat(dxs), first[0], **close)
        torch.testing.assert_close(sum(dws), first[1], **close)
        torch.testing.assert_close(sum(dbs), first[2], **close)
    torch.testing.assert_close(torch.cat(ddx), second[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(sum(ddw), second[1], rtol=1e-10, atol=1e-10)
    layer(x)
    for twin in twins:
        torch.testing.assert_close(twin.running_mean, layer.running_mean, **close)
        torch.testing.assert_close(twin.running_var, layer.running_var, **close)
        assert torch.equal(twin.running_var, twins[0].running_var)
        assert twin.num_batches_tracked == layer.num_batches_tracked == 2


@pytest.mark.parametrize("options", [{"affine": False}, {"momentum": None}, {"track_running_stats": False}], ids=str)
def test_options_mean_what_they_mean_in_pytorch(options: dict[str, Any]) -> None:
    x = batch(6, 4, 4)
    layer = nn.BatchNorm2d(C, **options).double()
    twins = [SyncBatchNorm(C, **options).double() for _ in range(2)]

    def work(rank: int) -> Tensor:
        for _ in range(3):
            y = twins[rank](x[rank::2])
        return y

    for _ in range(3):
        y = layer(x)
    found = ok(run_ranks(2, work))
    torch.testing.assert_close(torch.stack(found, 1).flatten(0, 1), y)
    assert twins[0].state_dict().keys() == layer.state_dict().keys()
    for name, value in layer.state_dict().items():
        torch.testing.assert_close(twins[1].state_dict()[name], value)


def test_groups_share_statistics_within_and_not_across() -> None:
    x = batch(8, 2, 2)

    def work(rank: int) -> Tensor:
        groups = [dist.new_group([0, 2]), dist.new_group([1, 3])]
        layer = SyncBatchNorm(C, process_group=groups[rank % 2]).double()
        return layer(x[2 * rank : 2 * rank + 2])

    y = torch.stack(ok(run_ranks(4, work)))
    xs = x.unflatten(0, (4, 2))
    for members in ([0, 2], [1, 3]):
        expected = nn.BatchNorm2d(C).double()(xs[members].flatten(0, 1))
        torch.testing.assert_close(y[members].flatten(0, 1), expected, rtol=1e-12, atol=1e-12)


class Collectives:
    """Counts what the process group is asked to do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from torch.testing._internal.distributed.multi_threaded_pg import Collective

        self.count = 0
        join = Collective.join

        def counted(collective: Any, rank: int, data: Any) -> Any:
            self.count += rank == 0
            return join(collective, rank, data)

        monkeypatch.setattr(Collective, "join", counted)


def test_one_collective_forward_one_backward_none_in_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    collectives = Collectives(monkeypatch)
    seen = {}

    def work(rank: int) -> None:
        layer = SyncBatchNorm(C)
        x = torch.randn(2, C, 4, 4, requires_grad=True)
        dist.barrier()
        start = collectives.count
        y = layer(x)
        forward = collectives.count
        y.sum().backward()
        backward = collectives.count
        layer.eval()(x).sum().backward()
        dist.barrier()
        if rank == 0:
            seen.update(
                forward=forward - start,
                backward=backward - forward,
                evaluation=collectives.count - 1 - backward,
            )

    ok(run_ranks(2, work))
    assert seen == {"forward": 1, "backward": 1, "evaluation": 0}


def test_one_rank_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    collectives = Collectives(monkeypatch)
    ok(run_ranks(1, lambda rank: SyncBatchNorm(C)(torch.randn(2, C, requires_grad=True)).sum().backward()))
    assert collectives.count == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_input_has_float32_statistics_and_an_empty_rank(dtype: torch.dtype) -> None:
    x = (torch.randn(5, C, 8, 8) * 2 + 40).to(dtype)
    sizes = [3, 0, 2]

    def work(rank: int) -> tuple[Tensor, Tensor, SyncBatchNorm]:
        layer = SyncBatchNorm(C)
        mine = x.split(sizes)[rank].clone().requires_grad_()
        y = layer(mine)
        y.float().square().sum().backward()
        return y.detach(), mine.grad, layer

    results = ok(run_ranks(3, work))
    reference = nn.BatchNorm2d(C)
    wide = x.float().requires_grad_()
    y = reference(wide)
    y.square().sum().backward()
    tolerance = {"rtol": 2**-7, "atol": 2**-6}
    for part in results:
        assert part[0].dtype == part[1].dtype == dtype
        assert part[2].running_mean.dtype == torch.float32
        torch.testing.assert_close(part[2].running_mean, reference.running_mean, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(part[2].running_var, reference.running_var, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.cat([part[0] for part in results]).float(), y, **tolerance)
    torch.testing.assert_close(torch.cat([part[1] for part in results]).float(), wide.grad, rtol=0, atol=0.02)


def test_autocast_leaves_the_statistics_alone() -> None:
    x = torch.randn(4, C, 4, 4)

    def work(rank: int) -> tuple[torch.dtype, Tensor]:
        conv, layer = nn.Conv2d(C, C, 1, bias=False), SyncBatchNorm(C)
        nn.init.dirac_(conv.weight)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = layer(conv(x[2 * rank : 2 * rank + 2]))
        return y.dtype, layer.running_mean

    for dtype, running_mean in ok(run_ranks(2, work)):
        assert dtype == torch.bfloat16
        torch.testing.assert_close(running_mean, 0.1 * x.bfloat16().float().mean((0, 2, 3)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("dims", "fmt"), [(2, torch.channels_last), (3, torch.channels_last_3d)])
def test_channels_last_in_channels_last_out(dims: int, fmt: torch.memory_format) -> None:
    x = batch(4, *[4] * dims).contiguous(memory_format=fmt).requires_grad_()
    layer = synced(reference_layer(2 + dims))
    y = layer(x)
    (dx,) = torch.autograd.grad(y.square().sum(), x)
    assert y.is_contiguous(memory_format=fmt)
    assert dx.is_contiguous(memory_format=fmt)
    wide = x.detach().contiguous().requires_grad_()
    expected = reference_layer(2 + dims)(wide)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dx, torch.autograd.grad(expected.square().sum(), wide)[0], rtol=1e-12, atol=1e-12)


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "strided": lambda x: x[:, :, :, ::2],
    "transposed": lambda x: x.transpose(2, 3),
    "expanded": lambda x: x[:, :, :, :1].expand(-1, -1, -1, 4),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_non_contiguous_input_to_the_second_derivative(view: Callable[[Tensor], Tensor]) -> None:
    def derivatives(layer: nn.Module) -> list[Tensor]:
        x = batch(4, 4, 6).requires_grad_()
        y = layer(view(x))
        (dx,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        return [y, dx, *torch.autograd.grad(dx.square().sum(), (x, layer.weight))]

    layer = reference_layer(4)
    for found, right in zip(derivatives(synced(layer)), derivatives(layer), strict=True):
        torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(8192, 64), (65_536, 64), (16, 8, 64, 64)], ids=str)
def test_precise_far_from_zero_where_channels_lie_side_by_side(shape: tuple[int, ...]) -> None:
    """There PyTorch's CPU kernel loses 5e-5 of a variance over 65,536 values at mean / std = 1e3."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 1e3
    x = x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.contiguous_format)

    def work(rank: int) -> Tensor:
        layer = SyncBatchNorm(shape[1], momentum=1.0)
        layer(x)
        return layer.running_var.double()

    reference = torch.cat([x, x]).double().var([0, *range(2, x.dim())])
    for found in ok(run_ranks(2, work)):
        torch.testing.assert_close(found, reference, rtol=2e-5, atol=0)


@pytest.mark.parametrize("step", [0, 1], ids=["first step", "later step"])
def test_an_input_with_other_channels_raises_on_every_rank(step: int) -> None:
    def work(rank: int) -> None:
        layer = SyncBatchNorm(C)
        for _ in range(step):
            layer(torch.randn(2, C))
        layer(torch.randn(2, C + rank))

    errors = run_ranks(3, work)
    assert [type(error) for error in errors] == [ValueError] * 3
    assert all("rank" in str(error) or "(2, 4)" in str(error) or "(2, 5)" in str(error) for error in errors)


def test_layers_with_other_channels_raise_on_every_rank() -> None:
    errors = run_ranks(2, lambda rank: SyncBatchNorm(C + rank)(torch.randn(2, C + rank)))
    assert [type(error) for error in errors] == [ValueError] * 2
    assert all("rank 0: 3 channels" in str(error) and "rank 1: 4 channels" in str(error) for error in errors)


def test_one_value_per_channel_in_the_world_raises_on_every_rank() -> None:
    errors = run_ranks(3, lambda rank: SyncBatchNorm(C)(torch.randn(int(rank == 1), C)))
    assert [type(error) for error in errors] == [ValueError] * 3
    assert all("one value per channel" in str(error) for error in errors)


def test_one_value_per_channel_raises_in_a_compiled_graph_of_one_rank() -> None:
    layer = torch.compile(SyncBatchNorm(C), backend="eager")
    assert layer(torch.randn(2, C)).shape == (2, C)
    with pytest.raises(ValueError, match="one value per channel"):
        layer(torch.randn(1, C))


def test_an_empty_world_changes_no_buffer() -> None:
    layer = SyncBatchNorm(C)
    assert layer(torch.randn(0, C, 2, 2)).shape == (0, C, 2, 2)
    assert layer.num_batches_tracked == 0
    assert torch.equal(layer.running_var, torch.ones(C))


def test_nonfinite_batches_can_be_kept_out() -> None:
    bad = torch.randn(4, C)
    bad[0, 1] = torch.inf
    guarded, open_ = SyncBatchNorm(C, skip_nonfinite=True), SyncBatchNorm(C)
    for layer in (guarded, open_):
        layer(torch.randn(4, C))
        before = copy.deepcopy(layer.state_dict())
        layer(bad)
        kept = all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
        assert kept is (layer is guarded)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_counts_a_batch_once(reentrant: bool) -> None:
    x = batch(4, 2, 2).requires_grad_()

    def work(rank: int) -> tuple[Tensor, SyncBatchNorm]:
        layer = SyncBatchNorm(C).double()
        mine = x.detach()[2 * rank : 2 * rank + 2].clone().requires_grad_()
        checkpoint(layer, mine, use_reentrant=reentrant).square().sum().backward()
        return mine.grad, layer

    results = ok(run_ranks(2, work))
    layer = nn.BatchNorm2d(C).double()
    layer(x).square().sum().backward()
    torch.testing.assert_close(torch.cat([grad for grad, _ in results]), x.grad, rtol=1e-12, atol=1e-12)
    for _, twin in results:
        assert twin.num_batches_tracked == 1
        torch.testing.assert_close(twin.running_mean, layer.running_mean, rtol=1e-12, atol=1e-12)


def test_a_layer_goes_on_in_another_group() -> None:
    """Ranks agree anew, so that a layer of other channels is found there as well."""
    layers = [SyncBatchNorm(C) for _ in range(3)]
    other = SyncBatchNorm(C + 1)
    ok(run_ranks(2, lambda rank: layers[rank](torch.randn(2, C))))
    ok(run_ranks(3, lambda rank: layers[rank](torch.randn(2, C))))
    assert [layer.num_batches_tracked.item() for layer in layers] == [2, 2, 1]
    errors = run_ranks(2, lambda rank: layers[0](torch.randn(2, C)) if rank else other(torch.randn(2, C + 1)))
    assert all("SyncBatchNorm differs between ranks" in str(error) for error in errors)


def test_copies_and_files() -> None:
    def work(rank: int) -> None:
        layer = SyncBatchNorm(C, process_group=dist.group.WORLD)
        layer(torch.randn(2, C))
        twin = copy.deepcopy(layer)
        assert twin.process_group is layer.process_group
        assert twin.weight is not layer.weight
        torch.testing.assert_close(twin(torch.ones(2, C)), layer(torch.ones(2, C)))

    ok(run_ranks(2, work))


@pytest.mark.parametrize("theirs", [nn.BatchNorm2d(C), nn.BatchNorm2d(C, affine=False)])
def test_state_dict_exchange(theirs: nn.BatchNorm2d) -> None:
    ours = SyncBatchNorm(C, affine=theirs.affine)
    ours(torch.randn(4, C, 2, 2))
    assert theirs.load_state_dict(ours.state_dict()) is not None
    assert ours.load_state_dict(theirs.state_dict()) is not None
    x = torch.randn(2, C, 3, 3)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=0, atol=0)


TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]] = {
    "grad": lambda layer, x: torch.func.grad(lambda x: layer(x).pow(3).sum())(x),
    "vjp": lambda layer, x: torch.func.vjp(layer, x)[1](x.sin())[0],
    "vmap": lambda layer, x: torch.vmap(layer, in_dims=2, out_dims=2)(torch.stack([x, x * x, x.exp()], 2)),
    "vmap of grad": lambda layer, x: torch.vmap(torch.func.grad(lambda x: layer(x).pow(3).sum()))(
        torch.stack([x, x * x])
    ).movedim(0, -1),
    "grad of grad": lambda layer, x: torch.func.grad(
        lambda x: torch.func.grad(lambda x: layer(x).pow(3).sum())(x).square().sum()
    )(x),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_of_torch_func_over_ranks(transform: str) -> None:
    """Every rank transforms its part; the reference is one process with the whole batch. (jvp: on real ranks.)"""
    x = batch(7, 4)
    plain = nn.BatchNorm1d(C, track_running_stats=False).double()
    with torch.no_grad():
        plain.weight.copy_(torch.linspace(0.5, 2, C))
    expected = TRANSFORMS[transform](plain, x)
    layers, parts = [synced(plain, track_running_stats=False) for _ in range(2)], (x[:2], x[2:])
    found = ok(run_ranks(2, lambda rank: TRANSFORMS[transform](layers[rank], parts[rank])))
    torch.testing.assert_close(torch.cat(found), expected, rtol=1e-9, atol=1e-10)
