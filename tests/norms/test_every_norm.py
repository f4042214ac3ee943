"""What every registered norm owes, whatever its formula: shapes, layouts, types, modes, states and sentences."""

import copy
import io
import pickle
import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from syncnorm import domain, make_norm, norm_names
from syncnorm.errors import UserError
from syncnorm.norms import norm_options

C = 4
OPTIONS = {"ghost_bn": {"virtual_ranks": 2}, "domain_bn": {"domains": 2}, "eval_norm": {"batch": 2}}
SHAPES = [(6, C), (6, C, 5), (6, C, 4, 3), (6, C, 2, 3, 2)]
NEED_POSITIONS = {"in", "frn", "evonorm_b0", "iabn", "mixstyle"}
NAMES = norm_names()
# What takes any input: nothing stands beside a convolution whose weight is normalised. "bn" is PyTorch's own.
IDENTITIES = {name for name in NAMES if isinstance(make_norm(name, 1, **OPTIONS.get(name, {})), nn.Identity)}
WITH_SENTENCES = [name for name in NAMES if name not in IDENTITIES | {"bn"}]


def sample(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def layer_of(name: str, channels: int = C, ndim: int = 2, **options: Any) -> nn.Module:
    return make_norm(name, channels, ndim, **{**OPTIONS.get(name, {}), **options})


def call(layer: nn.Module, x: Tensor) -> Tensor:
    """Call a layer on samples of the domains 0, 1, 0, ..., its random numbers always the same."""
    torch.manual_seed(0)
    with domain(torch.arange(len(x)) % 2):
        y: Tensor = layer(x)
    return y


def attempt(layer: nn.Module, x: Tensor) -> tuple[Tensor | None, str]:
    """Return the layer's output, or what it says in refusing."""
    try:
        return call(layer, x), ""
    except ValueError as error:
        return None, str(error)


def learnt(name: str, **options: Any) -> nn.Module:
    """A layer that has seen three batches."""
    layer = layer_of(name, **options)
    for seed in range(3):
        call(layer, sample(6, C, 4, 3, seed=seed))
    return layer


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(name: str, shape: tuple[int, ...]) -> None:
    if len(shape) == 2 and name in NEED_POSITIONS:
        with pytest.raises(ValueError, match="one value per channel and sample"):
            call(layer_of(name, C, 1), sample(*shape))
        return
    for channels in (C, 1):
        if len(shape) == 2 and channels == 1 and name in {"gn", "ln", "ws", "evonorm_s0"}:
            continue  # one value a sample
        layer = layer_of(name, channels, max(len(shape) - 2, 1))
        x = sample(*shape)[:, :channels].contiguous().requires_grad_()
        y = call(layer, x)
        (slope,) = torch.autograd.grad(y.square().sum(), x)
        z = call(layer.eval(), x)
        assert y.shape == z.shape == slope.shape == x.shape
        assert all(t.isfinite().all() for t in (y, z, slope))


@pytest.mark.parametrize("name", NAMES)
def test_layouts(name: str) -> None:
    """An input's strides change nothing: neither the output, nor the gradient, nor the state."""
    x, wanted = sample(6, C, 4, 3), sample(6, C, 4, 3, seed=1)
    found = []
    for lay in (
        torch.Tensor.contiguous,
        lambda t: t.contiguous(memory_format=torch.channels_last),
        lambda t: t.transpose(1, 3).contiguous().transpose(1, 3),
        lambda t: t.repeat_interleave(2, 0)[::2],
    ):
        layer, laid = layer_of(name), lay(x).detach().requires_grad_()
        y = call(layer, laid)
        (slope,) = torch.autograd.grad((y * wanted).sum(), laid)
        found.append([y, slope, *(value.double() for value in layer.state_dict().values())])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [True, False])
def test_what_follows_in_place_leaves_the_input_alone(name: str, training: bool) -> None:
    """Two norms of one input, each followed by an activation, and a shortcut: as in networks that normalise first."""
    found: list[list[Tensor]] = []
    torch.manual_seed(0)
    convolution = nn.Conv2d(C, C, 1)
    for inplace in (False, True):
        layers, x = [learnt(name).train(training), learnt(name).train(training)], sample(6, C, 4, 3).requires_grad_()
        shared = convolution(x)
        parts = [nn.functional.relu(call(layer, shared), inplace=inplace) for layer in layers]
        y = parts[0].sin() + parts[1].cos() + shared
        found.append([y, *torch.autograd.grad(y.square().sum(), x)])
    for outright, in_place in zip(*found, strict=True):
        assert torch.equal(outright, in_place)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    layer, x = learnt(name), sample(6, C, 4, 3).to(dtype)
    for mode in (True, False):
        y = call(copy.deepcopy(layer).train(mode), x)
        assert y.dtype == dtype
        expected = call(copy.deepcopy(layer).train(mode), x.float())
        torch.testing.assert_close(y.float(), expected, rtol=2e-2, atol=2e-2)
    layer.to(dtype)
    for mode in (True, False):
        y = call(layer.train(mode), x)
        assert y.dtype == dtype
        assert y.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_autocast(name: str) -> None:
    torch.manual_seed(0)
    convolution, layer = nn.Conv2d(3, C, 3), layer_of(name)
    exact = copy.deepcopy(layer)
    x = sample(6, 3, 6, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = call(layer, convolution(x))
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), call(exact, convolution(x)), rtol=5e-2, atol=5e-2)
    y.float().square().sum().backward()
    assert convolution.weight.grad is not None
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.parameters())
    for a, b in zip(layer.buffers(), exact.buffers(), strict=True):
        assert a.dtype == b.dtype
        if name != "mabn":  # whose buffers know of the backward
            torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", NAMES)
def test_evaluation(name: str) -> None:
    """Before any training too; it learns nothing, of one sample or of many, and needs no autograd."""
    for layer in (layer_of(name), learnt(name)):
        before = copy.deepcopy(layer.eval().state_dict())
        for n in (1, 6):
            x = sample(n, C, 4, 3)
            with torch.inference_mode():
                assert call(layer, x).isfinite().all()
            torch.testing.assert_close(call(layer, x), call(layer, x))
        assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_states_and_copies(name: str) -> None:
    layer, x = learnt(name), sample(6, C, 4, 3)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    loaded = layer_of(name)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for twin in (loaded, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        original = copy.deepcopy(layer)
        for mode in (False, True):
            assert torch.equal(call(twin.train(mode), x), call(original.train(mode), x))
        for key, value in original.state_dict().items():
            assert torch.equal(twin.state_dict()[key], value)


@pytest.mark.parametrize("name", NAMES)
def test_a_plain_batch_norms_state_is_one_for_every_batch_norm(name: str) -> None:
    layer, plain = learnt(name), learnt("bn")
    if not isinstance(layer, _BatchNorm):
        pytest.skip("this is no batch norm by type")
    layer.load_state_dict(plain.state_dict())
    for key, value in plain.state_dict().items():
        assert torch.equal(layer.state_dict()[key], value)
    x = sample(6, C, 4, 3)
    expected = layer_of(name)
    if name != "hybrid_bn":  # which keeps the shares that it has learnt
        expected.load_state_dict({**expected.state_dict(), **plain.state_dict()})
        assert torch.equal(call(layer.eval(), x), call(expected.eval(), x))


@pytest.mark.parametrize("name", NAMES)
def test_what_it_is_made_of(name: str) -> None:
    for options in ({"momentum": None}, {"affine": False}, {"device": "meta", "dtype": torch.float64}):
        if all(option in norm_options(name) for option in options) or name == "bn":
            layer = layer_of(name, **options)
            tensors = [*layer.parameters(), *layer.buffers()]
            if "device" in options:
                assert all(t.is_meta and t.dtype in (torch.float64, torch.int64) for t in tensors)
                continue
            assert {"weight", "bias"}.isdisjoint(dict(layer.named_parameters())) or "affine" not in options
            for mode in (True, False):
                assert call(layer.train(mode), sample(6, C, 4, 3)).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_an_input_without_gradient(name: str) -> None:
    layer, x = layer_of(name), sample(6, C, 4, 3)
    if parameters := list(layer.parameters()):
        call(layer, x).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in parameters)
    with torch.inference_mode():
        assert call(layer, x).isfinite().all()
    layer.requires_grad_(False)
    call(layer, x.requires_grad_()).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("name", NAMES)
def test_a_mean_far_from_zero(name: str) -> None:
    """float32 at mean / std = 1e3, against float64; the latter's own rounding of the input is shared."""
    x = (sample(16, C, 8, 8) / 2 + 1000).float()
    layer = layer_of(name)
    exact = copy.deepcopy(layer).double()
    for mode in (True, False):
        for _ in range(60 if not mode else 1):  # so that running statistics are there
            call(layer, x)
            call(exact, x.double())
        y, expected = call(layer.train(mode), x).double(), call(exact.train(mode), x.double())
        layer.train()
        exact.train()
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-3 * float(expected.detach().std()) + 1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(0, C, 4, 3), (6, C, 0, 3)], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_an_empty_batch_is_refused_or_changes_nothing(name: str, shape: tuple[int, ...], training: bool) -> None:
    layer = learnt(name).train(training)
    before = copy.deepcopy(layer.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y, refusal = attempt(layer, sample(*shape))
    assert y.shape == shape if y is not None else re.match(rf"{type(layer).__name__}\({C}\) .*got", refusal)
    for key, value in layer.state_dict().items():
        assert key == "num_batches_tracked" or torch.equal(value, before[key])


@pytest.mark.parametrize("name", WITH_SENTENCES)
@pytest.mark.parametrize("training", [True, False])
def test_a_wrong_input_gets_a_sentence(name: str, training: bool) -> None:
    layer = layer_of(name).train(training)
    kind = type(layer).__name__
    for x, sentence in (
        (sample(6, 3, 4, 3), rf"{kind}\(4\) got an input of shape \(6, 3, 4, 3\): it needs \(N, 4\)"),
        (sample(6, 8, 4, 3), rf"{kind}\(4\) got an input of shape \(6, 8, 4, 3\): it needs \(N, 4\)"),
        (sample(C), rf"{kind}\(4\) got an input of shape \(4,\): it needs \(N, 4\)"),
        (sample(6, C, 4, 3).byte(), rf"{kind}\(4\) got an input of type torch.uint8: .* x.float\(\)"),
    ):
        with pytest.raises(ValueError, match=sentence):
            call(layer, x)


@pytest.mark.parametrize("name", WITH_SENTENCES)
def test_one_value_a_channel(name: str) -> None:
    """Served, where no variance is taken; else refused in training by its name, and told what would do."""
    layer = layer_of(name, **({"virtual_ranks": 1} if name == "ghost_bn" else {}))
    x = sample(1, C, 1, 1)
    y, refusal = attempt(layer, x)
    if y is not None:
        assert y.isfinite().all()
    else:
        assert re.match(rf"{type(layer).__name__}\b.* got one value per channel .* two", refusal)


@pytest.mark.parametrize("name", NAMES)
def test_bad_numbers_get_a_sentence(name: str) -> None:
    for channels in (0, -1):
        with pytest.raises(UserError, match=rf"norm '{name}' for {channels} channels: it needs at least 1"):
            layer_of(name, channels)
    if "groups" in norm_options(name):
        for groups in (0, -2, 3, 5):
            with pytest.raises(
                UserError, match=rf"norm '{name}' for 4 channels .*do not divide into {groups} groups"
            ):
                layer_of(name, groups=groups)
    with pytest.raises(UserError, match=rf"norm '{name}': .*'spam'"):
        layer_of(name, spam=1)


@pytest.mark.parametrize("name", NAMES)
def test_options_of_another_type_get_a_sentence(name: str) -> None:
    hints = {"eps": float, "momentum": float, "affine": bool, "track_running_stats": bool, "groups": int}
    hints |= {"window": int, "buffer": int, "batch": int, "warmup": int, "virtual_ranks": int, "domains": int}
    for option in hints.keys() & set(norm_options(name)):
        for value in ("high", [1], 2.5 if hints[option] is int else "2.5", "8" if option == "groups" else None):
            if value is None and option == "momentum":
                continue
            with pytest.raises(UserError, match=rf"norm '{name}': {option} is .*: it must be "):
                layer_of(name, **{option: value})
    for option, values in (("eps", (-1.0, float("nan"))), ("momentum", (-0.1, 1.5, float("nan")))):
        for value in values if option in norm_options(name) else ():
            with pytest.raises(UserError, match=rf"norm '{name}': {option} is {value}: it must be "):
                layer_of(name, **{option: value})
    for channels in ("8", 8.0, None):
        with pytest.raises(UserError, match=rf"norm '{name}': num_features is .*: it must be a whole number"):
            layer_of(name, channels)


def test_numbers_of_numpy_and_tensors_are_numbers() -> None:
    layer = make_norm("gn", np.int64(8), groups=torch.tensor(4), eps=np.float32(0.5))
    assert (layer.num_channels, layer.num_groups, layer.eps) == (8, 4, 0.5)
