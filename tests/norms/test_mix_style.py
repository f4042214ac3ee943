"""MixStyle against its formula in NumPy, and the batch norm that mixes styles against PyTorch's."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from syncnorm import convert, domain, keep_domain, make_norm, recalibrate, revert, stream
from syncnorm.errors import UserError
from syncnorm.norms import MixStyle

C = 3
CLOSE: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}
SHAPES = [(6, C, 40), (5, C, 3, 2), (4, C, 2, 3, 2)]


def sample(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def partners(x: Tensor, y: Tensor) -> list[list[int]]:
    """Return for each sample those whose style is, with its own, on one line through that of its output."""
    style, found = (np.concatenate([t.flatten(2).mean(2), t.flatten(2).std(2)], 1) for t in (x, y))
    fitting = []
    for i in range(len(x)):
        fits = []
        for j in range(len(x)):
            line = style[j] - style[i]
            share = 0.0 if i == j else (found[i] - style[i]) @ line / (line @ line)
            if -1e-9 <= share <= 1 + 1e-9 and np.allclose(found[i], style[i] + share * line, atol=1e-5):
                fits.append(j)
        fitting.append(fits)
    return fitting


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_style_lies_between_its_own_and_one_others(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = sample(*shape)
    y = MixStyle(C, p=1.0, alpha=1.0)(x)
    found = partners(x, y)
    assert all(found)
    assert any(i not in fits for i, fits in enumerate(found))
    content = [(t - t.flatten(2).mean(2).view(*shape[:2], *[1] * (len(shape) - 2))) for t in (x, y)]
    content = [t / t.flatten(2).std(2).view(*shape[:2], *[1] * (len(shape) - 2)) for t in content]
    torch.testing.assert_close(content[0], content[1], rtol=1e-4, atol=1e-4)
    assert torch.equal(MixStyle(C, p=1.0).eval()(x), x)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_formula_and_gradient(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    shares = torch.linspace(0.1, 0.9, shape[0], dtype=torch.float64)
    monkeypatch.setattr("syncnorm.norms.domains.mix_style.beta_samples", lambda alpha, *size: shares.view(size))
    monkeypatch.setattr(torch, "randperm", lambda n: torch.arange(n).flip(0))
    x = sample(*shape).requires_grad_()
    y = MixStyle(C, p=1.0)(x)
    values, positions = x.detach().numpy(), tuple(range(2, len(shape)))
    mean, var = values.mean(positions, keepdims=True), values.var(positions, ddof=1, keepdims=True)
    deviation, share = np.sqrt(var + 1e-6), shares.numpy().reshape(-1, *[1] * (len(shape) - 1))
    mixed = share * deviation + (1 - share) * deviation[::-1]
    expected = (values - mean) / deviation * mixed + share * mean + (1 - share) * mean[::-1]
    np.testing.assert_allclose(y.detach().numpy(), expected, **CLOSE)
    wanted = sample(*shape, seed=3)
    (slope,) = torch.autograd.grad(y, x, wanted)
    np.testing.assert_allclose(slope.numpy(), wanted.numpy() * mixed / deviation, **CLOSE)


def test_how_often_and_how_far() -> None:
    torch.manual_seed(0)
    layer, x = MixStyle(C, p=0.3), sample(6, C, 4)
    mixed = sum(not torch.equal(layer(x), x) for _ in range(400))
    assert 85 < mixed < 155
    assert layer.alpha == 0.1
    shares = torch.distributions.Beta(0.1, 0.1).sample((4000,))
    assert ((shares < 0.05) | (shares > 0.95)).float().mean() > 0.7


@pytest.mark.parametrize("ids", [[0, 0, 0, 1, 1, 1], [2, 0, 0, 0, 0, 1], [0, 1, 2, 3, 4, 5]], ids=str)
def test_partners_of_other_domains(ids: list[int]) -> None:
    """All of them and they alone, as often as each other."""
    torch.manual_seed(0)
    x, layer = sample(6, C, 40), MixStyle(C, p=1.0, alpha=5.0, mix="cross_domain")
    drawn = np.zeros((6, 6))
    with domain(torch.tensor(ids)):
        for _ in range(300):
            for i, fits in enumerate(partners(x, layer(x))):
                assert len(fits) == 1
                drawn[i, fits[0]] += 1
    apart = np.array(ids)[:, None] != np.array(ids)
    expected = 300 * apart / apart.sum(1, keepdims=True)
    assert (drawn[~apart] == 0).all()
    # Poisson-like counts: five standard deviations.
    np.testing.assert_array_less(np.abs(drawn - expected), 5 * np.sqrt(expected) + 1e-9 + (~apart))


def test_a_batch_of_one_domain_stays_and_one_of_none_is_refused() -> None:
    x, layer = sample(4, C, 5), MixStyle(C, p=1.0, mix="cross_domain")
    with domain(1):
        assert torch.equal(layer(x), x)
    with pytest.raises(ValueError, match=r"MixStyle\(3\) with mix='cross_domain' does not know the samples' domains"):
        layer(x)
    with pytest.raises(ValueError, match="ids of 3 samples"), domain(torch.tensor([0, 1, 0])):
        layer(x)
    assert torch.equal(layer.eval()(x), x)


def test_recomputed_under_checkpointing() -> None:
    block = nn.Sequential(make_norm("mixstyle", C, p=1.0, mix="cross_domain"), nn.Sigmoid()).double()
    twin, slopes = copy.deepcopy(block), []
    for model in (block, twin):
        torch.manual_seed(0)
        x = sample(6, C, 5).requires_grad_()
        with domain(torch.tensor([0, 1, 0, 1, 2, 2])):
            run = checkpoint(model, x, use_reentrant=False, context_fn=keep_domain) if model is block else model(x)
        run.square().sum().backward()
        slopes.append(x.grad)
    torch.testing.assert_close(slopes[0], slopes[1], **CLOSE)
    for key, value in twin.state_dict().items():
        assert torch.equal(block.state_dict()[key], value)


def test_the_norm_is_batch_norm_with_mixing_behind_it() -> None:
    layer, plain, x = make_norm("mixstyle", C, p=1.0).double(), nn.BatchNorm1d(C).double(), sample(6, C, 5)
    torch.manual_seed(0)
    y = layer(x)
    torch.manual_seed(0)
    torch.testing.assert_close(y, MixStyle(C, p=1.0)(plain(x)), **CLOSE)
    assert layer.state_dict().keys() == plain.state_dict().keys()
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[key], value, **CLOSE)
    assert torch.equal(layer.eval()(x), plain.eval()(x))
    assert torch.equal(make_norm("mixstyle", C, p=0.0).double()(x), nn.BatchNorm1d(C).double()(x))


def test_statistics_of_a_converted_model_are_there_for_others() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv1d(C, 4, 2), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 2, 2), nn.BatchNorm1d(2))
    model = convert(copy.deepcopy(plain.double()), "mixstyle", p=1.0)
    for seed in range(3):
        model(sample(6, C, 8, seed=seed))
    reference = copy.deepcopy(plain)
    for ours, theirs in ((model[1], reference[1]), (model[4], reference[4])):
        theirs.load_state_dict(ours.state_dict())
    assert not torch.equal(model[4].running_mean, plain[4].running_mean)
    x = sample(5, C, 8, seed=9)
    torch.testing.assert_close(model.eval()(x), reference.eval()(x), **CLOSE)
    for name, options in (("prediction_bn", {"prior_count": 4}), ("alpha_bn", {"alpha": 0.5}), ("online_bn", {})):
        ours, theirs = (convert(copy.deepcopy(m), name, **options).eval() for m in (model, reference))
        torch.testing.assert_close(ours(x), theirs(x), **CLOSE)
        if name == "online_bn":
            with stream(ours, keep=True), stream(theirs, keep=True):
                torch.testing.assert_close(ours(x), theirs(x), **CLOSE)
            torch.testing.assert_close(ours(x), theirs(x), **CLOSE)
    ours, theirs = (recalibrate(copy.deepcopy(m), [x]) for m in (model, reference))
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), **CLOSE)
    torch.testing.assert_close(revert(model).eval()(x), reference(x), **CLOSE)


def test_mistakes_get_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"MixStyleBatchNorm\(3\) got one value per channel and sample"):
        make_norm("mixstyle", C, 1)(torch.randn(4, C))
    with pytest.raises(ValueError, match=r"MixStyle\(3\) got one value per channel and sample"):
        MixStyle(C)(torch.randn(4, C))
    for options, sentence in [
        ({"p": 2}, "p is 2"),
        ({"alpha": 0}, "alpha is 0"),
        ({"mix": "both"}, "mix is 'both': write 'random' or 'cross_domain'"),
    ]:
        with pytest.raises(UserError, match=sentence):
            make_norm("mixstyle", C, **options)
