import pytest
import torch
from torch import nn

from syncnorm import batch_norms, convert, revert
from syncnorm.errors import UserError
from syncnorm.models import make_model, model_names


def my_model(classes: int, shape: tuple[int, int, int], width: int = 4) -> nn.Module:
    """A user's own factory."""
    return nn.Sequential(
        nn.Conv2d(shape[0], width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)
    )


@pytest.mark.parametrize("name", model_names())
@pytest.mark.parametrize("norm", ["bn", "frozen_bn", "reference_bn", "hybrid_bn", "gn", "scaled_ws", "none"])
def test_every_model_takes_every_norm(name: str, norm: str) -> None:
    model = make_model(name, (3, 16, 16), 7, norm)
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 7)
    assert bool(batch_norms(model)) == norm.endswith("bn")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("resnet20", 269_722), ("resnet32", 464_154), ("resnet56", 853_018), ("resnet18", 11_173_962)],
)
def test_residual_networks_have_their_papers_size(name: str, parameters: int) -> None:
    """0.27, 0.46 and 0.85 million in table 6 of arXiv 1512.03385; ResNet-18 in its CIFAR form."""
    model = make_model(name, (3, 32, 32), 10)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(
    "norm", ["sync_bn", "frozen_bn", "reference_bn", "hybrid_bn", "gn", "ln", "in", "scaled_ws", "none"]
)
def test_resnet18_converts_there_and_back(norm: str) -> None:
    model = make_model("resnet18", (3, 32, 32), 10).eval()
    x = torch.randn(2, 3, 32, 32)
    before = model(x)
    assert len(batch_norms(model)) == 20
    assert torch.equal(revert(convert(model, norm))(x), before)


def test_a_model_of_ones_own_gets_what_it_asks_for() -> None:
    model = make_model("test_models:my_model", (1, 8, 8), 3, width=5)
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 3)
    assert model[0].out_channels == 5


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("small_cn", {}, "unknown model 'small_cn': did you mean 'small_cnn'?"),
        ("small_cnn", {"widht": 8}, "model 'small_cnn': unknown option 'widht': did you mean 'width'?"),
        ("nowhere.at:all", {}, "model 'nowhere.at:all' cannot be imported"),
        ("test_models:nothing", {}, "cannot be imported"),
        (":nothing", {}, "cannot be imported"),
        ("math:pi", {}, "model 'math:pi' is a float: name what builds a model"),
        ("small_cnn", {"width": -3}, "model 'small_cnn' cannot be built with width=-3"),
    ],
)
def test_mistakes_get_a_sentence(name: str, options: dict[str, int], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        make_model(name, (3, 16, 16), 10, **options)
    assert sentence in str(caught.value)
