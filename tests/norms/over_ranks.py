"""Every registered norm on ranks, held against virtual ranks and one process: what threads and processes both run."""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from syncnorm import convert, domain
from syncnorm.config import Devices, Norm
from syncnorm.devices.prepare import norm_layer
from syncnorm.norms import NORMS
from syncnorm.training.ranks.layers import needs_virtual_ranks
from syncnorm.training.ranks.virtual_ranks import on_virtual_ranks

STEPS, LR = 4, 0.1
CLOSE = {"rtol": 1e-12, "atol": 1e-12}
OPTIONS: dict[str, dict[str, Any]] = {  # schedules short enough that every phase is there
    "ghost_bn": {"virtual_ranks": 2},
    "domain_bn": {"domains": 2},
    "brn": {"warmup": 1, "r_end": 3, "d_end": 3},
    "mabn": {"buffer": 2, "warmup": 2, "renorm_after": 2},
    "cbn": {"window": 3},
    "eval_norm": {"batch": 8},
    "example_bn": {"alpha": 0.3},
    "prediction_bn": {"prior_count": 4},
    "iabn": {"k": 1.0},
    "mixstyle": {"p": 0.0},  # whose partners are drawn
}
BY_RANK = list(NORMS)
SHARED = [name for name, row in NORMS.items() if row.over_ranks == "sync"]
WHOLE = [*SHARED, *(name for name, row in NORMS.items() if row.over_ranks is True or not row.sees_batch)]
"""The norms for which ranks do what one process does with the whole batch, those by option among them."""
CASES = [*((name, False) for name in BY_RANK), *((name, True) for name in SHARED)]

Reduce = Callable[[list[Tensor]], None]


def options_of(name: str, sync: bool) -> dict[str, Any]:
    """Return the options of a norm, which shares statistics between ranks or is as it comes."""
    return {**OPTIONS.get(name, {}), **({"sync": sync} if name in SHARED else {})}


def network(name: str, **options: Any) -> nn.Module:
    """Return the same small network in float64 each time, with two layers of a norm."""
    torch.manual_seed(0)
    parts = [nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3)]
    return convert(nn.Sequential(*parts), name, **options).double()


def virtual(name: str, sync: bool, ranks: int, samples: int) -> nn.Module:
    """Return the network as the devices world trains it on virtual ranks."""
    norm, world = Norm(name, options_of(name, sync)), Devices(ranks, samples // ranks)
    layer, options = norm_layer(norm, world)
    model = network(layer, **{**options, **({"buffers": "rank0"} if layer == "ghost_bn" else {})})
    return on_virtual_ranks(model, name, ranks) if needs_virtual_ranks(norm, ranks, "virtual") else model


def batches(samples: int) -> Tensor:
    """Return the batches of all steps, and one to evaluate."""
    return torch.randn(STEPS + 1, samples, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def train(model: nn.Module, parts: list[Tensor], reduce: Reduce | None = None) -> list[dict[str, Tensor]]:
    """Take steps, whose gradients `reduce` sums over ranks; return what each step and then an evaluation gave.

    The loss is a sum over samples, so that ranks' losses add up to the whole batch's.
    """
    told: list[dict[str, Tensor]] = []
    # Virtual ranks put theirs into other modules, or into copies.
    parameters = {re.sub(r"copies\.0\.|layer\.", "", name): p for name, p in model.named_parameters()}
    with domain(0):
        for x in parts[:-1]:
            leaf = x.clone().requires_grad_()
            y = model(leaf)
            model.zero_grad()
            (y.sin() * torch.arange(1.0, 4).view(3, 1, 1)).sum().div(500).backward()
            grads = {name: p.grad for name, p in parameters.items() if p.grad is not None}
            if reduce is not None:
                reduce(list(grads.values()))
            told.append({"y": y.detach(), "dx": leaf.grad, **{name: g.clone() for name, g in grads.items()}})
            with torch.no_grad():
                for name, grad in grads.items():
                    parameters[name].sub_(LR * grad)
        model.eval()
        told.append({"y": model(parts[-1]).detach()})
        model.train()
    return told


def compare(told: list[dict[str, Tensor]], right: list[dict[str, Tensor]], mine: Any, what: str) -> None:
    """Hold what a rank saw against the whole batch's, of which it has the samples `mine`."""
    for step, (found, expected) in enumerate(zip(told, right, strict=True)):
        assert found.keys() == expected.keys(), what
        for name, value in found.items():
            wanted = expected[name][mine] if name in ("y", "dx") else expected[name]
            at = f"{what}, step {step}, {name}"
            torch.testing.assert_close(value, wanted, **CLOSE, msg=lambda m, at=at: f"{at}: {m}")


def state(model: nn.Module) -> dict[str, Tensor]:
    """Return the statistics that a model keeps."""
    parameters = dict(model.named_parameters())
    return {name: value.clone() for name, value in model.state_dict().items() if name not in parameters}


def compare_states(found: dict[str, Tensor], right: dict[str, Tensor], what: str) -> None:
    """Hold statistics against those of one process."""
    assert found.keys() == right.keys(), what
    for name, value in found.items():
        torch.testing.assert_close(value, right[name], **CLOSE, msg=lambda m, name=name: f"{what}, {name}: {m}")
