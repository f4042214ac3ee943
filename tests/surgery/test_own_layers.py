"""What users add to layers and models: attributes, a train() that freezes, statistics that are switched off."""

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from syncnorm import convert, norm_names, revert
from syncnorm.errors import UserError

OPTIONS = {"ghost_bn": {"virtual_ranks": 2}, "domain_bn": {"domains": 2}, "eval_norm": {"batch": 2}}


@pytest.mark.parametrize("name", norm_names())
def test_own_attributes_and_qconfig_go_along(name: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    for layer in model:
        layer.qconfig, layer.note = "a configuration", ["mine"]
    model[1].extra = nn.Linear(2, 2)
    model[1].register_buffer("kept", torch.ones(2), persistent=False)
    model[1].register_parameter("gate", nn.Parameter(torch.ones(1)))
    keys = list(model.state_dict())
    convert(model, name, **OPTIONS.get(name, {}))
    twin = copy.deepcopy(model)
    for layer in (*model, *twin):
        assert layer.qconfig == "a configuration"
        assert layer.note == ["mine"]
    assert "kept" not in model[1].state_dict()
    assert {"1.gate", "1.extra.weight"} <= {key for key, _ in model.named_parameters()}
    model[1].note, model[1].kept = ["changed"], torch.zeros(2)
    model[1].extra = nn.Linear(2, 2, bias=False)
    found, extra = revert(model)[1], model[1].extra
    assert found.note == ["changed"]
    assert not found.kept.any()
    assert found.extra is extra
    assert list(revert(twin).state_dict()) == keys
    assert "kept" in twin[1]._non_persistent_buffers_set


def test_names_that_a_norm_has_too_stay_apart() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4))
    model[0].register_buffer("seen", torch.full((2,), 7.0))
    convert(model, "online_bn")
    assert model[0].seen is None  # the norm's own
    assert torch.equal(revert(model)[0].seen, torch.full((2,), 7.0))


class Capped(nn.BatchNorm2d):
    def __init__(self) -> None:
        super().__init__(4)
        self.register_buffer("seen", torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).minimum(self.seen)


def test_names_that_a_forward_needs_are_refused() -> None:
    model = nn.Sequential(Capped())
    with pytest.raises(UserError, match=r"'online_bn' has something of the same name as what Capped holds .*seen"):
        convert(model, "online_bn")
    assert type(convert(model, "sync_bn")[0].seen) is Tensor


class Freezes(nn.Module):
    """Its own train() freezes one kind of batch norm, and the weights of its stem."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.stem, self.bn, self.last = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.kind = kind

    def train(self, mode: bool = True) -> "Freezes":
        super().train(mode)
        self.stem.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, self.kind) and module is not self.last:
                module.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.bn(self.stem(x)))


def test_a_model_that_no_longer_finds_its_frozen_layers_is_told_so() -> None:
    model = Freezes(nn.BatchNorm2d)
    model.bn.training = False
    with pytest.warns(UserWarning, match=r"Freezes\.train\(\) kept '0\.bn' in evaluation mode, and does not find S"):
        convert(nn.Sequential(model), "sync_bn")
    assert (model.bn.training, model.last.training, model.stem.weight.requires_grad) == (False, True, True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(model, "bn")  # found as before
        convert(model, "frozen_bn")  # whose mode says nothing
        found = convert(Freezes(nn.modules.batchnorm._BatchNorm), "sync_bn").train()
    assert not found.bn.training
    assert found.last.training


class StaysInEvaluation(nn.BatchNorm2d):
    def train(self, mode: bool = True) -> "StaysInEvaluation":
        return super().train(False)


def by_class() -> nn.Module:
    return StaysInEvaluation(4)


def by_attribute() -> nn.Module:
    layer = nn.BatchNorm2d(4).eval()
    layer.train = lambda mode=True: layer
    return layer


@pytest.mark.parametrize("build", [by_class, by_attribute])
def test_a_layer_that_freezes_itself_is_told_of(build: Callable[[], nn.Module]) -> None:
    said = r"train\(\) kept '0' in evaluation mode, and SyncBatchNorm has no such train\(\), so it trains now"
    with pytest.warns(UserWarning, match=said):
        model = convert(nn.Sequential(build()), "sync_bn")
    assert not revert(model).train()[0].training


def test_forward_hooks_that_do_not_run_any_more_are_told_of() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    model[1].register_forward_hook(lambda layer, inputs, output: output.relu())
    with pytest.warns(UserWarning, match="'1': forward hooks stay with the replaced layer until revert"):
        convert(model, "sync_bn")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(model, "gn")  # said already
    assert revert(model)(torch.randn(4, 4, 2, 2)).min() == 0


class Fails(nn.Sequential):
    def train(self, mode: bool = True) -> "Fails":
        raise RuntimeError("not this model")


def test_a_train_that_fails_is_the_models_own_affair() -> None:
    assert type(convert(Fails(nn.BatchNorm2d(4)), "gn")[0]).__name__ == "GroupNorm"


@pytest.mark.parametrize("name", ["bn", "sync_bn", "ghost_bn", "frozen_bn", "reference_bn", "brn", "full_norm"])
def test_statistics_that_are_switched_off_stay_for_evaluation(name: str) -> None:
    model, x = nn.Sequential(nn.BatchNorm2d(4)).double(), torch.randn(4, 4, 3, 3).double() * 3 + 1
    model(x)
    model.eval()[0].track_running_stats = False
    before, state = model(x), copy.deepcopy(model.state_dict())
    convert(model, name, **OPTIONS.get(name, {}))
    torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    assert getattr(model[0], "track_running_stats", False) is False
    assert torch.equal(revert(model)(x), before)
    assert model[0].track_running_stats is False
