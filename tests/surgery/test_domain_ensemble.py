"""The ensemble of domains against models reverted to one domain each, with distances worked out in NumPy."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from syncnorm import convert, domain, domain_embeddings, domain_ensemble, revert
from syncnorm.errors import UserError

D = 3
CLOSE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}


def of_domain(d: int, n: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(10 * seed + d)
    return torch.randn(n, 2, 5, 5, dtype=torch.float64, generator=g) * (1 + d) + 2 * d


def trained() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 2), nn.BatchNorm2d(3), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(27, 4), nn.BatchNorm1d(4)).double()
    convert(model, "domain_bn", domains=D, domain_affine=True, momentum=None)
    with torch.no_grad():
        for p in (p for p in model.parameters() if p.shape[0] == D and p.dim() == 2):
            p.uniform_(0.5, 1.5)
    for seed in range(4):
        ids = torch.arange(24) % D
        x = torch.stack([of_domain(int(d), 1, seed=100 * seed + i)[0] for i, d in enumerate(ids)])
        with domain(ids):
            model(x)
    return model


def test_outputs_and_weights() -> None:
    model, x = trained().eval(), torch.cat([of_domain(0, 2, seed=7), of_domain(2, 2, seed=8), of_domain(1, 1) * 0.3])
    model[0].train()
    modes = [module.training for module in model.modules()]
    found, weights = domain_ensemble(model, x)
    outputs, distances = [], np.zeros((5, D))
    for d in range(D):
        plain = revert(copy.deepcopy(model), domain=d).eval()
        outputs.append(plain(x).detach().numpy())
        for index in (1, 4):
            entering = plain[:index](x).detach().numpy().reshape(5, plain[index].num_features, -1)
            mean, deviation = entering.mean(2), entering.std(2, ddof=1)
            layer = plain[index]
            distances[:, d] += ((mean - layer.running_mean.numpy()) ** 2).sum(1)
            distances[:, d] += ((deviation - np.sqrt(layer.running_var.numpy())) ** 2).sum(1)
    expected = (1 / distances) / (1 / distances).sum(1, keepdims=True)
    np.testing.assert_allclose(weights.numpy(), expected, **CLOSE)
    mixed = sum(expected[:, d, None] * outputs[d] for d in range(D))
    np.testing.assert_allclose(found.detach().numpy(), mixed, **CLOSE)
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_sample_resembles_its_own_domain() -> None:
    model = trained()
    for d in range(D):
        _, weights = domain_ensemble(model, of_domain(d, 20, seed=9))
        assert weights.mean(0).argmax() == d
        torch.testing.assert_close(weights.sum(1), torch.ones(20, dtype=torch.float64), **CLOSE)


def test_a_domain_hit_exactly_has_all_the_weight() -> None:
    model = convert(nn.Sequential(nn.BatchNorm1d(1)).double(), "domain_bn", domains=2)
    model[0].domain_mean.copy_(torch.tensor([[0.0], [1.0]]))
    model[0].domain_var.copy_(torch.tensor([[2.0], [1.0]]))
    output, weights = domain_ensemble(model, torch.tensor([[[-1.0, 1.0]]], dtype=torch.float64))
    torch.testing.assert_close(weights, torch.tensor([[1.0, 0.0]], dtype=torch.float64), **CLOSE)
    torch.testing.assert_close(output[0, 0], torch.tensor([-1.0, 1.0], dtype=torch.float64) / 2.00001**0.5, **CLOSE)


def test_embeddings() -> None:
    model = trained()
    found = domain_embeddings(model)
    parts = [p for i in (1, 4, 7) for p in (model[i].domain_mean, model[i].domain_var.sqrt())]
    assert torch.equal(found, torch.cat(parts, 1))
    assert found.shape == (D, 2 * (4 + 3 + 4))


def test_the_output_has_a_gradient_and_the_weights_have_none() -> None:
    model = trained()
    output, weights = domain_ensemble(model, of_domain(1, 3))
    assert not weights.requires_grad
    output.sum().backward()
    assert model[0].weight.grad.abs().sum() > 0
    assert (model[1].domain_weight.grad.abs().sum(1) > 0).all()


def test_mistakes_get_a_sentence() -> None:
    x = of_domain(0, 2)
    two = nn.Sequential(convert(nn.BatchNorm2d(2), "domain_bn", domains=2))
    two.append(convert(nn.BatchNorm2d(2), "domain_bn", domains=3))
    flat = nn.Sequential(nn.Flatten(), convert(nn.BatchNorm1d(50), "domain_bn", domains=2)).double()
    for model, sentence in [
        (nn.BatchNorm2d(2), "the model has no layer that tells domains apart: convert it to 'domain_bn'"),
        (two.double(), "the model has layers of 2 and 3 domains"),
        (flat, "no sample has two positions at a 'domain_bn' layer"),
    ]:
        with pytest.raises(UserError) as caught:
            domain_ensemble(model, x)
        assert sentence in str(caught.value)
    assert not flat[1]._forward_pre_hooks
    model = trained()
    for part, batch, sentence in [
        (nn.Identity(), x[:0], "the batch has no sample"),
        (nn.Flatten(0), x, "the ensemble mixes outputs (N, ...), and the model returns"),
        (nn.Identity(), x[:, :1], "the model fails on the batch (torch.float64, "),
    ]:
        with pytest.raises(UserError) as caught:
            domain_ensemble(nn.Sequential(model, part), batch)
        assert sentence in str(caught.value)
    assert not any(layer._forward_pre_hooks for layer in model)
