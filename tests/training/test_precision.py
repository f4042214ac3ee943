"""Precisions of a run, in every world and engine, held against float32.

The bounds. A type with p significant bits rounds by at most u = 2^-p of a value: 2^-8 for bfloat16, 2^-11 for
float16. A product of a lower type rounds its two factors and its result, so L layers change logits by 3 L u of their
size, to first order; norms keep relative errors as they are. Networks that have just begun have logits of order 1,
and cross-entropy moves by at most twice what logits do. In bf16-true each of T steps rounds the weights as well; the
errors have either sign, so they add up to sqrt(T) u. The backward pass has twice as many products as the forward.
"""

from dataclasses import replace
from itertools import chain, pairwise
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import syncnorm.training.precision as precisions
from syncnorm.config import Clients, Data, Devices, Domains, Execution, Norm, Optim, Run
from syncnorm.errors import UserError
from syncnorm.federated.algorithms.fedtan import FedTAN
from syncnorm.federated.engines import cohort, loop
from syncnorm.federated.local import Local, Task, Update
from syncnorm.surgery import batch_norms, convert
from syncnorm.training.learner import Learner
from syncnorm.training.precision import PRECISIONS, check_precision, in_precision
from syncnorm.training.saved import load_model
from syncnorm.worlds import check, fit

PLAIN = Optim(lr=0.1, momentum=0.0, weight_decay=0.0, epochs=2, schedule="constant", warmup=0.0)
DEVICES = Run(
    data=Data("digits", train_limit=96, test_limit=60),
    model_options={"width": 4},
    world=Devices(ranks=2, per_device_batch=8),
    optim=PLAIN,
)
DOMAINS = replace(
    DEVICES,
    data=Data("few", train_limit=48, test_limit=40),
    norm=Norm("domain_bn"),
    world=Domains(("digits", "digits-inverted", "digits-noisy"), unseen=("digits-noisy",), batch=16),
)
CLIENTS = replace(DEVICES, world=Clients(count=3, rounds=2, batch=8, engine="loop"))
COHORT = replace(CLIENTS, world=Clients(count=3, rounds=2, batch=8, engine="cohort"))
TOGETHER = replace(CLIENTS, world=Clients(count=3, rounds=2, batch=8, engine="cohort", method="fedtan"))
RUNS = {
    "virtual": DEVICES,
    "brn, ranks as channels": replace(DEVICES, norm=Norm("brn")),
    "cbn, copies": replace(DEVICES, norm=Norm("cbn")),
    "domains": DOMAINS,
    "loop": CLIENTS,
    "cohort": COHORT,
    "cohort, gn": replace(COHORT, norm=Norm("gn")),
    "cohort, fedtan": TOGETHER,
}
LAYERS, STEPS = 4, 12
"""Layers with a product in small_cnn; steps of each of these runs, or of each of their clients."""
BITS = {torch.bfloat16: 8, torch.float16: 11}


def rounding(precision: str) -> float:
    row = PRECISIONS[precision]
    return 2.0 ** -BITS[row.products or row.parameters]


def bound(precision: str) -> float:
    """Return how far the loss of a run may be from that of float32."""
    stored = sqrt(STEPS) if precision == "bf16-true" else 0
    return 2 * LAYERS * (3 + stored) * rounding(precision)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("world", RUNS)
def test_the_loss_is_that_of_float32_within_the_formats_bound(world: str, precision: str, tmp_path: Path) -> None:
    run = replace(RUNS[world], precision=precision)  # type: ignore[type-var]
    seen: set[torch.dtype] = set()

    def see(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(module, nn.Conv2d) and module.training:
            seen.add(output.dtype)

    full = fit(RUNS[world]).metrics
    hook = nn.modules.module.register_module_forward_hook(see)
    try:
        short = fit(run, Execution(model=tmp_path)).metrics
    finally:
        hook.remove()
    assert torch.bfloat16 in seen
    for name in ("train_loss", "loss"):
        assert 0 < abs(short[name] - full[name]) < bound(precision), name
    model = load_model(tmp_path).model
    assert {buffer.dtype for buffer in model.buffers()} <= {torch.float32, torch.int64}
    expected = torch.float32 if precision == "bf16-mixed" else torch.bfloat16
    assert all(parameter.dtype == expected for parameter in model.parameters() if parameter.dim() > 1)


@pytest.mark.parametrize("run", [DEVICES, COHORT], ids=["devices", "cohort"])
def test_lines_have_the_order_of_float32(run: Run) -> None:
    """Of three lines whose losses are farther apart than both bounds together."""
    run = replace(run, model="mlp", model_options={})
    lines = [replace(run, optim=Optim(lr=rate, warmup=0.0, epochs=5)) for rate in (0.1, 0.01, 1e-4)]
    if isinstance(run.world, Clients):
        lines = [replace(line, world=replace(run.world, rounds=5)) for line in lines]

    def losses(precision: Any) -> list[float]:
        return [fit(replace(line, precision=precision)).metrics["train_loss"] for line in lines]

    apart = 2 * bound("bf16-mixed")
    assert all(worse - better > apart for better, worse in pairwise(losses("float32")))
    for found in (losses("bf16-mixed"), losses("bf16-true")):
        assert found == sorted(found)


class Smooth(nn.Module):
    """A network without kinks: where a ReLU or a maximum switches, rounding has no first order.

    share: factor on the logits, and so on all gradients before them.
    """

    def __init__(self, norm: str = "bn", share: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.SiLU()]
        body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.body, self.head, self.share = convert(body, norm), nn.Linear(8, 3), share

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 3) of images (N, 2, 8, 8)."""
        logits: Tensor = self.head(self.body(x)) * self.share
        return logits


def gradient_bound(precision: str) -> float:
    """Return how far a gradient of `Smooth` may be from that of float32, relative to its norm:
    2 x 3 roundings a layer of three layers, of either sign."""
    return sqrt(2 * 3 * 3) * rounding(precision)


def step(model: nn.Module, precision: str, engine: Any, clients: int = 3, **local: Any) -> list[Update]:
    """Return the updates of clients after a first step on noise; their momentum is the gradient."""
    torch.manual_seed(1)
    model = in_precision(model, precision)
    x, y = torch.randn(8 * clients, 2, 8, 8), torch.randint(0, 3, (8 * clients,))
    state = {name: v.detach().clone() for name, v in chain(model.named_parameters(), model.named_buffers())}
    tasks = [Task(k, (torch.arange(8) + 8 * k,), (False,), state, seed=k, momentum={}) for k in range(clients)]
    optim = Optim(lr=0.1, weight_decay=0.0)
    updates: list[Update] = engine.train(Local(Learner(model, precision=precision), optim, **local), x, y, tasks)
    assert not any(update.error for update in updates)
    return updates


def gradients(updates: list[Update]) -> Tensor:
    parts = [sorted((update.momentum or {}).items()) for update in updates]
    return torch.cat([value.double().flatten() for part in parts for _, value in part])


def distance(norm: str, precision: str, engine: Any, share: float = 1.0) -> float:
    """Return the relative distance of a first step's gradients from those of float32 on the plain engine."""
    exact = gradients(step(Smooth(norm, share), "float32", loop))
    return float((gradients(step(Smooth(norm, share), precision, engine)) - exact).norm() / exact.norm())


@pytest.mark.filterwarnings("error:the clients could not train")
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "bf16-true"])
@pytest.mark.parametrize("engine", [loop, cohort], ids=["loop", "cohort"])
@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_gradients_are_those_of_float32_within_the_formats_bound(norm: str, engine: Any, precision: str) -> None:
    """float16 runs on this CPU too, slowly: only whole runs refuse it."""
    assert 0 < distance(norm, precision, engine) < gradient_bound(precision)


@pytest.mark.parametrize("engine", [loop, cohort], ids=["loop", "cohort"])
def test_a_scaled_loss_saves_gradients_that_float16_would_lose(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = gradient_bound("16-mixed")
    assert distance("bn", "16-mixed", engine, share=1e-4) < limit
    monkeypatch.setitem(precisions.PRECISIONS, "16-mixed", replace(PRECISIONS["16-mixed"], loss_scale=1.0))
    assert distance("bn", "16-mixed", engine, share=1e-4) > 2 * limit


def test_clients_that_share_statistics_share_them_in_float32() -> None:
    """They move by a tenth of a batch's moments, whose inputs of order 1 have three roundings."""
    short, exact = (step(Smooth(), name, cohort, algorithm=FedTAN())[0].state for name in ("bf16-mixed", "float32"))
    statistics = [name for name in exact if "running" in name]
    assert len(statistics) == 4
    for name in statistics:
        assert short[name].dtype == torch.float32
        assert not torch.equal(short[name], short[name].bfloat16().float())
        torch.testing.assert_close(short[name], exact[name], rtol=0, atol=0.1 * 3 * rounding("bf16-mixed"))


def test_layers_with_statistics_stay_in_float32_and_a_running_mean_moves() -> None:
    """In bfloat16 a running mean of 100 would not: a tenth of the way to 101 is less than half of its spacing."""
    model = in_precision(
        nn.Sequential(nn.Conv2d(2, 4, 1, bias=False), nn.BatchNorm2d(4), nn.GroupNorm(2, 4)), "bf16-true"
    )
    assert model[0].weight.dtype == model[2].weight.dtype == torch.bfloat16
    (norm,) = batch_norms(model).values()
    assert {value.dtype for value in chain(norm.parameters(), norm.buffers())} == {torch.float32, torch.int64}
    norm.running_mean.fill_(100.0)  # type: ignore[operator,union-attr]
    with torch.no_grad():
        model[0].weight.fill_(50.5)
    out = model(torch.ones(2, 2, 3, 3))
    assert out.dtype == torch.float32
    assert norm.running_mean.tolist() == pytest.approx([100.1] * 4, abs=0.05)  # type: ignore[operator,union-attr]


@pytest.mark.skipif(torch.cuda.is_available(), reason="only where there is no CUDA device")
@pytest.mark.parametrize("run", [DEVICES, DOMAINS, CLIENTS], ids=["devices", "domains", "clients"])
def test_float16_needs_cuda(run: Run) -> None:
    for refuse in (check, fit):
        with pytest.raises(UserError, match="precision 16-mixed needs a CUDA device: write bf16-mixed"):
            refuse(replace(run, precision="16-mixed"))


def test_a_cuda_device_without_bfloat16_refuses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Old Device")
    for name in ("bf16-mixed", "bf16-true"):
        with pytest.raises(UserError, match=f"precision {name} needs a CUDA device that .* and Old Device does not"):
            check_precision(name)
    for name in ("float32", "float64", "16-mixed"):
        check_precision(name)


def test_complex_numbers_have_no_bfloat16() -> None:
    model = nn.Linear(2, 2, dtype=torch.complex64)
    with pytest.raises(UserError, match="precision bf16-true has no complex numbers"):
        in_precision(model, "bf16-true")
    assert in_precision(model, "float64").weight.dtype == torch.complex128
