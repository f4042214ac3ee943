"""The two formulas that norms share, against NumPy in float64: the update of running statistics, and normalising."""

import numpy as np
import pytest
import torch

from syncnorm import SyncBatchNorm
from syncnorm.norms.core.affine import normalise
from syncnorm.norms.core.running import newest_weight, update_running

C = 3


@pytest.mark.parametrize("momentum", [0.3, None])
def test_running_statistics_are_an_exponential_average_or_the_mean_of_all(momentum: float | None) -> None:
    values = np.random.default_rng(0).normal(5, 2, (6, C))
    running, batches = torch.zeros(C, dtype=torch.float64), torch.zeros((), dtype=torch.long)
    expected = np.zeros(C)
    for number, value in enumerate(values, start=1):
        batches += 1
        update_running(running, torch.from_numpy(value), newest_weight(momentum, batches))
        share = 1 / number if momentum is None else momentum
        expected = (1 - share) * expected + share * value
    np.testing.assert_allclose(running.numpy(), expected, rtol=1e-14)
    if momentum is None:
        np.testing.assert_allclose(running.numpy(), values.mean(0), rtol=1e-14)


def test_what_is_not_counted_may_be_anything() -> None:
    running = torch.tensor([1.0, 2.0])
    update_running(running, torch.tensor([float("nan"), 4.0]), 0.5, where=torch.tensor([False, True]))
    assert running.tolist() == [1.0, 3.0]


def test_the_update_has_no_gradient_and_keeps_the_type() -> None:
    running, new = torch.zeros(2, dtype=torch.float16), torch.ones(2, requires_grad=True)
    update_running(running, new, 0.5)
    assert running.dtype == torch.float16
    assert not running.requires_grad


def test_a_synchronised_mean_of_all_batches_is_exact_in_float64() -> None:
    layer = SyncBatchNorm(C, momentum=None).double()
    batches = np.random.default_rng(1).normal(3, 2, (7, 10, C))
    for x in batches:
        layer(torch.from_numpy(x))
    np.testing.assert_allclose(layer.running_mean.numpy(), batches.mean((0, 1)), rtol=1e-14)
    np.testing.assert_allclose(layer.running_var.numpy(), batches.var(1, ddof=1).mean(0), rtol=1e-13)


@pytest.mark.parametrize("affine", ["(C,)", "(N, C)", "none"])
@pytest.mark.parametrize("rows", ["(C,)", "(1, C)", "(N, C)"])
def test_normalising_follows_the_formula(rows: str, affine: str) -> None:
    rng = np.random.default_rng(2)
    shapes = {"(C,)": (C,), "(1, C)": (1, C), "(N, C)": (4, C)}
    if rows == "(C,)" and affine == "(N, C)":
        pytest.skip("statistics (C,) take a weight (C,)")
    x = rng.normal(2, 3, (4, C, 5, 2))
    mean, var = rng.normal(size=shapes[rows]), rng.uniform(0.5, 2, shapes[rows])
    weight, bias = (None, None) if affine == "none" else (rng.normal(size=shapes[affine]) for _ in range(2))
    expected = (x - mean[..., None, None]) / np.sqrt(var[..., None, None] + 1e-3)
    if weight is not None and bias is not None:
        expected = expected * weight[..., None, None] + bias[..., None, None]
    tensors = [None if value is None else torch.from_numpy(value) for value in (weight, bias)]
    found = normalise(*map(torch.from_numpy, (x, mean, var)), 1e-3, *tensors)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-12)
    half = normalise(
        torch.from_numpy(x).half(), torch.from_numpy(mean).float(), torch.from_numpy(var).float(), 1e-3, *tensors
    )
    assert half.dtype == torch.float16
    np.testing.assert_allclose(half.float().numpy(), expected, rtol=5e-3, atol=5e-3)
