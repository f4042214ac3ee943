"""Tests of the grid draw from the global generators, and leave them as they were."""

import random
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def same_generators_after() -> Iterator[None]:
    state = random.getstate()
    with torch.random.fork_rng():
        yield
    random.setstate(state)
