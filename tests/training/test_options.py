"""Options of the trainer: each has its effect, and none that was not asked for."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from syncnorm.config import Clients, Data, Devices, Domains, Execution, Norm, Optim, Run, describe, run_id
from syncnorm.devices import training as devices_training
from syncnorm.domains import world as domains_world
from syncnorm.errors import UserError
from syncnorm.training.checkpoints import module_state
from syncnorm.worlds import check, fit

PLAIN = Optim(lr=0.1, momentum=0.0, weight_decay=0.0, epochs=2, schedule="constant", warmup=0.0)
DEVICES = Run(
    data=Data("digits", train_limit=96, test_limit=60),
    model_options={"width": 4},
    world=Devices(ranks=1, per_device_batch=16),
    optim=PLAIN,
)
DOMAINS = replace(
    DEVICES,
    data=Data("few", train_limit=48, test_limit=40),
    world=Domains(("digits", "digits-inverted", "digits-noisy"), unseen=("digits-noisy",), batch=16),
)
CLIENTS = replace(DEVICES, data=Data("digits", train_limit=200, test_limit=60), world=Clients(count=3, rounds=4))


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """Return the list to which every training that ends adds its parameters and buffers."""
    states: list[dict[str, torch.Tensor]] = []
    for world in (devices_training, domains_world):

        def run_trainer(*args: Any, inner: Any = world.run_trainer, **options: Any) -> None:
            inner(*args, **options)
            states.append({name: value.clone() for name, value in module_state(args[1])["tensors"].items()})

        monkeypatch.setattr(world, "run_trainer", run_trainer)
    return states


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float((a[name].double() - b[name].double()).square().sum()) for name in a))


def test_two_batches_accumulated_are_one_of_twice_the_size(ends: list[Any]) -> None:
    run = replace(DEVICES, norm=Norm("gn"), precision="float64", optim=replace(PLAIN, momentum=0.9))
    twice = replace(run, world=Devices(ranks=1, per_device_batch=32))
    halves = replace(run, optim=replace(run.optim, accumulate=2))
    assert fit(twice).metrics["steps"] == fit(halves).metrics["steps"] == 6
    fit(run)
    assert distance(ends[0], ends[1]) < 1e-13
    assert distance(ends[0], ends[2]) > 1e-3


def test_gradients_longer_than_the_clip_are_as_long_as_it(ends: list[Any]) -> None:
    run = replace(DEVICES, norm=Norm("none"), precision="float64", optim=replace(PLAIN, epochs=1))
    one = replace(run, world=Devices(ranks=1, per_device_batch=96))  # a single step
    for clip in (1e-3, 2e-3, 1e6, 0.0):
        fit(replace(one, optim=replace(one.optim, clip_norm=clip)))
    assert distance(ends[0], ends[1]) == pytest.approx(0.1 * 1e-3, rel=1e-3)
    assert distance(ends[2], ends[3]) == 0.0
    assert distance(ends[1], ends[3]) > 1e-3


LOOP = replace(CLIENTS, world=Clients(count=3, rounds=2, engine="loop"))


@pytest.mark.parametrize("run", [DEVICES, DOMAINS, LOOP], ids=["devices", "domains", "loop"])
def test_a_compiled_model_is_called_in_place_of_the_model(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.utils import counters

    inner = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: inner(self, backend="eager"))  # needs no C++ compiler
    counters.clear()
    compiled = fit(replace(run, compile=True))
    assert counters["stats"]["unique_graphs"] > 0
    counters.clear()
    plain = fit(run)
    assert not counters["stats"]
    # A compiler may add up in another order: some roundings of float32, 2^-24 each, a step, on a loss of order 1.
    assert compiled.metrics["train_loss"] == pytest.approx(plain.metrics["train_loss"], abs=1e-5)
    assert compiled.metrics["accuracy"] == pytest.approx(plain.metrics["accuracy"], abs=0.05)


@pytest.mark.parametrize("run", [DEVICES, DOMAINS, LOOP], ids=["devices", "domains", "loop"])
def test_channels_last_changes_the_memory_format_and_nothing_else(run: Run) -> None:
    """Sums of at most a few hundred products in another order: 1e-12 in float64, and a dozen steps."""
    run, formats = replace(run, precision="float64"), set()

    def see(module: nn.Module, inputs: Any, _: Any) -> None:
        if isinstance(module, nn.Conv2d) and module.training and module.in_channels > 1:
            formats.add(inputs[0].is_contiguous(memory_format=torch.channels_last))
            formats.add(module.weight.is_contiguous(memory_format=torch.channels_last))

    hook = nn.modules.module.register_module_forward_hook(see)
    try:
        other = fit(replace(run, channels_last=True))
    finally:
        hook.remove()
    assert formats == {True}
    assert other.metrics == pytest.approx(fit(run).metrics, rel=1e-10, abs=1e-10)


def test_channels_last_is_refused_for_what_has_no_height_and_width() -> None:
    run = replace(DEVICES, data=Data("activity-01"), model="signal_cnn", channels_last=True)
    with pytest.raises(UserError, match="channels_last is a memory format of images, and the samples of data set"):
        check(run)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"optim": Optim(clip_norm=-1.0)}, "optim.clip_norm is -1.0: it must be at least 0"),
        ({"optim": Optim(clip_norm=math.nan)}, "optim.clip_norm is nan: it must be at least 0"),
        ({"optim": Optim(accumulate=0)}, "optim.accumulate is 0: it must be at least 1"),
        ({"evaluate_every": 0}, "evaluate_every is 0: it must be at least 1, or None"),
        ({"precision": "float16"}, "unknown precision 'float16': did you mean '16-mixed'"),
    ],
)
@pytest.mark.parametrize("run", [DEVICES, DOMAINS, CLIENTS], ids=["devices", "domains", "clients"])
def test_mistakes_have_sentences(run: Run, change: dict[str, Any], says: str) -> None:
    for refuse in (check, fit):
        with pytest.raises(UserError, match=says):
            refuse(replace(run, **change))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"optim": Optim(clip_norm=1.0)}, "leave it at 0.0; world.clip is their gradient clipping"),
        ({"optim": Optim(accumulate=2)}, "optim.accumulate is 2, which clients do not have: leave it at 1"),
        ({"compile": True}, "compile is True, which a batched step .* set engine to loop, not to auto"),
        ({"channels_last": True}, "channels_last is True, which a batched step .* set engine to loop, not to auto"),
    ],
)
def test_clients_refuse_what_their_loops_do_not_have(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        check(replace(CLIENTS, **change))


def test_what_was_added_later_names_a_run_only_where_it_is_set() -> None:
    assert not {"compile", "channels_last", "evaluate_every"} & set(describe(DEVICES))
    assert not {"clip_norm", "accumulate"} & set(describe(DEVICES)["optim"])
    for change in (
        {"compile": True},
        {"channels_last": True},
        {"evaluate_every": 2},
        {"optim": replace(PLAIN, clip_norm=1.0)},
    ):
        assert run_id(replace(DEVICES, **change)) != run_id(DEVICES)  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", ["bn", "cbn", "brn", "mixstyle"])
@pytest.mark.parametrize("buffers", ["rank0", "pooled"])
def test_the_accuracy_by_epoch_changes_no_bit_of_the_training(norm: str, buffers: Any, ends: list[Any]) -> None:
    if norm != "bn" and buffers == "pooled":
        pytest.skip("no way to pool")
    world = Devices(ranks=2, per_device_batch=8, skew=100.0, buffers=buffers)
    run = replace(DEVICES, world=world, norm=Norm(norm), optim=replace(PLAIN, epochs=5))
    plain, followed = fit(run), fit(replace(run, evaluate_every=2))
    assert distance(*ends) == 0.0
    assert followed.metrics == plain.metrics
    assert followed.history["train_loss"] == plain.history["train_loss"]
    assert followed.history["accuracy_at"] == [2, 4, 5]
    assert len(followed.history["accuracy"]) == 3
    assert followed.history["accuracy"][-1] == followed.metrics["accuracy"]
    assert set(plain.history) == {"train_loss"}
    shorter = replace(run, optim=replace(run.optim, epochs=2))
    assert followed.history["accuracy"][0] == fit(shorter).metrics["accuracy"]


def test_domains_measure_less_often_and_train_the_same(ends: list[Any]) -> None:
    run = replace(DOMAINS, optim=replace(PLAIN, epochs=5))
    plain = fit(run)
    followed = fit(replace(run, evaluate_every=2))
    assert distance(*ends) == 0.0
    assert followed.metrics == plain.metrics
    assert followed.history["accuracy_at"] == [2, 4, 5]
    for name in ("seen_accuracy", "unseen_accuracy"):
        assert followed.history[name] == [plain.history[name][epoch - 1] for epoch in (2, 4, 5)]


@pytest.mark.parametrize(
    "options",
    [{}, {"method": "fedbn"}, {"method": "fedtan"}, {"method": "hbn"}, {"method": "sbn"}, {"validation": 0.2}],
)
def test_clients_are_followed_by_round_and_train_the_same(options: dict[str, Any], tmp_path: Path) -> None:
    assert isinstance(CLIENTS.world, Clients)
    data = replace(CLIENTS.data, validation=options.get("validation", 0.0))
    world = {name: value for name, value in options.items() if name != "validation"}
    run = replace(CLIENTS, data=data, world=replace(CLIENTS.world, engine="cohort", rounds=5, **world))
    plain = fit(run)
    followed = fit(replace(run, evaluate_every=2), Execution(tmp_path, checkpoint_every=0.0))
    assert followed.metrics == plain.metrics
    assert {name: followed.history[name] for name in plain.history} == plain.history
    assert followed.history["accuracy_at"] == [2, 4, 5]
    for name in ("accuracy", "global_accuracy", "validation_accuracy"):
        if name in plain.metrics:
            assert followed.history[name][-1] == plain.metrics[name]


@pytest.mark.parametrize("run", [DEVICES, DOMAINS], ids=["devices", "domains"])
def test_a_run_that_diverges_says_so(run: Run) -> None:
    assert fit(replace(run, optim=replace(PLAIN, lr=1e30))).details["diverged"] is True
    assert "diverged" not in fit(run).details


def test_a_negative_number_of_workers_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.workers is -1: it must be at least 0"):
        check(replace(DEVICES, data=Data("digits", workers=-1)))
