"""Signs and their straight-through gradient; the binary network around them."""

import pytest
import torch
from torch import Tensor, nn

from syncnorm.errors import UserError
from syncnorm.models import BinaryMLP, make_model
from syncnorm.models.binary_mlp import BinaryLinear, binary_sign


def test_signs_are_exact_and_zero_is_positive() -> None:
    x = torch.tensor([-3.0, -1.0, -1e-30, -0.0, 0.0, 1e-30, 0.3, 1.0, 7.0])
    assert binary_sign(x).tolist() == [-1, -1, -1, 1, 1, 1, 1, 1, 1]
    many = torch.randn(10_000)
    assert set(binary_sign(many).tolist()) == {-1.0, 1.0}
    assert binary_sign(torch.tensor(float("nan"))).isnan()


def test_the_gradient_goes_straight_through_from_minus_one_to_one() -> None:
    x = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 1.0001], dtype=torch.float64, requires_grad=True)
    weight = torch.arange(1, 8, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((binary_sign(x) * weight).sum(), x)
    assert gradient.tolist() == [0, 2, 3, 4, 5, 6, 0]


def test_a_layers_gradients_are_those_of_the_written_out_chain_rule() -> None:
    """y = sign(W) s with s = sign(a): dW = (g' s) where |W| <= 1, da = g sign(W) where |a| <= 1; float64."""
    torch.manual_seed(0)
    layer = BinaryLinear(6, 4).double()
    nn.init.uniform_(layer.weight, -1.5, 1.5)
    a = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    g = torch.randn(5, 4, dtype=torch.float64)
    y = layer(binary_sign(a))
    da, dw, db = torch.autograd.grad((y * g).sum(), [a, layer.weight, layer.bias])

    def sign(values: Tensor) -> Tensor:
        return torch.where(values >= 0, 1.0, -1.0).double()

    w = layer.weight.detach()
    torch.testing.assert_close(y, sign(a) @ sign(w).T + layer.bias, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dw, (g.T @ sign(a)) * (w.abs() <= 1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(da, (g @ sign(w)) * (a.abs() <= 1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(db, g.sum(0), rtol=1e-12, atol=1e-12)
    assert (dw == 0).any()
    assert (da == 0).any()


def test_a_scaled_layer_keeps_the_variance_of_what_comes_in() -> None:
    torch.manual_seed(0)
    x = binary_sign(torch.randn(2000, 64))
    assert BinaryLinear(64, 50, scaled=True)(x).var(0).mean().item() == pytest.approx(1.0, rel=0.05)
    assert BinaryLinear(64, 50)(x).var(0).mean().item() == pytest.approx(64.0, rel=0.05)


def test_the_first_and_the_last_layer_are_real() -> None:
    model = make_model("binary_mlp", (1, 8, 8), 10, depth=3)
    kinds = [type(layer) for layer in model.modules() if isinstance(layer, nn.Linear)]
    assert kinds == [nn.Linear, BinaryLinear, BinaryLinear, BinaryLinear, nn.Linear]
    real = make_model("binary_mlp", (1, 8, 8), 10, depth=3, binary=False)
    assert not any(isinstance(layer, BinaryLinear) for layer in real.modules())


def test_the_sign_of_a_binary_weight_is_all_that_the_forward_pass_sees() -> None:
    model, x = make_model("binary_mlp", (1, 8, 8), 10, depth=2), torch.randn(4, 1, 8, 8)
    before = model(x)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, BinaryLinear):
                layer.weight *= 0.01
    assert torch.equal(model(x), before)


@pytest.mark.parametrize(
    ("init", "std"), [("glorot", (2 / (100 + 50)) ** 0.5), ("he", (2 / 100) ** 0.5), ("uniform", 3**-0.5)]
)
def test_initialisations_have_their_standard_deviation(init: str, std: float) -> None:
    torch.manual_seed(0)
    first = BinaryMLP(100, 10, width=50, init=init).layers[1]
    assert first.weight.std().item() == pytest.approx(std, rel=0.05)
    assert not first.bias.any()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"init": "glorrot"}, "unknown init 'glorrot': did you mean 'glorot'"),
        ({"binary": False, "scaled": True}, "binary=False, scaled=True: scaled is for binary layers"),
    ],
)
def test_mistakes_get_a_sentence(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        make_model("binary_mlp", (1, 8, 8), 10, **options)
    assert sentence in str(caught.value)
