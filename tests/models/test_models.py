import pytest
import torch
from torch import nn

from syncnorm import batch_norms, convert, revert
from syncnorm.errors import UserError
from syncnorm.models import NormFactory, make_model, model_names


def my_model(classes: int, shape: tuple[int, int, int], width: int = 4) -> nn.Module:
    """A user's own factory."""
    return nn.Sequential(
        nn.Conv2d(shape[0], width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)
    )


def norm_alone(norm: NormFactory) -> nn.Module:
    """A user's own factory that asks for a norm."""
    return norm(4)


def fitting_shape(name: str) -> tuple[int, ...]:
    return (3, 40) if name == "signal_cnn" else (3, 16, 16)


@pytest.mark.parametrize("name", model_names())
@pytest.mark.parametrize("norm", ["bn", "frozen_bn", "reference_bn", "hybrid_bn", "gn", "scaled_ws", "none"])
def test_every_model_takes_every_norm(name: str, norm: str) -> None:
    shape = fitting_shape(name)
    model = make_model(name, shape, 7, norm)
    assert model(torch.randn(2, *shape)).shape == ((2, 7, 16, 16) if name == "unet" else (2, 7))
    assert bool(batch_norms(model)) == norm.endswith("bn")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("resnet20", 269_722), ("resnet32", 464_154), ("resnet56", 853_018), ("resnet18", 11_173_962)],
)
def test_residual_networks_have_their_papers_size(name: str, parameters: int) -> None:
    """0.27, 0.46 and 0.85 million in table 6 of arXiv 1512.03385; ResNet-18 in its CIFAR form."""
    model = make_model(name, (3, 32, 32), 10)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(("width", "parameters"), [(4, 17_326), (8, 68_050), (16, 269_722)])
def test_a_residual_network_can_be_narrower(width: int, parameters: int) -> None:
    """Counted by hand: 3x3 convolutions of stem and blocks, two numbers a channel of each norm, classifier."""
    w = width
    stem, first = 27 * w, 6 * 9 * w * w
    second = 9 * (2 * w * w + 5 * 4 * w * w)
    third = 9 * (8 * w * w + 5 * 16 * w * w)
    norms, classifier = 2 * (w + 6 * (w + 2 * w + 4 * w)), 10 * 4 * w + 10
    assert stem + first + second + third + norms + classifier == parameters
    model = make_model("resnet20", (3, 32, 32), 10, width=width)
    assert sum(p.numel() for p in model.parameters()) == parameters
    with pytest.raises(UserError, match="width is 0: it is a number of channels, at least 1"):
        make_model("resnet20", (3, 32, 32), 10, width=0)


@pytest.mark.parametrize(
    "norm", ["sync_bn", "frozen_bn", "reference_bn", "hybrid_bn", "gn", "ln", "in", "scaled_ws", "none"]
)
def test_resnet18_converts_there_and_back(norm: str) -> None:
    model = make_model("resnet18", (3, 32, 32), 10).eval()
    x = torch.randn(2, 3, 32, 32)
    before = model(x)
    assert len(batch_norms(model)) == 20
    assert torch.equal(revert(convert(model, norm))(x), before)


def test_a_unet_uses_every_level_and_halves_its_images() -> None:
    model = make_model("unet", (3, 16, 24), 5, width=4, depth=3)
    seen = []
    for layer in batch_norms(model).values():
        layer.register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape[1:])))
    x = torch.randn(2, 3, 16, 24)
    model(x).sum().backward()
    assert [shape[1:] for shape in seen] == [(16, 24), (8, 12), (4, 6), (2, 3), (4, 6), (8, 12), (16, 24)]
    assert [shape[0] for shape in seen] == [4, 8, 16, 16, 16, 8, 4]
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for n, p in model.named_parameters() if "0.bias" not in n
    )


def test_a_model_of_ones_own_gets_what_it_asks_for() -> None:
    model = make_model("test_models:my_model", (1, 8, 8), 3, width=5)
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 3)
    assert model[0].out_channels == 5


@pytest.mark.parametrize("shape", [(3, 40), (3, 1), (9, 128)])
@pytest.mark.parametrize("depth", [1, 4])
def test_signals_of_any_length(shape: tuple[int, int], depth: int) -> None:
    model = make_model("signal_cnn", shape, 6, depth=depth, width=8)
    assert model(torch.randn(4, *shape)).shape == (4, 6)
    assert [type(layer) for layer in batch_norms(model).values()] == depth * [nn.BatchNorm1d]


@pytest.mark.parametrize("name", ["mlp", "ic_mlp", "binary_mlp"])
def test_models_that_flatten_take_signals_as_well(name: str) -> None:
    assert make_model(name, (3, 40), 6)(torch.randn(4, 3, 40)).shape == (4, 6)


@pytest.mark.parametrize("shape", [(3, 40), (3, 8, 8)])
def test_a_model_of_ones_own_gets_norms_of_as_many_dimensions_as_its_samples(shape: tuple[int, ...]) -> None:
    layer = make_model("test_models:norm_alone", shape, 6)
    assert isinstance(layer, nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)


@pytest.mark.parametrize(
    ("name", "shape", "sentence"),
    [
        (
            "signal_cnn",
            (3, 16, 16),
            "model 'signal_cnn' takes signals (C, L), and these samples have shape (3, 16, 16): choose one of "
            "small_cnn, ",
        ),
        (
            "small_cnn",
            (9, 128),
            "model 'small_cnn' takes images (C, H, W), and these samples have shape (9, 128): choose one of "
            "signal_cnn, mlp, ",
        ),
    ],
)
def test_samples_of_another_kind_get_a_sentence(name: str, shape: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        make_model(name, shape, 10)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("small_cn", {}, "unknown model 'small_cn': did you mean 'small_cnn'?"),
        ("small_cnn", {"widht": 8}, "model 'small_cnn': unknown option 'widht': did you mean 'width'?"),
        ("nowhere.at:all", {}, "model 'nowhere.at:all' cannot be imported"),
        ("test_models:nothing", {}, "cannot be imported"),
        (":nothing", {}, "is no import path"),
        ("math:pi", {}, "model 'math:pi' is a float: name what builds a model"),
        ("small_cnn", {"width": -3}, "model 'small_cnn' cannot be built with width=-3"),
        ("unet", {"depth": 5}, "model 'unet' cannot be built with depth=5: images of 16 x 16 cannot be halved"),
        ("signal_cnn", {"depth": 0}, "model 'signal_cnn' cannot be built with depth=0: depth is 0"),
    ],
)
def test_mistakes_get_a_sentence(name: str, options: dict[str, int], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        make_model(name, fitting_shape(name), 10, **options)
    assert sentence in str(caught.value)
