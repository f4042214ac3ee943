"""Prediction-balanced reservoir sampling, by what it holds in the end and by how often."""

import numpy as np
import pytest
import torch
from torch import Tensor

from syncnorm import convert
from syncnorm.errors import UserError
from syncnorm.surgery import BalancedMemory


def numbered(start: int, count: int) -> Tensor:
    return torch.arange(start, start + count, dtype=torch.float64).view(-1, 1)


def of_class(label: int, count: int) -> Tensor:
    return torch.full((count,), label)


def test_of_one_class_it_is_a_uniform_sample() -> None:
    """Reservoir sampling: each of 20 samples is held as often as any other."""
    torch.manual_seed(0)
    held, rounds = np.zeros(20), 3000
    for _ in range(rounds):
        memory = BalancedMemory(5)
        for i in range(4):
            memory.add(numbered(5 * i, 5), of_class(0, 5))
        found = memory.samples().view(-1).long().numpy()
        assert len(set(found)) == 5
        held[found] += 1
    deviation = np.sqrt(rounds * 0.25 * 0.75)
    np.testing.assert_allclose(held, rounds * 0.25, atol=5 * deviation)


def test_a_sorted_stream_is_held_in_equal_parts() -> None:
    torch.manual_seed(0)
    memory = BalancedMemory(9)
    memory.add(numbered(0, 40), of_class(0, 40))
    assert memory.classes() == {0: 9}
    memory.add(numbered(100, 3), of_class(1, 3))
    assert memory.classes() == {0: 6, 1: 3}
    assert {100.0, 101.0, 102.0} <= set(memory.samples().view(-1).tolist())  # all that came of the smaller class
    memory.add(numbered(200, 40), of_class(2, 40))
    memory.add(numbered(300, 40), of_class(1, 40))
    assert memory.classes() == {0: 3, 1: 3, 2: 3}
    assert memory.samples().shape == (9, 1)


def test_what_gives_way_and_how_often() -> None:
    """Two classes as large: each gives way for a third as often, and any of its samples."""
    torch.manual_seed(0)
    gone, rounds = np.zeros(4), 4000
    for _ in range(rounds):
        memory = BalancedMemory(4)
        memory.add(numbered(0, 4), torch.tensor([0, 1, 0, 1]))
        memory.add(numbered(9, 1), of_class(5, 1))
        (missing,) = set(range(5)) - {4} - set(memory.samples().view(-1).long().tolist())
        gone[missing] += 1
    np.testing.assert_allclose(gone, rounds / 4, atol=5 * np.sqrt(rounds * 3 / 16))


def test_statistics_follow_the_memory() -> None:
    layer = convert(torch.nn.BatchNorm1d(1, momentum=1.0).double(), "iabn").train()
    memory = BalancedMemory(6)
    torch.manual_seed(0)
    memory.add(torch.zeros(50, 1, 8, dtype=torch.float64), of_class(0, 50))
    memory.add(torch.full((6, 1, 8), 4.0, dtype=torch.float64), of_class(1, 6))
    layer(memory.samples())
    assert layer.running_mean.item() == pytest.approx(2.0)


def test_mistakes_get_a_sentence() -> None:
    with pytest.raises(UserError, match="capacity is 0: a memory holds at least 1"):
        BalancedMemory(0)
    memory = BalancedMemory(2)
    with pytest.raises(UserError, match="BalancedMemory is empty"):
        memory.samples()
    for predicted in (torch.zeros(2, 3), torch.tensor([1, 2, 3]), torch.tensor([0.0, 1.0])):
        with pytest.raises(UserError, match=r"got 2 samples and predictions of shape .*one integer a sample"):
            memory.add(numbered(0, 2), predicted)
    memory.add(numbered(0, 2), of_class(0, 2))
    with pytest.raises(UserError, match=r"holds samples of shape \(1,\) and got some of shape \(3,\)"):
        memory.add(torch.zeros(2, 3), of_class(0, 2))
