"""The options `sync` and `process_group`: who takes them, who refuses them and why, and what else they change."""

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.distributed as dist
from over_ranks import OPTIONS, SHARED, options_of
from ranks import ok, run_ranks
from torch import Tensor, nn

from syncnorm import convert, domain, make_norm, norm_names, stream
from syncnorm.config import Clients, Data, Devices, Norm, Optim, Run
from syncnorm.devices.prepare import norm_layer
from syncnorm.errors import UserError
from syncnorm.norms import norm_options
from syncnorm.worlds import check, fit

REFUSE = [name for name in norm_names() if name not in SHARED]


def batch(n: int, channels: int = 3) -> Tensor:
    return torch.randn(n, channels, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) * 2 + 1


def behind_a_convolution(name: str) -> nn.Module:
    torch.manual_seed(0)
    return convert(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), name, **options_of(name, True)).double()


@pytest.mark.parametrize("name", REFUSE)
def test_a_norm_without_the_option_says_why(name: str) -> None:
    for option in {"sync", "process_group"} - set(norm_options(name)):
        with pytest.raises(UserError, match=rf"norm '{name}' .*(rank|ranks).*: leave {option} out\.$"):
            make_norm(name, 4, **{**OPTIONS.get(name, {}), option: True})
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))
    with pytest.raises(UserError, match="leave sync out"):
        convert(model, name, **{**OPTIONS.get(name, {}), "sync": True})
    assert type(model[1]) is nn.BatchNorm2d


@pytest.mark.parametrize("name", SHARED)
def test_a_norm_with_the_option(name: str) -> None:
    """Is by rank unless told; keeps the choice in copies and files; takes a group alone, and no contradiction."""
    plain, sharing = (make_norm(name, 4, **options_of(name, sync)) for sync in (False, True))
    assert "sync=True" not in repr(plain)
    for layer in (sharing, copy.deepcopy(sharing), pickle.loads(pickle.dumps(sharing))):
        assert "sync=True" in repr(layer)
    with pytest.raises(UserError, match=rf"norm '{name}': sync is 'yes': it must be True or False"):
        make_norm(name, 4, **{**options_of(name, False), "sync": "yes"})
    with pytest.raises(UserError, match="process_group is 'cuda': it must be a group"):
        make_norm(name, 4, **OPTIONS.get(name, {}), process_group="cuda")

    def work(rank: int) -> None:
        group = dist.new_group([0, 1])
        with pytest.raises(UserError, match="got a process_group and sync=False: give one of them"):
            make_norm(name, 4, **options_of(name, False), process_group=group)
        by_group = make_norm(name, 4, **OPTIONS.get(name, {}), process_group=group)
        assert "sync=True" in repr(by_group)
        assert copy.deepcopy(by_group).process_group is group

    ok(run_ranks(2, work))


@pytest.mark.parametrize("name", SHARED)
def test_what_one_rank_cannot_take_ends_all(name: str) -> None:
    """A wrong number of channels at the first and at a later step; too few values on all ranks together."""
    layers = [[behind_a_convolution(name)[1] for _ in range(2)] for _ in range(3)]

    def given(rank: int, case: int) -> Tensor:
        x = batch(2, 3 + (rank if case < 2 else 0))
        return x if case < 2 else x[: 1 - rank, :, :1, :1]

    def work(rank: int) -> list[str]:
        said = []
        for case in (0, 1, 2):
            layer, warm = layers[case][rank], nn.functional.conv2d(batch(2), torch.eye(3).double().view(3, 3, 1, 1))
            if case == 1 and name != "cbn":
                with domain(0):
                    layer(warm)
            try:
                with domain(0):
                    layer(given(rank, case))
                said.append("")
            except ValueError as error:
                said.append(str(error))
        return said

    for said in ok(run_ranks(2, work)):
        kind = type(layers[0][0]).__name__
        assert all(kind in one for one in said[:2]), said
        assert said[2] or name == "mabn", said  # which takes no variance


@pytest.mark.parametrize("name", ["hybrid_bn", "full_norm"])
def test_second_derivatives_go_through_every_rank(name: str) -> None:
    """Of a gradient penalty, with an empty rank."""
    x, sizes = batch(6), [4, 0, 2]

    def penalty(layer: nn.Module, part: Tensor) -> tuple[Tensor, ...]:
        leaf = part.clone().requires_grad_()
        (slope,) = torch.autograd.grad(layer(leaf).pow(3).sum(), leaf, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), (leaf, layer.weight))

    right = penalty(make_norm(name, 3).double(), x)
    layers = [make_norm(name, 3, sync=True).double() for _ in sizes]
    found = ok(run_ranks(3, lambda rank: penalty(layers[rank], x.split(sizes)[rank])))
    dx, dweight = zip(*found, strict=True)
    torch.testing.assert_close(torch.cat(dx), right[0], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(sum(dweight), right[1], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    "options", [{"prior_count": 3}, {"prior_count": 0}, {"prior_count": 3, "horizon": 4}], ids=str
)
def test_a_stream_over_ranks_is_one_stream(options: dict[str, Any]) -> None:
    batches, sizes = [batch(5), batch(5) * 3, batch(5) - 1], [2, 0, 3]

    def follow(layer: nn.Module, parts: list[Tensor]) -> list[Tensor]:
        with stream(nn.Sequential(layer).eval(), keep=True):
            return [*map(layer, parts)]

    one = make_norm("online_bn", 3, **options).double()
    right = follow(one, batches)
    layers = [make_norm("online_bn", 3, sync=True, **options).double() for _ in sizes]
    told = ok(run_ranks(3, lambda rank: follow(layers[rank], [x.split(sizes)[rank] for x in batches])))
    for step, expected in enumerate(right):
        found = torch.cat([outputs[step] for outputs in told])
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for layer in layers:
        torch.testing.assert_close(layer.state_dict(), one.state_dict(), rtol=1e-12, atol=1e-12)


SHORT = Run(
    data=Data("digits", train_limit=64, test_limit=40),
    model_options={"width": 4},
    norm=Norm("full_norm", {"sync": True}),
    world=Devices(ranks=4, per_device_batch=1),
    optim=Optim(epochs=1, lr=0.01),
)


def test_a_run_counts_the_samples_that_share() -> None:
    result = fit(SHORT)
    assert result.evaluated_by == "shared (all ranks)"
    by_rank = fit(Run(**{**vars(SHORT), "norm": Norm("full_norm")}))
    assert by_rank.evaluated_by == "own (rank 0)"
    assert result.metrics["values_per_channel"] == 4 * by_rank.metrics["values_per_channel"]
    world = Devices(global_batch=16, per_device_batch=2)
    assert norm_layer(Norm("eval_norm", {"sync": True}), world)[1] == {"batch": 16, "sync": True}


def test_a_run_with_a_norm_that_cannot_share_is_refused() -> None:
    for name, why in (
        ("bn", "keeps statistics by rank, since it is PyTorch's own layer"),
        ("gn", "takes no statistics"),
    ):
        with pytest.raises(UserError, match=f"norm '{name}' {why}"):
            check(Run(**{**vars(SHORT), "norm": Norm(name, {"sync": True})}))


def test_clients_cannot_share_as_ranks_do() -> None:
    with pytest.raises(UserError, match="norm full_norm synchronises ranks, and clients are none"):
        check(Run(**{**vars(SHORT), "world": Clients(count=2, rounds=1)}))
