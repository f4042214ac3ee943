"""DomainBatchNorm against PyTorch's batch norm, one a domain, and the context that says which domain."""

import copy
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from syncnorm import DomainBatchNorm, convert, domain, keep_domain, revert
from syncnorm.errors import UserError

C, D = 3, 4
CLOSE: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}
SHAPES = [(9, C), (9, C, 5), (9, C, 3, 2), (9, C, 2, 1, 2)]
IDS = torch.tensor([2, 0, 2, 0, 0, 3, 2, 3, 0])  # domain 1 is absent


def sample(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def pair(own_affine: bool, **options: Any) -> tuple[DomainBatchNorm, list[nn.BatchNorm1d]]:
    """Return a layer and what it is to do: one of PyTorch's for each domain."""
    torch.manual_seed(0)
    layer = DomainBatchNorm(C, D, domain_affine=own_affine, **options).double()
    ours = [nn.BatchNorm1d(C, **options).double() for _ in range(D)]
    with torch.no_grad():
        for p in layer.parameters():
            p.uniform_(0.5, 2)
        for d, reference in enumerate(ours):
            if reference.affine:
                reference.weight.copy_(layer.domain_weight[d] if own_affine else layer.weight)
                reference.bias.copy_(layer.domain_bias[d] if own_affine else layer.bias)
    return layer, ours


def by_domain(layers: list[nn.BatchNorm1d], x: Tensor, ids: Tensor) -> Tensor:
    y = torch.empty_like(x)
    for d in ids.unique():
        part = x[ids == d]
        y[ids == d] = layers[d](part.flatten(2) if x.dim() > 2 else part).reshape(part.shape)
    return y


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("own_affine", [False, True])
@pytest.mark.parametrize("options", [{}, {"momentum": None, "eps": 1e-2}, {"affine": False}], ids=str)
def test_each_domain_has_a_batch_norm_of_its_own(
    shape: tuple[int, ...], own_affine: bool, options: dict[str, Any]
) -> None:
    layer, references = pair(own_affine, **options)
    for step, ids in enumerate((IDS, torch.full((9,), 1), IDS.flip(0), torch.tensor([0] * 9))):
        x, theirs = (sample(*shape, seed=step).requires_grad_() for _ in range(2))
        with domain(1 if step == 1 else ids):
            y = layer(x)
        expected = by_domain(references, theirs, ids)
        torch.testing.assert_close(y, expected, **CLOSE)
        slope = sample(*shape, seed=99)
        torch.testing.assert_close(
            torch.autograd.grad(y, x, slope, retain_graph=True)[0],
            torch.autograd.grad(expected, theirs, slope, retain_graph=True)[0],
            **CLOSE,
        )
        y.backward(slope)
        expected.backward(slope)
    for d, reference in enumerate(references):
        torch.testing.assert_close(layer.domain_mean[d], reference.running_mean, **CLOSE)
        torch.testing.assert_close(layer.domain_var[d], reference.running_var, **CLOSE)
        assert layer.domain_batches[d] == reference.num_batches_tracked
        if own_affine and reference.affine:
            torch.testing.assert_close(layer.domain_weight.grad[d], reference.weight.grad, **CLOSE)
            torch.testing.assert_close(layer.domain_bias.grad[d], reference.bias.grad, **CLOSE)
    if not own_affine and layer.affine:
        torch.testing.assert_close(layer.weight.grad, sum(r.weight.grad for r in references), **CLOSE)
        torch.testing.assert_close(layer.bias.grad, sum(r.bias.grad for r in references), **CLOSE)
    x = sample(*shape, seed=7)
    with domain(IDS):
        torch.testing.assert_close(layer.eval()(x), by_domain([r.eval() for r in references], x, IDS), **CLOSE)


def test_second_derivatives() -> None:
    layer = DomainBatchNorm(C, 2, domain_affine=True).double()

    def output(x: Tensor, weight: Tensor) -> Tensor:
        with domain(torch.tensor([0, 1, 0, 1, 1])):
            return torch.func.functional_call(copy.deepcopy(layer), {"domain_weight": weight}, (x,))

    inputs = (sample(5, C, 2).requires_grad_(), sample(2, C).requires_grad_())
    assert torch.autograd.gradcheck(output, inputs)
    assert torch.autograd.gradgradcheck(output, inputs)


def test_precision_where_the_mean_is_far_from_zero() -> None:
    x = sample(64, C, 8, 8).float() + 1e3
    layer = DomainBatchNorm(C, 2, momentum=1.0)
    with domain(torch.arange(64) % 2):
        layer(x)
    expected = x[1::2].double().numpy().var((0, 2, 3), ddof=1)
    np.testing.assert_allclose(layer.domain_var[1].numpy(), expected, rtol=1e-5)


def test_domains_pooled() -> None:
    """With all values in one batch a domain, pooled statistics are those of all values."""
    layer = DomainBatchNorm(C, 3, momentum=1.0, fallback="pooled").double()
    torch.testing.assert_close(layer.pooled().var(), torch.ones(C, dtype=torch.float64), **CLOSE)
    parts = [sample(n, C, 2, seed=n) * n + n for n in (3, 5)]
    for d, x in enumerate(parts):
        with domain(d):
            layer(x)
    n = torch.tensor([6.0, 10.0], dtype=torch.float64)
    every = torch.cat(parts).transpose(0, 1).flatten(1)
    # The running variances are unbiased by their own counts.
    inside = sum(n[d] * layer.domain_var[d] for d in (0, 1)) / 16
    means = torch.stack([x.mean((0, 2)) for x in parts])
    between = sum(n[d] * (means[d] - every.mean(1)).square() for d in (0, 1)) / 16
    torch.testing.assert_close(layer.pooled().mean, every.mean(1), **CLOSE)
    torch.testing.assert_close(layer.pooled().var(), inside + between, **CLOSE)
    x = sample(4, C, 2)
    expected = nn.functional.batch_norm(x, every.mean(1), inside + between, layer.weight, layer.bias)
    torch.testing.assert_close(layer.eval()(x), expected, **CLOSE)


@pytest.mark.parametrize("own_affine", [False, True])
def test_a_converted_model_reverts_to_a_domain_or_to_all(own_affine: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, C, 1), nn.BatchNorm2d(C, momentum=1.0)).double()
    model(sample(4, 2, 3, 3) * 3)
    x = sample(9, 2, 3, 3)
    before = copy.deepcopy(model).eval()
    convert(model, "domain_bn", domains=D, domain_affine=own_affine)
    assert model[1].momentum == 1.0
    with domain(IDS):
        torch.testing.assert_close(copy.deepcopy(model).eval()(x), before(x), **CLOSE)
        model(x).square().sum().backward()
        with torch.no_grad():
            for p in model[1].parameters():
                p -= 0.1 * p.grad
    with domain(3):
        expected = copy.deepcopy(model).eval()(x)
    one = revert(copy.deepcopy(model), domain=3).eval()
    assert type(one[1]) is nn.BatchNorm2d
    torch.testing.assert_close(one(x), expected, **CLOSE)
    pooled = model[1].pooled()
    everything = revert(model)[1]
    torch.testing.assert_close(everything.running_mean, pooled.mean, **CLOSE)
    torch.testing.assert_close(everything.running_var, pooled.var(), **CLOSE)


@pytest.mark.parametrize("inside", [True, False])
def test_checkpointed_activations_know_their_domain(inside: bool) -> None:
    torch.manual_seed(0)
    layer = DomainBatchNorm(C, D).double()
    block = nn.Sequential(layer, nn.Sigmoid())
    x, twin = sample(9, C, 2).requires_grad_(), copy.deepcopy(block)
    with domain(IDS):
        options = {} if inside else {"context_fn": keep_domain}
        y = checkpoint(block, x, use_reentrant=False, **options).square().sum()
        if inside:
            y.backward()
        expected = torch.autograd.grad(twin(x).square().sum(), x)[0]
    if not inside:
        with domain(0):  # of the next batch, say
            y.backward()
    torch.testing.assert_close(x.grad, expected, **CLOSE)
    assert layer.domain_batches.tolist() == [1, 0, 1, 1]


def test_a_recomputation_without_its_domain_says_what_to_do() -> None:
    block = nn.Sequential(DomainBatchNorm(C, D), nn.Sigmoid())
    with domain(0):
        y = checkpoint(block, torch.randn(4, C, requires_grad=True), use_reentrant=False)
    with pytest.raises(ValueError, match=r"checkpoint with context_fn=syncnorm\.keep_domain"):
        y.sum().backward()


def test_contexts_nest_and_belong_to_their_thread() -> None:
    layer, x, errors = DomainBatchNorm(C, 2).eval(), torch.randn(4, C), []
    layer.domain_mean[1] = 5.0

    def elsewhere() -> None:
        try:
            layer(x)
        except ValueError as error:
            errors.append(str(error))

    with domain(0):
        with domain(torch.ones(4, dtype=torch.int32)):
            ones = layer(x)
        zeros = layer(x)
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert (zeros - ones).min() > 4.9
    assert "does not know the samples' domains" in errors[0]


def test_an_empty_batch_counts_nothing() -> None:
    layer = DomainBatchNorm(C, 2)
    with domain(torch.zeros(0, dtype=torch.int64)):
        assert layer(torch.zeros(0, C, 4, requires_grad=True)).shape == (0, C, 4)
    assert layer.domain_batches.tolist() == [0, 0]


def test_mistakes_get_a_sentence() -> None:
    layer, x = DomainBatchNorm(C, 2), torch.randn(4, C)
    for ids, sentence in [
        (2, r"domain 2 is unknown: DomainBatchNorm\(3\) has 2 domains, and knows the ids 0, 1\."),
        (torch.tensor([0, 1, 7, 0]), "domain 7 is unknown"),
        (torch.tensor([0, 1]), "ids of 2 samples, and a layer an input of 4"),
        (torch.tensor([0, 1, 1, 1]), "one value per channel of domain 0"),
    ]:
        with domain(ids), pytest.raises(ValueError, match=sentence):
            layer(x)
    assert layer.domain_count.tolist() == [0, 0]
    with pytest.raises(
        ValueError, match=r"`with syncnorm\.domain\(ids\):` tells them, so call the model inside of it\."
    ):
        layer(x)
    with pytest.raises(ValueError, match="or build the layer with fallback='pooled'"):
        layer.eval()(x)
    with domain(0), pytest.raises(ValueError, match=r"got an input of shape \(4, 2\)"):
        layer(torch.randn(4, 2))
    for ids in (-1, torch.tensor([0, -3]), 0.5, torch.tensor([0.5]), torch.zeros(2, 2).long(), True, "art"):
        with pytest.raises(UserError, match=r"syncnorm\.domain got"), domain(ids):
            pass
    with pytest.raises(UserError, match="fallback is 'mean': write 'error' or 'pooled'"):
        convert(nn.Sequential(nn.BatchNorm1d(C)), "domain_bn", domains=2, fallback="mean")
    with pytest.raises(UserError, match="domains is 0"):
        convert(nn.Sequential(nn.BatchNorm1d(C)), "domain_bn", domains=0)
    model = convert(nn.Sequential(nn.BatchNorm1d(C)), "domain_bn", domains=2)
    with pytest.raises(UserError, match="cannot be reverted to domain 2: its layers know the ids 0 to 1"):
        revert(model, domain=2)
    with pytest.raises(UserError, match="none of its layers tells domains apart"):
        revert(revert(model), domain=0)
