import copy

import numpy as np
import pytest
import torch
from torch import nn

from syncnorm import domain, make_norm, norm_names
from syncnorm.errors import UserError
from syncnorm.norms import sees_batch

OPTIONS = {"ghost_bn": {"virtual_ranks": 2}, "domain_bn": {"domains": 2}, "eval_norm": {"batch": 2}}


@pytest.mark.parametrize("name", norm_names())
def test_whether_a_norm_sees_the_batch_is_as_told(name: str) -> None:
    """Of two batches that share their first sample, in training; several times, for norms that draw numbers."""
    differ = False
    for seed in range(5):
        torch.manual_seed(seed)
        batches = [torch.randn(4, 8, 3, 3) for _ in range(2)]
        batches[1][0] = batches[0][0]
        layer = make_norm(name, 8, **OPTIONS.get(name, {})).train()
        first = []
        for x in batches:
            torch.manual_seed(seed)
            with domain(1):
                first.append(copy.deepcopy(layer)(x)[0])
        differ |= not torch.allclose(*first, rtol=1e-4, atol=1e-5)
    assert sees_batch(name) == differ


@pytest.mark.parametrize(("name", "groups"), [("gn", 4), ("ln", 1), ("in", 8)])
def test_per_sample_norms_follow_their_formula(name: str, groups: int) -> None:
    x = torch.randn(3, 8, 5, 2, dtype=torch.float64)
    layer = make_norm(name, 8, **({"groups": 4} if name == "gn" else {})).double()
    with torch.no_grad():
        layer.weight.uniform_(0.5, 2)
        layer.bias.uniform_(-1, 1)
    grouped = x.numpy().reshape(3, groups, -1)
    mean, var = grouped.mean(-1, keepdims=True), grouped.var(-1, keepdims=True)
    expected = ((grouped - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
    expected = expected * layer.weight.detach().numpy()[:, None, None] + layer.bias.detach().numpy()[:, None, None]
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (128, 32), (16, 8), (48, 24), (7, 1), (1, 1)])
def test_default_groups(channels: int, groups: int) -> None:
    assert make_norm("gn", channels).num_groups == groups


def test_mistakes_get_a_sentence() -> None:
    for name, channels, options, sentence in [
        ("sync_nb", 8, {}, "unknown norm 'sync_nb': did you mean 'sync_bn'?"),
        ("gn", 8, {"group": 2}, "norm 'gn': unknown option 'group': did you mean 'groups'?"),
        ("gn", 6, {"groups": 4}, "6 channels do not divide into 4 groups"),
        ("ghost_bn", 8, {}, "virtual_ranks"),
        ("sync_bn", -1, {}, "norm 'sync_bn' for -1 channels: it needs at least 1."),
        ("in", 0, {}, "norm 'in' for 0 channels: it needs at least 1."),
    ]:
        with pytest.raises(UserError) as caught:
            make_norm(name, channels, **options)
        assert sentence in str(caught.value)
    with pytest.raises(UserError, match="ndim is 4"):
        make_norm("bn", 8, ndim=4)
    with pytest.raises(ValueError, match="one value per channel and sample"):
        make_norm("in", 8, ndim=1)(torch.randn(4, 8))


def test_bn_is_pytorchs_own() -> None:
    assert type(make_norm("bn", 3, 1)) is nn.BatchNorm1d
    assert type(make_norm("bn", 3, 3)) is nn.BatchNorm3d
