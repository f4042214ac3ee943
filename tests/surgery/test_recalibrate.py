"""Moments and recalibrated statistics against a network written out in NumPy, and against torch's update_bn."""

import copy
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from syncnorm import Moments, batch_norms, convert, layer_moments, recalibrate
from syncnorm.errors import UserError

CLOSE: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}
OPTIONS: dict[str, dict[str, Any]] = {"ghost_bn": {"virtual_ranks": 2, "buffers": "pooled"}}
KINDS = ["bn", "sync_bn", "ghost_bn", "frozen_bn", "reference_bn", "hybrid_bn"]
EPS = 1e-2


class Net(nn.Module):
    """Two batch norms in a row, the second one used twice, with a dropout that must not act."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(3, eps=EPS)
        self.drop = nn.Dropout(0.5)
        self.again = nn.BatchNorm2d(3, eps=EPS, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.first(x)) ** 2
        return self.again(self.again(x) ** 2 + 3)


def network(name: str = "bn") -> Net:
    net = Net().double()
    with torch.no_grad():
        net.first.weight.copy_(torch.tensor([0.5, -1.5, 2.0]))
        net.first.bias.copy_(torch.tensor([0.1, 0.2, -3.0]))
        for layer, shift in ((net.first, 1.0), (net.again, 2.0)):
            layer.running_mean.copy_(torch.tensor([1.0, -1.0, 0.5]) * shift)
            layer.running_var.copy_(torch.tensor([0.5, 2.0, 3.0]) * shift)
    return net if name == "bn" else convert(net, name, **OPTIONS.get(name, {})).train()


def batches(sizes: tuple[int, ...] = (5, 1, 0, 8)) -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    return [torch.randn(n, 3, 2, 2, dtype=torch.float64, generator=g) * (1 + i) + i for i, n in enumerate(sizes)]


def inputs_in_numpy(net: Net, xs: list[Tensor], normaliser: str) -> dict[str, list[np.ndarray]]:
    """Return what enters each layer, by use, worked out without torch."""
    seen: dict[str, list[np.ndarray]] = {"first": [], "again": []}

    def normalise(name: str, layer: Any, x: np.ndarray) -> np.ndarray:
        seen[name].append(x)
        mean, var = layer.running_mean.numpy(), layer.running_var.numpy()
        if normaliser == "batch":
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
        y = (x - mean[:, None, None]) / np.sqrt(var[:, None, None] + EPS)
        if layer.weight is None:
            return y
        return y * layer.weight.detach().numpy()[:, None, None] + layer.bias.detach().numpy()[:, None, None]

    for x in (x for x in xs if len(x)):
        y = normalise("first", net.first, x.numpy()) ** 2
        normalise("again", net.again, normalise("again", net.again, y) ** 2 + 3)
    return seen


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("normaliser", ["batch", "running"])
def test_moments_of_every_layer(name: str, normaliser: Any) -> None:
    net = network(name)
    found = layer_moments(net, iter(batches()), normaliser)
    assert list(found) == ["first", "again"]
    for layer, parts in inputs_in_numpy(net, batches(), normaliser).items():
        values = np.concatenate([part.transpose(1, 0, 2, 3).reshape(3, -1) for part in parts], axis=1)
        assert found[layer].count == values.shape[1] == 14 * 4 * (2 if layer == "again" else 1)
        np.testing.assert_allclose(found[layer].mean.numpy(), values.mean(1), **CLOSE)
        np.testing.assert_allclose(found[layer].var(1).numpy(), values.var(1, ddof=1), **CLOSE)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("normaliser", ["batch", "running"])
@pytest.mark.parametrize("estimator", ["population", "mean_of_batches"])
def test_recalibration(name: str, normaliser: Any, estimator: Any) -> None:
    net = network(name)
    counters = [layer.num_batches_tracked.clone() for layer in batch_norms(net).values()]
    seen = inputs_in_numpy(net, batches(), normaliser)
    buffers = {key: id(value) for key, value in net.named_buffers()}
    assert recalibrate(net, batches(), normaliser, estimator) is net
    assert {key: id(value) for key, value in net.named_buffers()} == buffers
    for layer, parts in seen.items():
        flat = [part.transpose(1, 0, 2, 3).reshape(3, -1) for part in parts]
        if estimator == "population":
            mean, var = np.concatenate(flat, 1).mean(1), np.concatenate(flat, 1).var(1, ddof=1)
        else:
            mean, var = np.mean([f.mean(1) for f in flat], 0), np.mean([f.var(1, ddof=1) for f in flat], 0)
        np.testing.assert_allclose(getattr(net, layer).running_mean.numpy(), mean, **CLOSE)
        np.testing.assert_allclose(getattr(net, layer).running_var.numpy(), var, **CLOSE)
        if name == "ghost_bn":
            np.testing.assert_allclose(getattr(net, layer).rank_var[1].numpy(), var, **CLOSE)
    assert counters == [layer.num_batches_tracked for layer in batch_norms(net).values()]


def test_mean_of_batches_is_torchs_update_bn() -> None:
    ours, torchs = network(), network()
    torchs.drop.p = 0.0
    update_bn(batches((5, 2, 8)), torchs)
    recalibrate(ours, batches((5, 2, 8)), estimator="mean_of_batches")
    for key in ("first.running_mean", "first.running_var", "again.running_mean", "again.running_var"):
        torch.testing.assert_close(ours.state_dict()[key], torchs.state_dict()[key], **CLOSE)


def test_only_the_population_has_the_spread_of_the_batches() -> None:
    """Two batches at -3 and +3 with variance 1 each: 10 together, 1 on average."""
    net = nn.Sequential(nn.BatchNorm1d(1))
    two = [torch.tensor([[m - 1.0], [m + 0.0], [m + 1.0]]) for m in (-3.0, 3.0)]
    assert recalibrate(net, two, estimator="mean_of_batches")[0].running_var.item() == pytest.approx(1.0)
    assert recalibrate(net, two)[0].running_var.item() == pytest.approx((2 + 2 + 6 * 9) / 5)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("normaliser", ["batch", "running"])
@pytest.mark.parametrize("fails", [False, True])
def test_measuring_leaves_everything_as_it_was(name: str, normaliser: Any, fails: bool) -> None:
    net = network(name)
    net.drop.eval()
    before = {key: (id(value), value.clone()) for key, value in (*net.named_parameters(), *net.named_buffers())}
    modes = [module.training for module in net.modules()]
    random = torch.get_rng_state()

    def shuffled() -> Iterator[Tensor]:
        for x in batches():
            yield x[torch.randperm(len(x))]
        if fails:
            yield torch.zeros(2, 5, 2, 2, dtype=torch.float64)

    if fails:
        with pytest.raises((ValueError, RuntimeError)):
            layer_moments(net, shuffled(), normaliser)
    else:
        layer_moments(net, shuffled(), normaliser)
    after = {key: (id(value), value) for key, value in (*net.named_parameters(), *net.named_buffers())}
    assert after.keys() == before.keys()
    assert all(after[key][0] == before[key][0] and torch.equal(after[key][1], before[key][1]) for key in before)
    assert [module.training for module in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in net.modules())


def test_a_recalibrated_model_evaluates_its_data_as_in_training() -> None:
    """One layer, all data in one batch: evaluation differs from training by n - 1 in place of n alone."""
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=1e-30)).double()
    (x,) = batches((8,))
    expected = copy.deepcopy(net).train()(x)
    torch.testing.assert_close(recalibrate(net, [x]).eval()(x), expected * np.sqrt(31 / 32), **CLOSE)


def test_clients_moments_merge_to_those_of_all() -> None:
    net, xs = network(), batches((5, 3, 8))
    together = layer_moments(net, xs, "running")
    apart = [layer_moments(net, [x], "running") for x in xs]
    for name, moments in together.items():
        pooled = Moments.pool([client[name] for client in apart])
        torch.testing.assert_close(pooled.mean, moments.mean, **CLOSE)
        torch.testing.assert_close(pooled.m2, moments.m2, **CLOSE)


def test_layers_that_have_no_statistics_or_are_not_reached() -> None:
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = nn.BatchNorm2d(3, track_running_stats=False)
            self.unused = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    net = Part().double()
    assert list(layer_moments(net, batches())) == ["used"]
    recalibrate(net, batches())
    assert net.used.running_mean is None
    assert net.unused.running_var.tolist() == [1, 1, 1]


def test_a_model_without_batch_norm_is_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.GroupNorm(1, 2))
    assert layer_moments(model, []) == {}
    assert recalibrate(model, []) is model


def test_mistakes_get_a_sentence() -> None:
    net, xs, one = network(), batches(), [torch.zeros(1, 3, 1, 1, dtype=torch.float64)]
    for call, sentence in [
        (lambda: layer_moments(net, []), "there is no sample to measure batch norms with"),
        (lambda: recalibrate(net, batches((0, 0))), "there is no sample to measure batch norms with"),
        (lambda: layer_moments(net, [(xs[0], 1)]), "is a tuple: give the inputs alone, as tensors"),
        (lambda: layer_moments(net, xs, "runing"), "unknown normaliser 'runing': did you mean 'running'?"),
        (lambda: recalibrate(net, xs, estimator="mean"), "unknown estimator 'mean'"),
        (lambda: layer_moments(net, one), "layer 'first' got one value per channel, which has no variance"),
        (lambda: recalibrate(net, one, "running"), "layer 'first' got one value per channel"),
        (lambda: recalibrate(net, one * 3, "running", "mean_of_batches"), "layer 'first' got one value per channel"),
    ]:
        with pytest.raises(UserError) as caught:
            call()
        assert sentence in str(caught.value)
    assert layer_moments(net, one * 3, "running")["first"].count == 3


class Masked(nn.Module):
    """A model of two inputs, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, image: Tensor, *, weight: Tensor) -> Tensor:
        return self.net(image * weight)


def test_call_says_how_a_batch_of_several_inputs_runs() -> None:
    whole, masked = network(), Masked()
    loader = [{"image": x, "weight": torch.tensor(2.0)} for x in batches((5, 0, 8))]

    def run(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return model(batch["image"], weight=batch["weight"])

    recalibrate(whole, [2 * x for x in batches((5, 0, 8))])
    recalibrate(masked, iter(loader), call=run)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(masked.net.state_dict()[name], value, **CLOSE)
    found = layer_moments(masked, islice(loader, 1), call=run)
    assert found["net.first"].count == 5 * 4
    with pytest.raises(UserError, match=r"the model fails on a batch .* \(dict\): KeyError: 'depth'"):
        recalibrate(masked, loader, call=lambda model, batch: model(batch["depth"]))
    with pytest.raises(UserError, match="no sample to measure"):
        recalibrate(masked, [], call=run)
    with pytest.raises(UserError, match="or say with call=lambda model, batch: "):
        recalibrate(masked, loader)  # type: ignore[arg-type]


def test_mixed_precision_measures_what_the_layers_get() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    x = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        recalibrate(model, [x])
        values = model[0](x).double()
    torch.testing.assert_close(model[1].running_mean, values.mean((0, 2, 3)).float())
    var = values.transpose(0, 1).flatten(1).var(1)
    torch.testing.assert_close(model[1].running_var, var.float())
