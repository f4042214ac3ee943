"""Adaptation at test time over ranks: one model adapted by all, as by one process; measured by each rank alone."""

import copy
from typing import Any

import pytest
import torch
from ranks import ok, run_ranks
from torch import Tensor, nn

from syncnorm import convert, make_norm, recalibrate, tent
from syncnorm.norms import NORMS

SHARED = [name for name, row in NORMS.items() if row.over_ranks == "sync"]
OPTIONS: dict[str, dict[str, Any]] = {"eval_norm": {"batch": 4}, "domain_bn": {"domains": 2}}
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    parts = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Flatten()]
    return nn.Sequential(*parts, nn.Linear(16, 3)).double()


def batches(samples: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(samples, 2, 6, 6, dtype=torch.float64, generator=generator) + step for step in range(3)]


@pytest.mark.parametrize("sizes", [[3, 3], [5, 0, 1]], ids=str)
def test_tent_over_ranks_adapts_as_one_process(sizes: list[int]) -> None:
    one = tent(network(), optimizer=torch.optim.SGD, lr=0.1, steps=2)
    right = [one(x) for x in batches(sum(sizes))]
    models = [network() for _ in sizes]

    def work(rank: int) -> list[Tensor]:
        adapt = tent(models[rank], optimizer=torch.optim.SGD, lr=0.1, steps=2, sync=True)
        return [adapt(x.split(sizes)[rank]) for x in batches(sum(sizes))]

    told = ok(run_ranks(len(sizes), work))
    for step, expected in enumerate(right):
        torch.testing.assert_close(torch.cat([logits[step] for logits in told]), expected, **CLOSE)
    for model in models:
        torch.testing.assert_close(model.state_dict(), one.model.state_dict(), **CLOSE)
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), models[0].parameters(), strict=True))


def test_without_the_option_each_rank_adapts_a_model_of_its_own() -> None:
    models = [network() for _ in range(2)]

    def work(rank: int) -> None:
        adapt = tent(models[rank], lr=0.01)
        for x in batches(4)[: 2 - rank]:  # and as often as it likes
            adapt(x)

    ok(run_ranks(2, work))
    assert not torch.equal(models[0][1].weight, models[1][1].weight)


@pytest.mark.parametrize("normaliser", ["batch", "running"])
@pytest.mark.parametrize("name", [name for name in SHARED if name not in ("mabn", "evonorm_b0", "domain_bn", "cbn")])
def test_norms_that_share_are_recalibrated_as_those_that_do_not(name: str, normaliser: Any) -> None:
    """Ranks have other numbers of batches, even none; the layers share again afterwards."""
    options = OPTIONS.get(name, {})
    plain, sharing = (
        [convert(network(), name, **options, **more) for _ in range(3)] for more in ({}, {"sync": True})
    )
    shares: list[list[Tensor]] = [batches(4), [], batches(4)[:1]]

    def work(rank: int) -> None:
        recalibrate(plain[rank], shares[rank], normaliser)
        recalibrate(sharing[rank], shares[rank], normaliser)

    ok(run_ranks(3, work))
    for found, right in zip(sharing, plain, strict=True):
        torch.testing.assert_close(found.state_dict(), plain[0].state_dict(), **CLOSE)
        torch.testing.assert_close(found.state_dict(), right.state_dict(), **CLOSE)
        assert found[1].sync


def test_prediction_by_the_batch_of_all_ranks() -> None:
    """Uneven shares of a test batch, with the source weighed in by the number of all samples."""
    x, sizes = batches(6)[1], [5, 0, 1]
    for options in ({}, {"prior_count": 3}, {"prior_count": 3, "track_running_stats": False}):
        one = make_norm("prediction_bn", 2, **options).double().eval()
        layers = [copy.deepcopy(one) for _ in sizes]
        for layer in layers:
            layer.sync = True
        told = ok(run_ranks(3, lambda rank, layers=layers: layers[rank](x.split(sizes)[rank])))
        torch.testing.assert_close(torch.cat(told), one(x), **CLOSE)
