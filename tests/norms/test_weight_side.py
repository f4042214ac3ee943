"""Weight standardisation, weight norm and spectral norm in convolutions, against their formulas in NumPy."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from stacked_norms import assert_stacked_equals_loop
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import register_parametrization

from syncnorm import convert, make_norm, revert
from syncnorm.errors import UserError
from syncnorm.norms import WeightStandardization

NAMES = ["ws", "weight_norm", "spectral_norm"]
CLOSE: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}
CONV = [(nn.Conv1d, F.conv1d), (nn.Conv2d, F.conv2d), (nn.Conv3d, F.conv3d)]


def standardised(weight: Tensor) -> np.ndarray:
    units = weight.detach().numpy().reshape(len(weight), -1)
    std = units.std(1, ddof=1, keepdims=True)
    return ((units - units.mean(1, keepdims=True)) / (std + 1e-5)).reshape(weight.shape)


def network(seed: int = 0, ndim: int = 2) -> nn.Module:
    torch.manual_seed(seed)
    conv: Any = CONV[ndim - 1][0]
    norm: Any = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[ndim - 1]
    layers = [conv(4, 6, 3, stride=2, padding=1, groups=2), norm(6), nn.ReLU(), conv(6, 6, 1, groups=6), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(6 * 3**ndim, 3)).double()


def image(ndim: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(2, 4, *[6] * ndim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(4, 5), (4, 3, 2), (4, 3, 3, 3), (2, 2, 1, 2, 2)], ids=str)
def test_standardisation_and_its_gradients(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weight = (torch.randn(shape, dtype=torch.float64) * 0.3 + 2).requires_grad_()
    np.testing.assert_allclose(WeightStandardization()(weight).detach().numpy(), standardised(weight), **CLOSE)
    assert torch.autograd.gradcheck(WeightStandardization(), (weight,))


def test_a_constant_weight_has_a_finite_gradient() -> None:
    weight = torch.full((2, 3), 0.7, requires_grad=True)
    WeightStandardization()(weight).sum().backward()
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_convolutions_use_the_normalised_weight(name: str, ndim: int) -> None:
    model = network(ndim=ndim)
    raw = model[0].weight.detach()
    convert(model, name).eval()
    if name == "ws":
        expected = torch.from_numpy(standardised(raw))
    elif name == "weight_norm":
        with torch.no_grad():
            gain = model[0].parametrizations.weight.original0
            gain.uniform_(-2, 2)
        expected = gain.detach() * raw / raw.flatten(1).norm(dim=1).view(gain.shape)
    else:
        expected = raw / np.linalg.svd(raw.flatten(1).numpy(), compute_uv=False)[0]
        for _ in range(200):
            assert model[0].train().weight is not None
        model.eval()
    close = {"rtol": 1e-6, "atol": 1e-6} if name == "spectral_norm" else CLOSE  # the power method has not ended
    torch.testing.assert_close(model[0].weight.detach(), expected, **close)
    x = image(ndim)
    y = CONV[ndim - 1][1](x, model[0].weight, model[0].bias, stride=2, padding=1, groups=2)
    torch.testing.assert_close(model[0](x), y, **CLOSE)
    assert type(model[3]) is CONV[ndim - 1][0]  # one weight a unit


@pytest.mark.parametrize(("name", "torchs"), [("weight_norm", "weight_norm"), ("spectral_norm", "spectral_norm")])
def test_torchs_own_trains_alike(name: str, torchs: str) -> None:
    """One step of gradient descent through the layer of PyTorch, applied to the same convolution."""
    own, right = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)), nn.Conv2d(4, 6, 3)
    right.load_state_dict(own[0].state_dict())
    torch.manual_seed(3)
    convert(own, name)
    torch.manual_seed(3)
    getattr(parametrizations, torchs)(right)
    for model in (own, right):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(image().float()).square().sum().backward()
        optimizer.step()
    assert torch.equal(own(image().float()), right(image().float()))


@pytest.mark.parametrize("name", NAMES)
def test_what_was_learnt_comes_back_raw_and_as_the_same_parameter(name: str) -> None:
    model = network().eval()
    before, first, parameters = model(image()), model[0], list(model.parameters())
    assert torch.equal(revert(convert(model, name))(image()), before)
    convert(model, name).train()
    assert {id(p) for p in model[0].parameters()} >= {id(first.weight), id(first.bias)}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(image()).square().sum().backward()
    optimizer.step()
    raw = model[0].parametrizations.weight
    raw = (raw.original if raw.is_tensor else raw.original1).clone()
    revert(model)
    assert model[0] is first
    assert torch.equal(first.weight, raw)
    assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]
    assert "0.parametrizations.weight.original" not in model.state_dict()


@pytest.mark.parametrize("name", NAMES)
def test_copies_and_states(name: str) -> None:
    model, other = convert(network(0), name).eval(), convert(network(1), name).eval()
    y = model(image())
    twin = copy.deepcopy(model)
    assert torch.equal(twin(image()), y)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(image()), y)
    with torch.no_grad():
        twin[0].bias.add_(1)
    assert torch.equal(model(image()), y)
    assert torch.equal(revert(twin)[0].weight, revert(model)[0].weight)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", ["ws", "weight_norm"])
def test_stacked_models_train_as_one_by_one(name: str) -> None:
    assert_stacked_equals_loop([convert(network(seed), name) for seed in range(3)], (4, 6, 6))


@pytest.mark.parametrize("name", NAMES)
def test_mixed_precision(name: str) -> None:
    model = convert(network().float(), name)
    expected = model.eval()(image().float())
    with torch.autocast("cpu", torch.bfloat16):
        y = model(image().float())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("name", [*NAMES, "scaled_ws", "mabn"])
@pytest.mark.parametrize("training", [True, False])
def test_a_converted_model_stays_in_its_mode(name: str, training: bool) -> None:
    model = convert(network().train(training), name)
    assert {module.training for module in model.modules()} == {training}
    before = copy.deepcopy(model.state_dict())
    if not training:  # the power method goes on in training alone
        model(image())
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_short_weight_is_standardised_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = (torch.randn(8, 4, 3, 3) * 0.05 + 1).to(dtype)
    expected = torch.from_numpy(standardised(weight.double()))
    found = WeightStandardization()(weight)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_the_norm_beside() -> None:
    model = convert(network(), "ws", groups=3)
    assert type(model[1]).__name__ == "GroupNorm"
    assert model[1].num_groups == 3
    assert isinstance(convert(network(), "ws", norm="none")[1], nn.Identity)
    for name in ("weight_norm", "spectral_norm"):
        assert isinstance(convert(network(), name)[1], nn.Identity)
    convert(model, "spectral_norm", power_iterations=4)
    assert model[0].parametrizations.weight[0].n_power_iterations == 4


def test_mistakes_get_a_sentence() -> None:
    for name in NAMES:
        with pytest.raises(UserError, match=f"norm '{name}' normalises the weights of convolutions"):
            convert(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), name)
    for name, options, sentence in (
        ("ws", {"groups": 4}, "6 channels do not divide into 4 groups"),
        ("ws", {"norm": "bn"}, "norm is 'bn': write 'gn' or 'none'"),
        ("weight_norm", {"eps": 1}, "unknown option 'eps'"),
        ("spectral_norm", {"power_iterations": 0}, "power_iterations is 0: it must be at least 1"),
    ):
        with pytest.raises(UserError, match=sentence):
            make_norm(name, 6, **options)
        model = network().eval()
        before = model(image())
        with pytest.raises(UserError, match=sentence):
            convert(model, name, **options)
        assert torch.equal(model(image()), before)


@pytest.mark.parametrize("name", NAMES)
def test_a_users_own_parametrization_on_top_is_refused(name: str) -> None:
    model = convert(network(), name)
    register_parametrization(model[0], "weight", nn.Tanh(), unsafe=True)
    for act in (revert, lambda m: convert(m, "gn")):
        with pytest.raises(UserError, match="layer '0' computes its weight from something else"):
            act(model)
