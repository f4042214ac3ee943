"""TENT against entropy minimisation written out with PyTorch's batch norm in training mode."""

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical

from syncnorm import revert, tent
from syncnorm.errors import UserError
from syncnorm.surgery.adaptation.tent import entropy


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 2), nn.BatchNorm2d(4, affine=False)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 5)).double()
    model(torch.randn(8, 3, 4, 4, dtype=torch.float64) * 2)
    return model.eval()


def stream(batches: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    return [torch.randn(6, 3, 4, 4, dtype=torch.float64, generator=g) * 3 + 1 for _ in range(batches)]


@pytest.mark.parametrize("steps", [1, 2])
def test_each_step_lowers_the_entropy_by_weights_and_biases_alone(steps: int) -> None:
    model, reference = network(), network().train()
    start = copy.deepcopy(model.state_dict())
    adapt = tent(model, optimizer=torch.optim.SGD, lr=0.5, steps=steps)
    names = ["1.weight", "1.bias", "6.weight", "6.bias"]
    affine = [dict(reference.named_parameters())[name] for name in names]
    for x in stream(3):
        with torch.no_grad():
            found = adapt(x)
        for _ in range(steps):
            logits = reference(x)
            grads = torch.autograd.grad(Categorical(logits=logits).entropy().mean(), affine)
            with torch.no_grad():
                for p, grad in zip(affine, grads, strict=True):
                    p -= 0.5 * grad
        torch.testing.assert_close(found, logits, rtol=1e-10, atol=1e-10)
    assert not found.requires_grad
    after, right = model.state_dict(), reference.state_dict()
    for key, value in start.items():
        if key in names:
            torch.testing.assert_close(after[key], right[key], rtol=1e-10, atol=1e-10)
            assert not torch.equal(after[key], value)
        else:
            assert torch.equal(after[key], value)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.Adagrad])
def test_reset_and_revert(optimizer: Any) -> None:
    model = network()
    before, random = model(stream(1)[0]), torch.get_rng_state()
    adapt = tent(model, optimizer=optimizer, lr=0.1, eps=1e-3)
    first = [adapt(x) for x in stream(3)]
    adapt.reset()
    for _ in range(2):
        again = [adapt(x) for x in stream(3)]
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        adapt.reset()
    assert torch.equal(revert(adapt.model)(stream(1)[0]), before)
    assert type(model[1]) is nn.BatchNorm2d
    assert torch.equal(torch.get_rng_state(), random)


def test_entropy_falls_on_the_batch_at_hand() -> None:
    adapt = tent(network(), optimizer=torch.optim.SGD, lr=0.05)
    (x,) = stream(1)
    entropies = [entropy(adapt(x)).mean().item() for _ in range(8)]
    assert all(later < earlier for earlier, later in pairwise(entropies))


def test_frozen_weights_are_adapted_too() -> None:
    model = network().requires_grad_(False)
    adapt = tent(model)
    adapt(stream(1)[0])
    assert model[1].weight.requires_grad
    assert not model[0].weight.requires_grad


class Wrapped(nn.Module):
    """A model whose outputs are no logits, and which has a batch norm that its forward does not reach."""

    def __init__(self, outputs: Any) -> None:
        super().__init__()
        self.inner, self.unreached, self.outputs = network(), nn.BatchNorm2d(3).double(), outputs

    def forward(self, x: Tensor) -> Any:
        return self.outputs(self.inner(x))


@pytest.mark.parametrize(
    ("outputs", "x", "sentence"),
    [
        (lambda y: (y, y), stream(1)[0], "needs logits (N, K), and the model returns a tuple"),
        (lambda y: y.sum(), stream(1)[0], "needs logits (N, K), and the model returns ()"),
        (lambda y: y * 0 + y.detach(), stream(1)[0] * float("nan"), "the entropy's gradient is not finite"),
        (lambda y: y.detach(), stream(1)[0], "the predictions depend on no batch norm"),
        (lambda y: torch.zeros(6, 5).requires_grad_(), stream(1)[0], "the predictions depend on no batch norm"),
        (lambda y: y, stream(1)[0][:0], "the model fails on the batch to adapt to (torch.float64, (0, 3, 4, 4))"),
        (lambda y: y, "x", "the model fails on the batch to adapt to (str)"),
    ],
)
def test_a_batch_that_cannot_be_adapted_to_changes_nothing(outputs: Any, x: Any, sentence: str) -> None:
    adapt = tent(Wrapped(outputs))
    before = copy.deepcopy(adapt.model.state_dict())
    with pytest.raises(UserError) as caught:
        adapt(x)
    assert sentence in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in adapt.model.state_dict().items())


def test_in_inference_mode_with_layers_that_share_weights_or_are_not_reached() -> None:
    twins = [Wrapped(lambda y: y), Wrapped(lambda y: y)]
    for model in twins:
        model.inner.insert(2, nn.BatchNorm2d(4).double())
        model.inner[2].weight, model.inner[2].bias = model.inner[1].weight, model.inner[1].bias
    (x,) = stream(1)
    plainly = [tent(twins[0])(x) for _ in range(2)]
    with torch.inference_mode():
        found = [tent(twins[1])(x.clone()) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(plainly, found, strict=True))
    assert torch.equal(twins[0].inner[1].weight, twins[1].inner[1].weight)
    assert not torch.equal(twins[0].inner[1].weight, network()[1].weight)


def test_mistakes_leave_the_model_untouched() -> None:
    model = network()
    for call, sentence in [
        (lambda: tent(nn.Sequential(nn.Linear(3, 3))), "adapts the weights and biases of batch norms, and the model"),
        (lambda: tent(nn.Sequential(nn.BatchNorm1d(3, affine=False))), "has none that has any"),
        (lambda: tent(model, steps=0), "steps is 0"),
        (lambda: tent(model, steps=1.5), "steps is 1.5: TENT takes a whole number"),
        (lambda: tent(model, optimizer=torch.optim.LBFGS), "LBFGS, whose step needs a closure"),
        (lambda: tent("model"), "the model is a str: give a torch.nn.Module"),
        (lambda: tent(model, momentum=0.9), "optimiser cannot be made with lr=0.001 and {'momentum': 0.9}"),
        (lambda: tent(model, lr=-1), "optimiser cannot be made with lr=-1"),
    ]:
        with pytest.raises(UserError) as caught:
            call()
        assert sentence in str(caught.value)
    assert type(model[1]) is nn.BatchNorm2d
