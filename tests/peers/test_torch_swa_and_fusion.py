"""The contracts of torch's tests of weight averaging (test_swa_utils.py) and of fusion (test_fuse.py).

What these tools do to a plain batch norm, they do to ours.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.data import DataLoader, TensorDataset

import syncnorm
from syncnorm import convert, make_norm, norm_names
from syncnorm.norms import NORMS

C = 4
OPTIONS: dict[str, dict[str, Any]] = {
    "ghost_bn": {"virtual_ranks": 2},
    "domain_bn": {"domains": 2},
    "eval_norm": {"batch": 2},
}
LAYERS = {name: make_norm(name, C, **OPTIONS.get(name, {})) for name in norm_names()}
BATCH_NORMS = [name for name, layer in LAYERS.items() if isinstance(layer, _BatchNorm)]
FIXED_MAPS = [
    "sync_bn", "ghost_bn", "frozen_bn", "reference_bn", "hybrid_bn", "mixstyle", "brn", "diminishing_bn", "cbn",
]  # fmt: skip
SOURCES: dict[str, Callable[[], nn.Module]] = {
    "convolution": lambda: nn.Conv2d(2, C, 3),
    "transposed": lambda: nn.ConvTranspose2d(2, C, 3),
    "linear": lambda: nn.Linear(2, C),
}
CLOSE = {"rtol": 1e-10, "atol": 1e-11}


def network(name: str = "bn") -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, C, 3), nn.BatchNorm2d(C), nn.Dropout(0.5), nn.Conv2d(C, 2, 1)).double()
    return model if name == "bn" else convert(model, name, **OPTIONS.get(name, {}))


def images(seed: int, count: int = 6) -> Tensor:
    return torch.randn(count, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + seed


def trained(model: nn.Module, seed: int) -> nn.Module:
    with torch.no_grad(), syncnorm.domain(0):
        model.train()(images(seed))
        for parameter in model.parameters():
            parameter.add_(0.01 * seed)
    return model


@pytest.mark.parametrize("use_buffers", [True, False], ids=["buffers averaged", "buffers copied"])
@pytest.mark.parametrize("name", BATCH_NORMS)
def test_an_averaged_model_averages_what_it_averages_of_a_plain_one(name: str, use_buffers: bool) -> None:
    """The plain mean of parameters and, if asked for, of buffers; counters as torch averages them."""
    model = network(name)
    average = AveragedModel(model, use_buffers=use_buffers)
    states = []
    for seed in range(3):
        average.update_parameters(trained(model, seed))
        states.append(copy.deepcopy(model.state_dict()))
    parameters = {key for key, _ in model.named_parameters()}
    for key, value in average.module.state_dict().items():
        if not value.is_floating_point():
            continue
        stacked = torch.stack([state[key] for state in states])
        expected = stacked.mean(0) if use_buffers or key in parameters else stacked[-1]
        torch.testing.assert_close(value, expected, **CLOSE)
    assert type(average.module[1]) is type(model[1])
    with syncnorm.domain(0):
        assert average.eval()(images(5)).isfinite().all()


def test_an_exponential_average_of_a_converted_model_evaluates_and_reverts() -> None:
    model = network("sync_bn")
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for seed in range(3):
        average.update_parameters(trained(model, seed))
    x = images(7)
    y = average.eval()(x)
    plain = syncnorm.revert(copy.deepcopy(average.module))
    assert type(plain[1]) is nn.BatchNorm2d
    assert torch.equal(plain.eval()(x), y)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["sync_bn", "reference_bn", "frozen_bn", "brn"])
def test_update_bn_takes_a_loader_and_leaves_mode_momentum_and_parameters(name: str, training: bool) -> None:
    """A loader of pairs, of which the first is the input; dropout acts; all that is no statistic stays."""
    model = trained(network(name), 1).train(training)
    momentum, parameters = model[1].momentum, [p.detach().clone() for p in model.parameters()]
    loader = DataLoader(TensorDataset(torch.cat([images(seed) for seed in range(3)]), torch.arange(18)), batch_size=6)
    update_bn(loader, model)
    assert model.training is model[1].training is training
    assert model[1].momentum == momentum
    assert all(torch.equal(a, b) for a, b in zip(parameters, model.parameters(), strict=True))
    inputs = model[0](torch.cat([images(seed) for seed in range(3)]))
    torch.testing.assert_close(model[1].running_mean, inputs.mean((0, 2, 3)).detach(), **CLOSE)


@pytest.mark.parametrize("name", FIXED_MAPS)
@pytest.mark.parametrize("kind", SOURCES)
def test_fusing_by_torchs_functions_keeps_the_outputs(name: str, kind: str) -> None:
    """They read weight, bias, statistics and eps: right for every norm whose evaluation is a fixed map of these."""
    torch.manual_seed(0)
    source: Any = SOURCES[kind]()
    norm: Any = make_norm(name, C, 1 if kind == "linear" else 2, eps=0.1, **OPTIONS.get(name, {}))
    model = nn.Sequential(source, norm).double()
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-1, 2, C))
        norm.bias.copy_(torch.linspace(0, 1, C))
        norm.running_mean.copy_(torch.linspace(1, 2, C))
        norm.running_var.copy_(torch.linspace(0.5, 3, C))
    model.eval()
    x = torch.randn(5, 2, dtype=torch.float64) if kind == "linear" else images(1)
    fused = (
        fuse_linear_bn_eval(source, norm)
        if kind == "linear"
        else fuse_conv_bn_eval(source, norm, transpose=kind == "transposed")
    )
    torch.testing.assert_close(fused(x), model(x), **CLOSE)


def test_the_norms_that_fold_are_the_ones_tried() -> None:
    """mabn folds by its own statistics, and torch's own layer is torch's affair."""
    folding = {name for name in BATCH_NORMS if callable(NORMS[name].fold)}
    assert folding - {"mabn", "bn", "full_norm"} == set(FIXED_MAPS)
