"""Frozen norms stay as they are while everything else trains, whatever is called meanwhile."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import syncnorm
from syncnorm.errors import UserError
from syncnorm.surgery.conversion.where import Where
from syncnorm.training import FreezeNorms

X = torch.randn(16, 3, 6, 6, generator=torch.Generator().manual_seed(0)) + 1


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Sequential(nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


def optimiser(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)


def step(model: nn.Module, by: torch.optim.Optimizer) -> None:
    by.zero_grad()
    model.train()
    model(X).square().mean().backward()
    by.step()


def state(model: nn.Module, *parts: str) -> dict[str, Tensor]:
    found = {name: value.clone() for name, value in model.state_dict().items()}
    return {name: value for name, value in found.items() if any(part in name for part in parts)}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("norm", ["bn", "sync_bn", "brn"])
def test_statistics_stay_and_normalise_while_the_rest_trains(norm: str) -> None:
    model = syncnorm.convert(Net(), norm, **({"warmup": 0} if norm == "brn" else {}))
    step(model, optimiser(model))
    before, by = state(model, "backbone.1"), optimiser(model)
    assert syncnorm.freeze(model, "backbone") is model
    step(model, by)
    after = state(model, "backbone.1")
    assert same({name: before[name] for name in before if "weight" not in name and "bias" not in name}, after)
    assert not torch.equal(before["backbone.1.weight"], after["backbone.1.weight"])
    model.train()
    inner = model.backbone[0](X)
    expected = nn.functional.batch_norm(
        inner, after["backbone.1.running_mean"], after["backbone.1.running_var"], *map(after.get, WEIGHTS)
    )
    torch.testing.assert_close(model.backbone[1](inner), expected)
    assert syncnorm.frozen_layers(model) == ["backbone.1"]


WEIGHTS = ("backbone.1.weight", "backbone.1.bias")


def test_an_optimiser_with_momentum_and_decay_passes_over_a_frozen_weight() -> None:
    model = Net()
    by = optimiser(model)
    step(model, by)
    syncnorm.freeze(model, affine=True)
    before = state(model, "backbone.1", "head.1")
    step(model, by)
    assert same(before, state(model, "backbone.1", "head.1"))
    syncnorm.unfreeze(model)
    assert syncnorm.frozen_layers(model) == []
    step(model, by)
    after = state(model, "backbone.1", "head.1")
    assert not any(torch.equal(before[name], after[name]) for name in before)


def test_a_parameter_that_did_not_train_does_not_after_unfreeze() -> None:
    model = Net()
    model.head[1].weight.requires_grad_(False)
    syncnorm.unfreeze(syncnorm.freeze(model, affine=True))
    assert [model.head[1].weight.requires_grad, model.head[1].bias.requires_grad] == [False, True]


def test_it_begins_at_a_step_and_counts_training_alone() -> None:
    model = syncnorm.freeze(Net(), "head", affine=True, from_step=2)
    by, seen = optimiser(model), []
    for _ in range(4):
        model.eval()(X)
        step(model, by)
        seen.append(state(model, "head.1"))
    assert not same(seen[0], seen[1])
    assert same(seen[1], seen[2])
    assert same(seen[2], seen[3])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_it_survives_copies_and_loaded_states(copied: Callable[[nn.Module], nn.Module]) -> None:
    model = copied(syncnorm.freeze(Net(), affine=True, from_step=1))
    by = optimiser(model)
    step(model, by)
    model.load_state_dict(Net().state_dict())
    before = state(model, "running", "1.weight")
    step(model, by)
    assert same(before, state(model, "running", "1.weight"))
    syncnorm.unfreeze(model)
    step(model, by)
    assert not same(before, state(model, "running", "1.weight"))


def test_it_is_the_same_from_a_part_that_is_called_alone() -> None:
    model = syncnorm.freeze(Net())
    before = state(model, "running")
    model.train().backbone(X)
    assert same(before, state(model, "running"))


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("head", ["head.1"]),
        ("*.1", ["backbone.1", "head.1"]),
        (nn.BatchNorm2d, ["backbone.1", "head.1"]),
        (lambda name, layer: layer.num_features == 4, ["backbone.1"]),
        (["head", "backbone.1"], ["backbone.1", "head.1"]),
    ],
)
def test_where(where: Where, names: list[str]) -> None:
    assert syncnorm.frozen_layers(syncnorm.freeze(Net(), where)) == names


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (Net(), {"where": "haed"}, r"where='haed' selects none of the 2 layers"),
        (Net(), {"where": nn.BatchNorm1d}, r"where=.*BatchNorm1d.* selects none of the 2"),
        (Net(), {"from_step": -1}, "from_step is -1"),
        (nn.Linear(2, 2), {}, "no batch norm to freeze"),
        (nn.BatchNorm1d(2, track_running_stats=False), {}, "keeps no running statistics"),
    ],
)
def test_mistakes(model: nn.Module, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        syncnorm.freeze(model, **options)


class Lit(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net()
        self.seen: list[Tensor] = []

    def training_step(self, batch: tuple[Tensor], index: int) -> Tensor:
        loss = self.net(batch[0]).square().mean()
        self.seen.append(self.net.head[1].running_mean.clone())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return optimiser(self)


@pytest.mark.parametrize("given", [{"from_step": 2}, {"from_share": 0.5}])
def test_lightning_freezes_at_a_step_and_releases_at_the_end(given: dict[str, Any]) -> None:
    module, loader = Lit(), DataLoader(TensorDataset(X), batch_size=4)
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
    }
    pl.Trainer(max_epochs=1, callbacks=[FreezeNorms("net.head", **given)], **quiet).fit(module, loader)
    first, second, third, fourth = module.seen
    assert not torch.equal(first, second)
    assert torch.equal(second, third)
    assert torch.equal(third, fourth)
    assert syncnorm.frozen_layers(module) == []
    with pytest.raises(UserError, match="from_step or from_share"):
        FreezeNorms()
