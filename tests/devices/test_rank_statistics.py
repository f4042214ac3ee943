"""Running statistics of all ranks, gathered from real ranks as virtual ranks hold them."""

import torch
from ranks import ok, run_ranks
from torch import nn

from syncnorm import GhostBatchNorm, SyncBatchNorm
from syncnorm.config import Devices, Norm
from syncnorm.devices.prepare import norm_layer
from syncnorm.training.ranks.rank_statistics import Statistics, statistics_by_rank, use_statistics


def test_virtual_ranks_within_real_ranks_are_gathered_in_the_order_of_samples() -> None:
    x = torch.randn(12, 3, 2, 2, dtype=torch.float64)

    def after(engine: str, samples: torch.Tensor) -> Statistics:
        _, options = norm_layer(Norm("ghost_bn", {"virtual_ranks": 2}), Devices(ranks=3, engine=engine))
        model = nn.Sequential(GhostBatchNorm(3, **options)).double()
        model(samples)
        return statistics_by_rank(model)

    expected = after("virtual", x)
    for found in ok(run_ranks(3, lambda rank: after("torchrun", x[rank::3]))):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert expected["0"][0].shape == (6, 3)


def test_layers_that_keep_or_share_nothing_of_their_own_are_left_out() -> None:
    def work(rank: int) -> Statistics:
        model = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), SyncBatchNorm(3), nn.BatchNorm2d(2))
        model[2].running_mean.fill_(rank)
        statistics = statistics_by_rank(model)
        use_statistics(model, statistics, "pooled")
        torch.testing.assert_close(model[2].running_var, torch.full((2,), 1.25))
        assert statistics_by_rank(model[:2]) == {}
        return statistics

    for found in ok(run_ranks(2, work)):
        assert list(found) == ["2"]
        assert torch.equal(found["2"][0], torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
