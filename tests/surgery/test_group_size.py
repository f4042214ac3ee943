"""Synchronised batch norm over groups of neighbouring ranks, by their size."""

from typing import Any

import pytest
import torch
from ranks import ok, run_ranks
from torch import nn

from syncnorm import convert
from syncnorm.errors import UserError


@pytest.mark.parametrize("norm", ["sync_bn", "diminishing_bn"])
def test_neighbours_share_statistics_and_others_do_not(norm: str) -> None:
    x = torch.randn(4, 3, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def work(rank: int) -> Any:
        model = convert(nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2)).double(), norm, group_size=2)
        return model(x[rank]).detach(), model[0].running_mean.clone()

    results = ok(run_ranks(4, work))
    for first in (0, 2):
        plain = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2)).double()
        plain = plain if norm == "sync_bn" else convert(plain, norm)
        expected = plain(x[first : first + 2].flatten(0, 1)).detach().unflatten(0, (2, 3))
        for rank in (first, first + 1):
            torch.testing.assert_close(results[rank][0], expected[rank - first], rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(results[rank][1], plain[0].running_mean, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(results[0][1], results[2][1])


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        (
            "gn",
            {"group_size": 2},
            "'gn' takes no statistics over a batch, so ranks have nothing to share: leave gro",
        ),
        ("bn", {"group_size": 2}, "norm 'bn' keeps statistics by rank, since it is PyTorch's own layer"),
        ("brn", {"group_size": 2, "sync": False}, "give one of them"),
        ("sync_bn", {"group_size": 0}, "at least 1"),
        ("sync_bn", {"group_size": 3}, "does not divide the 2 ranks"),
        ("sync_bn", {"group_size": 2, "process_group": None}, "give one of them"),
    ],
)
def test_a_size_that_cannot_be_is_refused_before_anything_changes(
    name: str, options: dict[str, Any], said: str
) -> None:
    def work(rank: int) -> Any:
        model = nn.Sequential(nn.BatchNorm2d(2))
        with pytest.raises(UserError, match=said):
            convert(model, name, **options)
        return type(model[0])

    assert ok(run_ranks(2, work)) == [nn.BatchNorm2d] * 2


def test_without_ranks_it_says_what_to_call() -> None:
    with pytest.raises(UserError, match="init_process_group"):
        convert(nn.Sequential(nn.BatchNorm2d(2)), "sync_bn", group_size=2)
