"""The MLP of independent-component layers: where norm and dropout stand."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syncnorm.errors import UserError
from syncnorm.models import IndependentComponentMLP, make_model


def linears(model: nn.Module) -> list[nn.Linear]:
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear)]


def by_hand(model: IndependentComponentMLP, x: Tensor, order: str, skip: bool) -> Tensor:
    """The formulas of the docstring for one block, batch norm by the batch and without weights, no dropout."""
    w, w1, w2, last = linears(model)

    def norm(h: Tensor) -> Tensor:
        return (h - h.mean(0)) / (h.var(0, correction=0) + 1e-5).sqrt()

    if order == "ic":
        h = F.relu(w(x.flatten(1)))
        y = w2(norm(F.relu(w1(norm(h)))))
        return last(norm(F.relu(y + h if skip else y)))
    h = F.relu(norm(w(x.flatten(1))))
    y = norm(w2(F.relu(norm(w1(h)))))
    return last(F.relu(y + h if skip else y))


@pytest.mark.parametrize("order", ["ic", "after"])
@pytest.mark.parametrize("skip", [True, False])
def test_the_formulas(order: str, skip: bool) -> None:
    torch.manual_seed(0)
    model = IndependentComponentMLP(12, 3, width=5, depth=1, dropout=0.0, skip=skip, order=order).double()
    x = torch.randn(7, 3, 2, 2, dtype=torch.float64)
    torch.testing.assert_close(model(x), by_hand(model, x, order, skip), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", ["ic", "after"])
def test_a_norm_and_a_dropout_between_any_two_linear_layers(order: str) -> None:
    model = make_model("ic_mlp", (1, 8, 8), 10, depth=3, dropout=0.3, order=order)
    kinds = [type(layer) for layer in model.modules() if not list(layer.children())]
    shape = "".join(
        {nn.Linear: "L", nn.BatchNorm1d: "N", nn.ReLU: "R", nn.Dropout: "D"}.get(kind, "") for kind in kinds
    )
    assert shape == ("LR" + 3 * "NDLRNDLR" + "NDL" if order == "ic" else "LNRD" + 3 * "LNRDLNRD" + "L")
    assert {layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)} == {0.3}


def test_both_orders_start_from_the_same_weights_and_without_norm_and_dropout_are_the_same() -> None:
    x, logits = torch.randn(4, 1, 8, 8), []
    for order in ("ic", "after"):
        torch.manual_seed(1)
        model = make_model("ic_mlp", (1, 8, 8), 10, "none", order=order, dropout=0.0)
        logits.append(model(x))
    assert torch.equal(*logits)


def test_dropout_acts_in_training_alone_and_not_on_what_skips_an_ic_block() -> None:
    x = torch.randn(4, 1, 8, 8)
    model = make_model("ic_mlp", (1, 8, 8), 10, "none", dropout=1.0)
    block = model.blocks[0]
    h = model.first(x)
    bias = linears(block)[1].bias
    torch.testing.assert_close(block(h), F.relu(h + bias))
    assert not torch.equal(model.eval()(x), model.train()(x))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"order": "befor"}, "unknown order 'befor'"),
        ({"dropout": 1.5}, "model 'ic_mlp' cannot be built with dropout=1.5"),
    ],
)
def test_mistakes_get_a_sentence(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        make_model("ic_mlp", (1, 8, 8), 10, **options)
    assert sentence in str(caught.value)
