"""Recalibration of norms that correct their statistics in evaluation, EvalNorm's own statistics among them."""

import copy
from typing import Any

import pytest
import torch
from ranks import ok, run_ranks
from torch import Tensor, nn

from syncnorm import convert, recalibrate
from syncnorm.errors import UserError
from syncnorm.norms import EvalNorm

CLOSE: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}
OWN = ("running_within", "running_between", "spreads_seen")


def network(name: str = "eval_norm", **options: Any) -> nn.Sequential:
    """Return two norms in a row with something between them that a different first output changes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 2), nn.Sigmoid(), nn.BatchNorm2d(3)).double()
    return convert(model, name, **({"batch": 2} if name == "eval_norm" else {}), **options)


def batches(sizes: tuple[int, ...] = (5, 1, 3, 8)) -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 3, 4, 3, generator=g) + 2 * torch.randn(n, 3, 1, 1, generator=g)).double() * (1 + i)
        for i, n in enumerate(sizes)
    ]


def inputs_of_the_second(model: nn.Sequential, xs: list[Tensor]) -> list[Tensor]:
    """Return what enters the second norm if the first normalises by the batch."""
    plain = nn.BatchNorm2d(3).double()
    plain.weight, plain.bias = model[0].weight, model[0].bias
    return [model[2](model[1](plain(x))).detach() for x in xs]


@pytest.mark.parametrize("name", ["eval_norm", "example_bn", "prediction_bn", "alpha_bn", "online_bn"])
def test_they_normalise_by_the_batch_while_they_are_measured(name: str) -> None:
    model = network(name)
    modes = [(module.training, getattr(module, "track_running_stats", None)) for module in model.modules()]
    recalibrate(model, batches())
    for layer, xs in ((model[0], batches()), (model[3], inputs_of_the_second(model, batches()))):
        values = torch.cat([x.movedim(1, -1).reshape(-1, 3) for x in xs])
        torch.testing.assert_close(layer.running_mean, values.mean(0), **CLOSE)
        torch.testing.assert_close(layer.running_var, values.var(0), **CLOSE)
        assert layer.num_batches_tracked == 0
    assert modes == [(module.training, getattr(module, "track_running_stats", None)) for module in model.modules()]


@pytest.mark.parametrize("estimator", ["population", "mean_of_batches"])
def test_eval_norms_own_statistics(estimator: Any) -> None:
    model = network()
    buffers = {key: id(value) for key, value in model.named_buffers()}
    recalibrate(model, batches(), estimator=estimator)
    assert buffers == {key: id(value) for key, value in model.named_buffers()}
    for layer, xs in ((model[0], batches()), (model[3], inputs_of_the_second(model, batches()))):
        flat = [x.flatten(2) for x in xs]
        parts = [torch.cat(flat)] if estimator == "population" else [part for part in flat if len(part) > 1]
        within = torch.stack([part.var(2, correction=0).mean(0) for part in parts]).mean(0)
        between = torch.stack([part.mean(2).var(0) for part in parts]).mean(0)
        torch.testing.assert_close(layer.running_within, within, **CLOSE)
        torch.testing.assert_close(layer.running_between, between, **CLOSE)
        assert layer.spreads_seen == 1


def test_mean_of_batches_is_what_training_takes() -> None:
    trained = EvalNorm(3, batch=2, momentum=None).double()
    for x in batches((5, 4, 8)):
        trained(x)
    found = nn.Sequential(EvalNorm(3, batch=2).double())
    recalibrate(found, batches((5, 4, 8)), estimator="mean_of_batches")
    for name in ("running_mean", "running_var", "running_within", "running_between"):
        torch.testing.assert_close(getattr(found[0], name), getattr(trained, name), **CLOSE)


@pytest.mark.parametrize("estimator", ["population", "mean_of_batches"])
def test_over_ranks_the_samples_of_all_count(estimator: Any) -> None:
    right = recalibrate(network(), batches(), estimator=estimator).state_dict()
    shares = [batches()[:1], [], batches()[1:]]
    models = [network() for _ in shares]
    states = ok(run_ranks(3, lambda rank: recalibrate(models[rank], shares[rank], estimator=estimator).state_dict()))
    for state in states:
        for key, value in state.items():
            torch.testing.assert_close(value, right[key], **CLOSE)
            assert torch.equal(value, states[0][key])


def test_one_sample_says_nothing_of_others() -> None:
    model, (x, one) = network(), batches((4, 1))
    model(x)
    assert model[0].spreads_seen == 1
    recalibrate(model, [one])
    assert [getattr(model[0], name).abs().sum() for name in OWN] == [0, 0, 0]
    torch.testing.assert_close(model[0].running_var, one.movedim(1, -1).reshape(-1, 3).var(0), **CLOSE)


def test_if_something_is_not_finite_nothing_changes() -> None:
    model = network()
    model(batches()[0])
    before = copy.deepcopy(model.state_dict())
    model[1].weight.data.fill_(torch.nan)
    with pytest.raises(UserError, match="layer '3'"):
        recalibrate(model, batches())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items() if key != "1.weight")
