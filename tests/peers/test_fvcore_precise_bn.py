"""The contract of fvcore's tests of PreciseBN (test_precise_bn.py), as `recalibrate` keeps it.

Weights are fixed; statistics are those of so many batches of any sizes, wherever in the model a layer is. The
formulas are held by tests/surgery/test_recalibrate.py; fvcore itself is tried in test_finding.py.
"""

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from syncnorm import batch_norms, convert, recalibrate

SIZES = (3, 5, 1, 8)


class Nested(nn.Module):
    """Batch norms at two depths, one of them not used by the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Sequential(nn.BatchNorm2d(4, momentum=0.3)))
        self.head = nn.ModuleDict({"norm": nn.BatchNorm2d(4), "unused": nn.BatchNorm2d(4)})

    def forward(self, x: Tensor) -> Tensor:
        return self.head["norm"](self.stem(x).relu())


def network(name: str) -> Nested:
    torch.manual_seed(0)
    model = Nested().double()
    return model if name == "bn" else convert(model, name)


def endless() -> Iterator[Tensor]:
    """Yield batches of 3, 5, 1, 8, 3, ... images, each batch around another mean."""
    generator = torch.Generator().manual_seed(1)
    for turn, size in enumerate(itertools.cycle(SIZES)):
        yield torch.randn(size, 2, 6, 6, dtype=torch.float64, generator=generator) + turn % 3


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", ["bn", "sync_bn", "frozen_bn", "hybrid_bn"])
def test_so_many_batches_give_the_statistics_of_all_their_values(name: str, training: bool) -> None:
    """Exactly so many are taken; modes, momentum, weights and layers out of reach stay as they are."""
    model, loader = network(name).train(training), endless()
    parameters = [parameter.detach().clone() for parameter in model.parameters()]
    recalibrate(model, itertools.islice(loader, 4))
    following = next(loader)
    assert len(following) == SIZES[0]
    assert torch.equal(following, next(itertools.islice(endless(), 4, None)))
    entered = [model.stem[0](batch) for batch in itertools.islice(endless(), 4)]
    normalised = [nn.functional.batch_norm(x, None, None, training=True).relu() for x in entered]
    first, second = torch.cat(entered), torch.cat(normalised)
    for layer, values in ((model.stem[1][0], first), (model.head["norm"], second)):
        torch.testing.assert_close(layer.running_mean, values.mean((0, 2, 3)), rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(layer.running_var, values.var((0, 2, 3)), rtol=1e-11, atol=1e-12)
    assert torch.equal(model.head["unused"].running_mean, torch.zeros(4).double())
    assert [layer.momentum for layer in batch_norms(model).values()] == [0.3, 0.1, 0.1]
    assert model.stem[1][0].training is model.training is training
    assert all(torch.equal(a, b) for a, b in zip(parameters, model.parameters(), strict=True))


def test_fewer_batches_than_asked_for_are_those_that_there_are() -> None:
    """fvcore refuses them; here the limit is the iterator's, and what was measured is exact."""
    some, all_of_them = network("bn"), network("bn")
    batches = list(itertools.islice(endless(), 2))
    recalibrate(some, itertools.islice(iter(batches), 200))
    recalibrate(all_of_them, batches)
    assert all(torch.equal(a, b) for a, b in zip(some.buffers(), all_of_them.buffers(), strict=True))
