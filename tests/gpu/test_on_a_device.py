"""Training on a device: what a CUDA device alone can show, and the rest on any, so that this file cannot rot.

`SYNCNORM_DEVICE=cpu` runs it on the CPU, as `launch/gpu.sh --device cpu` does.
"""

import os
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import torchrun
from torch import Tensor, nn

import syncnorm
from syncnorm.config import Clients, Data, Devices, Domains, Optim, Run
from syncnorm.federated import simulate
from syncnorm.models.registry import make_model
from syncnorm.study import Curve, Study, run_study
from syncnorm.study.rows import read

CUDA = torch.cuda.is_available()
DEVICE = torch.device(os.environ.get("SYNCNORM_DEVICE", "cuda"))
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE.type == "cuda" and not CUDA, reason="no CUDA device"),
    pytest.mark.skipif(DEVICE.type == "cpu" and CUDA, reason="hide the CUDA devices to run this on the CPU"),
]
cuda_only = pytest.mark.skipif(DEVICE.type == "cpu", reason="needs a CUDA device")
DATA = Data("digits", size=8, train_limit=128, test_limit=64)


def convolutional(norm: str = "sync_bn", **options: Any) -> nn.Module:
    """Return a small network with this norm, the same at every call."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16)]
    model = nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    return syncnorm.convert(model, norm, **options).to(DEVICE)


def batch(count: int = 16) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(count, 3, 12, 12, device=DEVICE), torch.randint(0, 10, (count,), device=DEVICE)


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(x).float(), y)


def statistics(model: nn.Module) -> list[Tensor]:
    layers = [layer for layer in model.modules() if hasattr(layer, "running_var")]
    return [value for layer in layers for value in (layer.running_mean, layer.running_var)]


def test_bfloat16_autocast_is_near_float32_and_keeps_float32_statistics() -> None:
    full, short = convolutional(), convolutional()
    x, y = batch()
    expected = loss_of(full, x, y)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        found = loss_of(short, x, y)
    found.backward()
    torch.testing.assert_close(found, expected, rtol=0.03, atol=0.03)
    for ours, theirs in zip(statistics(short), statistics(full), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=0.03, atol=0.03)


def test_a_float16_overflow_skips_the_step_and_leaves_statistics_alone() -> None:
    model = convolutional(skip_nonfinite=True)
    optimizer, scaler = (
        torch.optim.SGD(model.parameters(), 0.1),
        torch.amp.GradScaler(DEVICE.type, init_scale=2.0**10),
    )
    x, y = batch()
    before: dict[str, Tensor] = {}
    for factor in (1.0, 1e6):  # the second batch is beyond float16
        before = {name: value.clone() for name, value in model.state_dict().items()}
        optimizer.zero_grad()
        with torch.autocast(DEVICE.type, dtype=torch.float16):
            loss = loss_of(model, x * factor, y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 2.0**9, "the overflow was noticed"
    for name, value in model.state_dict().items():
        if "num_batches_tracked" not in name:
            assert torch.equal(value, before[name]), name
    assert all(value.isfinite().all() for value in statistics(model))


def test_compiled_as_one_graph_equals_eager() -> None:
    eager, compiled = convolutional(), convolutional()
    run = torch.compile(compiled, fullgraph=True, backend="inductor" if CUDA else "aot_eager")
    x, y = batch()
    for model, function in ((eager, eager), (compiled, run)):
        loss_of(function, x, y).backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
    close = {"rtol": 1e-3, "atol": 1e-4}
    for ours, theirs in zip(compiled.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, **close)
    for found, expected in zip(statistics(compiled), statistics(eager), strict=True):
        torch.testing.assert_close(found, expected, **close)


def test_channels_last_stays_so_and_changes_nothing() -> None:
    plain, last = convolutional().double(), convolutional().double().to(memory_format=torch.channels_last)
    x, y = batch()
    expected = loss_of(plain, x.double(), y)
    normalised = last[:2](x.double().contiguous(memory_format=torch.channels_last))
    assert normalised.is_contiguous(memory_format=torch.channels_last)
    last = convolutional().double().to(memory_format=torch.channels_last)
    found = loss_of(last, x.double().contiguous(memory_format=torch.channels_last), y)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@cuda_only
def test_a_step_is_captured_in_a_cuda_graph_and_waits_for_nothing() -> None:
    model, twin = convolutional(), convolutional()
    x, y = batch()
    static = x.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            loss_of(model, static, y).backward()
    torch.cuda.current_stream().wait_stream(stream)
    twin.load_state_dict(model.state_dict())
    model.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = loss_of(model, static, y)
        captured.backward()
    other = torch.randn_like(x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        static.copy_(other)
        graph.replay()
        expected = loss_of(twin, other, y)
        expected.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(captured, expected, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4)
    for found, right in zip(statistics(model), statistics(twin), strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)


def test_virtual_ranks_equal_ranks_one_by_one() -> None:
    model, x = convolutional("ghost_bn", virtual_ranks=4).double(), batch()[0].double()
    alone = convolutional("bn").double()
    found = model(x)
    for rank in range(4):
        expected = deepcopy(alone)(x[rank::4])
        torch.testing.assert_close(found[rank::4], expected, rtol=1e-10, atol=1e-10)


GROUPS = [
    pytest.param("gloo", 2, id="two processes on one device, gloo"),
    pytest.param("nccl", max(torch.cuda.device_count(), 1), id="a rank a device, NCCL", marks=cuda_only),
]


@pytest.mark.dist
@pytest.mark.parametrize(("backend", "ranks"), GROUPS)
def test_ranks_equal_the_large_batch(backend: str, ranks: int) -> None:
    torchrun(ranks, Path(__file__).with_name("ranks_program.py"), backend, DEVICE.type)


def test_the_cohort_engine_equals_the_loop() -> None:
    world = Clients(count=4, rounds=2, batch=16, method="fedbn", skew="dirichlet_by_class", alpha=1.0)
    run = Run(DATA, "small_cnn", {"width": 4}, world=world, optim=Optim(lr=0.05), precision="float64")
    loop, cohort = (simulate(replace(run, world=replace(world, engine=engine))) for engine in ("loop", "cohort"))
    for name in ("loss", "accuracy"):
        assert cohort.metrics[name] == pytest.approx(loop.metrics[name], abs=1e-8), name


@pytest.mark.parametrize("kind", ["devices", "clients", "domains"])
def test_a_study_of_each_world(kind: str, tmp_path: Path) -> None:
    worlds = {
        "devices": (Devices(global_batch=16), {"per_device_batch": [4]}),
        "clients": (Clients(count=4, rounds=2, batch=16), {"method": ["fedbn"]}),
        "domains": (Domains(("digits", "digits-inverted")), {"norm": ["bn"]}),
    }
    world, vary = worlds[kind]
    base = Run(DATA, "small_cnn", {"width": 4}, world=world, optim=Optim(epochs=1))
    (field,) = vary
    study = Study(kind, "Does it run?", base, vary, seeds=1, figures=(Curve(field, "norm"),))
    run_study(study, tmp_path / "out", jobs=1, wandb="off")
    (row,) = read(tmp_path / "out").finished
    assert row["environment"]["device"] == (torch.cuda.get_device_name() if CUDA else "cpu")
    assert 0 <= row["metrics"]["accuracy"] <= 1


@pytest.mark.parametrize("name", ["small_cnn", "resnet20"])
def test_a_model_of_ours_trains(name: str) -> None:
    model = make_model(name, (3, 16, 16), 10).to(DEVICE)
    x, y = torch.randn(8, 3, 16, 16, device=DEVICE), torch.randint(0, 10, (8,), device=DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = loss_of(model, x, y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
