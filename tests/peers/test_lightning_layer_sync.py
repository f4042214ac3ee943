"""The contract of Lightning's tests of `LayerSync` (test_sync_batchnorm.py): what is applied is reverted."""

import copy

import pytest
import torch
from lightning.pytorch.plugins.layer_sync import LayerSync, TorchSyncBatchNorm
from ranks import ok, run_ranks
from torch import Tensor, nn

from syncnorm import SyncBatchNorm, convert
from syncnorm.norms import GroupNorm
from syncnorm.training import SyncNorm


class Net(nn.Module):
    """Batch norms of three kinds, one without an affine part, one used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4))
        self.shared = nn.BatchNorm1d(4, affine=False, momentum=None)
        self.again = self.shared
        self.untracked = nn.BatchNorm1d(4, track_running_stats=False, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).mean((2, 3))
        return self.untracked(self.again(self.shared(x) ** 2))


def network() -> Net:
    torch.manual_seed(0)
    return Net().double()


X = torch.randn(6, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_it_is_a_layer_sync_that_the_trainer_takes() -> None:
    assert isinstance(SyncNorm(), LayerSync)
    assert isinstance(SyncNorm(), TorchSyncBatchNorm)


def test_apply_changes_every_batch_norm_and_revert_restores_the_very_classes() -> None:
    """Lightning's own plugin gives back a class of its own for all of them."""
    model, plugin = network(), SyncNorm()
    kinds = {name: type(layer) for name, layer in model.named_modules()}
    parameters = dict(model.named_parameters())
    before = copy.deepcopy(model.state_dict())
    applied = plugin.apply(model)
    synced = [name for name, layer in applied.named_modules() if isinstance(layer, SyncBatchNorm)]
    assert synced == ["stem.1", "shared", "untracked"]
    assert applied.shared is applied.again
    assert all(torch.equal(value, before[name]) for name, value in applied.state_dict().items())
    reverted = plugin.revert(applied)
    assert {name: type(layer) for name, layer in reverted.named_modules()} == kinds
    assert all(p is parameters[name] for name, p in reverted.named_parameters())
    assert reverted.untracked.eps == 1e-3
    assert reverted.shared.momentum is None


def test_what_ranks_learn_in_between_is_what_one_process_learns() -> None:
    """Applied on every rank, trained on its share, reverted: the state of one process on the whole batch."""
    whole = network()
    models = [copy.deepcopy(whole) for _ in range(2)]
    for _ in range(3):
        whole(X)

    def work(rank: int) -> nn.Module:
        plugin = SyncNorm()
        model = plugin.apply(models[rank])
        for _ in range(3):
            model(X[rank::2])
        return plugin.revert(model)

    for model in ok(run_ranks(2, work)):
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(model.eval()(X), whole.eval()(X), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("chosen", ["gn", "sync_bn"])
def test_a_norm_that_was_chosen_before_is_neither_applied_nor_reverted(chosen: str) -> None:
    model, plugin = convert(network(), chosen, where="stem.*"), SyncNorm()
    kind = type(model.stem[1])
    assert kind in (GroupNorm, SyncBatchNorm)
    layer = model.stem[1]
    model = plugin.revert(plugin.apply(model))
    assert model.stem[1] is layer
    assert type(model.shared) is nn.BatchNorm1d


def test_apply_and_revert_twice_is_once() -> None:
    """A Trainer that fits, validates and fits again."""
    model, plugin = network(), SyncNorm()
    for _ in range(2):
        model = plugin.apply(model)
        assert type(model.shared) is SyncBatchNorm
        model = plugin.revert(model)
        assert type(model.shared) is nn.BatchNorm1d
