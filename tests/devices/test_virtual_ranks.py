"""Virtual ranks of any norm, in one process, are R devices that average their gradients."""

import copy
import sys
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from syncnorm import convert
from syncnorm.config import Data, Devices, Norm, Optim, Run
from syncnorm.devices.prepare import norm_layer
from syncnorm.errors import UserError
from syncnorm.norms import NORMS as ROWS
from syncnorm.surgery import batch_norms
from syncnorm.training import fit
from syncnorm.training.lightning.classifier import make_optimizer
from syncnorm.training.ranks.virtual_ranks import ModelCopies, RanksAsChannels, on_virtual_ranks, rank_0
from syncnorm.worlds import check

RANKS, STEPS = 3, 4
OPTIM = Optim(lr=0.1, momentum=0.9, weight_decay=1e-2)

NORMS: dict[str, dict[str, Any]] = {
    "brn": {"warmup": 1, "r_end": 3, "d_end": 3},
    "mabn": {"buffer": 2, "warmup": 2, "renorm_after": 2},
    "cbn": {"window": 3, "through_weight": True},
    "evonorm_b0": {},
    "diminishing_bn": {},
    "full_norm": {},
    "eval_norm": {"batch": 2},
    "hybrid_bn": {},
    "example_bn": {"alpha": 0.3},
    "prediction_bn": {"prior_count": 4},
    "alpha_bn": {},
    "iabn": {"k": 1.0},
    "online_bn": {},
}

SHORT = Run(
    data=Data("digits", train_limit=160, test_limit=60),
    model_options={"width": 4},
    world=Devices(ranks=4, per_device_batch=4),
    optim=Optim(epochs=2, lr=0.01),
)


class Shared(nn.Module):
    """Uses one convolution and one norm twice, at two sizes; its classifier is tied to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.again, self.norm2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.classifier = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.first(x)).relu()
        x = self.norm2(self.again(x)).relu()
        x = self.norm2(self.again(nn.functional.avg_pool2d(x, 2))).relu()
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


def model_with(norm: str) -> nn.Module:
    torch.manual_seed(0)
    return convert(Shared(), norm, **NORMS[norm]).double()


def batches(per_rank: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    total = RANKS * per_rank
    return [
        (
            torch.randn(total, 2, 6, 6, dtype=torch.float64, generator=generator),
            torch.randint(3, (total,), generator=generator),
        )
        for _ in range(STEPS)
    ]


def trained_on_devices(model: nn.Module, per_rank: int) -> tuple[list[nn.Module], list[Tensor]]:
    """Train a model of its own on every device, all by the mean of their gradients; return them, and each output."""
    models = [copy.deepcopy(model) for _ in range(RANKS)]
    optimizers = [make_optimizer(m.named_parameters(), OPTIM) for m in models]
    outputs = []
    for x, y in batches(per_rank):
        logits = [m(x[rank::RANKS]) for rank, m in enumerate(models)]
        outputs.append(logits[0].detach())
        grads = []
        for rank, (m, out) in enumerate(zip(models, logits, strict=True)):
            loss = nn.functional.cross_entropy(out, y[rank::RANKS])
            grads.append(torch.autograd.grad(loss, list(m.parameters())))
        for m, optimizer in zip(models, optimizers, strict=True):
            for p, *parts in zip(m.parameters(), *grads, strict=True):
                p.grad = torch.stack(parts).mean(0)
            optimizer.step()
    return models, outputs


def trained_virtually(ranks: nn.Module, per_rank: int) -> list[Tensor]:
    optimizer = make_optimizer(ranks.named_parameters(), OPTIM)
    outputs = []
    for x, y in batches(per_rank):
        logits = ranks(x)
        outputs.append(logits[::RANKS].detach())
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, y).backward()
        optimizer.step()
    return outputs


def made(norm: str, way: str) -> nn.Module:
    return (
        ModelCopies(model_with(norm), RANKS) if way == "copies" else on_virtual_ranks(model_with(norm), norm, RANKS)
    )


BY_CHANNEL = {name for name, spec in ROWS.items() if spec.by_channel}
WAYS = [*product(NORMS, ["copies"]), *product(sorted(BY_CHANNEL & NORMS.keys()), ["channels"])]


@pytest.mark.parametrize("per_rank", [1, 2])
@pytest.mark.parametrize(("norm", "way"), WAYS)
def test_virtual_ranks_are_devices_that_average_their_gradients(norm: str, way: str, per_rank: int) -> None:
    devices, device_outputs = trained_on_devices(model_with(norm), per_rank)
    virtual = made(norm, way)
    assert isinstance(virtual, ModelCopies) == (way == "copies")
    virtual_outputs = trained_virtually(virtual, per_rank)
    torch.testing.assert_close(virtual_outputs, device_outputs, rtol=1e-10, atol=1e-10)
    x = torch.randn(5, 2, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(virtual.eval()(x), devices[0].eval()(x), rtol=1e-10, atol=1e-10)
    state = rank_0(virtual).state_dict()
    for name in [name for name in state if name.endswith(".gradients")]:
        state[name] *= RANKS  # a rank's part of the mean loss over all samples is 1 / R of a device's loss
    torch.testing.assert_close(state, devices[0].state_dict(), rtol=1e-10, atol=1e-10)


def test_every_norm_by_channel_is_tried() -> None:
    assert NORMS.keys() >= BY_CHANNEL


@pytest.mark.parametrize("way", ["copies", "channels"])
@pytest.mark.parametrize("norm", ["brn", "mabn"])
def test_ranks_see_other_samples_and_so_have_other_statistics(norm: str, way: str) -> None:
    virtual = made(norm, way)
    trained_virtually(virtual, 2)
    name = "norm1.running_square" if norm == "mabn" else "norm1.running_mean"
    if isinstance(virtual, ModelCopies):
        first, second = (model.get_buffer(name) for model in virtual.copies[:2])
    else:
        first, second = virtual.get_buffer(name.replace(".", ".wide.")).split(4)[:2]
    assert not torch.allclose(first, second)


def test_parameters_are_one_and_move_together() -> None:
    for way in ("copies", "channels"):
        model = model_with("mabn")
        before = dict(model.named_parameters())
        ranks = ModelCopies(model, RANKS) if way == "copies" else on_virtual_ranks(model, "mabn", RANKS)
        assert {id(p) for p in ranks.parameters()} == {id(p) for p in before.values()}
        ranks.float()
        assert rank_0(ranks) is model
        assert {tensor.dtype for tensor in (*ranks.parameters(), *ranks.buffers())} == {torch.float32, torch.int64}
        after = dict(model.named_parameters())
        assert after.keys() == before.keys()
        assert all(after[name] is before[name] for name in after)
        assert not any(isinstance(module, RanksAsChannels) for module in model.modules())


@pytest.mark.parametrize("way", ["copies", "channels"])
def test_samples_that_do_not_divide_are_refused_in_training_alone(way: str) -> None:
    ranks = made("brn", way)
    x = torch.randn(4, 2, 6, 6, dtype=torch.float64)
    with pytest.raises(UserError, match="4 samples do not divide over 3 virtual ranks"):
        ranks(x)
    assert ranks.eval()(x).shape == (4, 3)


@pytest.mark.parametrize("norm", ["brn", "mabn", "cbn", "evonorm_b0", "full_norm", "eval_norm"])
def test_a_run_has_them_and_is_evaluated_by_rank_0(norm: str) -> None:
    run = replace(SHORT, norm=Norm(norm, NORMS[norm]), world=Devices(global_batch=16, per_device_batch=1))
    result = fit(run)
    assert result.evaluated_by == "own (rank 0)"
    assert "accuracy_pooled" not in result.metrics
    assert result.metrics != fit(replace(run, world=Devices(1, 16))).metrics


def test_what_a_run_leaves_is_rank_0s_model(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []
    module = sys.modules["syncnorm.devices.world"]  # of whose name the package has the function
    measure = module.measure
    monkeypatch.setattr(
        module, "measure", lambda run, model, data: measured.append(model) or measure(run, model, data)
    )
    fit(replace(SHORT, norm=Norm("brn")))
    assert list(batch_norms(measured[0])) == ["features.1", "features.5", "features.9"]


@pytest.mark.parametrize(("norm", "shown"), [("none", "none"), ("gn", "none"), ("frozen_bn", "own (one device)")])
def test_who_evaluates_where_no_rank_has_statistics_of_its_own(norm: str, shown: str) -> None:
    assert fit(replace(SHORT, norm=Norm(norm))).evaluated_by == shown


def test_eval_norm_expects_the_batch_of_a_device() -> None:
    world = Devices(global_batch=16, per_device_batch=2)
    assert norm_layer(Norm("eval_norm"), world) == ("eval_norm", {"batch": 2})
    assert norm_layer(Norm("eval_norm", {"batch": 5}), world) == ("eval_norm", {"batch": 5})


def one_position(classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """A model whose norm sees a single position."""
    features = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(shape[0], 4, 1), nn.BatchNorm2d(4)]
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(4, classes))


def norm_after_relu(classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """A model whose norm does not stand behind a convolution."""
    features = [nn.Conv2d(shape[0], 4, 3), nn.ReLU(), nn.BatchNorm2d(4)]
    return nn.Sequential(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))


def with_a_generator(classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """A model that holds what cannot be copied."""
    model = norm_after_relu(classes, shape)
    model.stream = (number for number in range(3))
    return model


ONE_POSITION = {"model": "test_virtual_ranks:one_position", "model_options": {}, "world": Devices(2, 1)}
AFTER_RELU = {"model": "test_virtual_ranks:norm_after_relu", "model_options": {}}


@pytest.mark.parametrize(
    ("norm", "changes", "sentence"),
    [
        ("brn", {"world": Devices(2, 4, buffers="pooled")}, "norm 'brn' evaluates by what rank 0 has seen"),
        ("mabn", {"world": Devices(2, 4, buffers="pooled", engine="torchrun")}, "norm 'mabn' evaluates by what"),
        ("brn", ONE_POSITION, "layer '2' of model 'test_virtual_ranks:one_position' would get one value per channel"),
        ("evonorm_b0", ONE_POSITION, "one value per channel and sample"),
        (
            "mixstyle",
            {"model": "test_virtual_ranks:with_a_generator", "model_options": {}},
            "virtual ranks need a copy of the model each, and Sequential cannot be copied",
        ),
        ("cbn", AFTER_RELU, "with norm 'cbn' cannot train on 4 samples a device: CrossIterationBatchNorm(4) needs"),
    ],
)
def test_what_a_norm_cannot_serve_is_found_before_training(norm: str, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        check(replace(SHORT, norm=Norm(norm), **changes))
    assert sentence in str(caught.value)


def test_the_check_before_training_moves_nothing() -> None:
    before = torch.get_rng_state()
    check(replace(SHORT, norm=Norm("mixstyle", {"p": 1.0})))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("norm", ["mabn", "frozen_bn"])
def test_norms_that_need_no_variance_take_one_value_a_channel(norm: str) -> None:
    run = replace(SHORT, norm=Norm(norm), **ONE_POSITION)
    assert fit(run).metrics["steps"] == 2 * 80
